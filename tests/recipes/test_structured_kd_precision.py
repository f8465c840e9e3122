"""The recipe under each switch of precision and memory: trains, and as the golden files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from loading import load_module
from omegaconf import OmegaConf
from recipe_runs import run_recipe
from safetensors.torch import load_file
from torchao.float8.float8_linear import Float8Linear
from torchao.quantization.qat.linear import FakeQuantizedLinear

from sad_components.models.hidden import head_of, restore_logits, stop_at_hidden
from sad_components.models.linear_layers import linear_layers
from sad_components.models.quantized import load_quantized

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
make_golden = load_module("tests/golden/make_golden.py")
SWITCHES = make_golden.SWITCHES
#: Relative, for another machine's kernels: where values are rounded, a last bit can flip one.
TOLERANCE = {"bf16": 1e-2, "teacher_bf16": 1e-2}
EXACT = ("fp32", "activation_checkpointing", "packing", "compile", "lora", "dora")
TOLERANCE |= dict.fromkeys(EXACT, 1e-4)
ROUNDED = 1e-3
#: Compiles for about a minute; a step of it is compared in test_structured_kd.py.
PARAMETERS = [
    pytest.param(name, marks=pytest.mark.slow if name == "compile" else ()) for name in SWITCHES
]


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("name", PARAMETERS)
def test_trains_with_the_golden_losses(name):
    record = golden(name)
    assert record["overrides"] == [*make_golden.COMMON, *SWITCHES[name]], "make the file anew"
    _, losses = make_golden.train(name, "run")
    assert losses == pytest.approx(record["losses"], rel=TOLERANCE.get(name, ROUNDED))
    assert losses[-1] < 0.75 * losses[0]
    assert Path("run/student/model.safetensors").is_file()


def test_golden_files_tell_the_switches_apart():
    plain = golden("fp32")["losses"]
    for name in SWITCHES:
        apart = max(abs(a / b - 1) for a, b in zip(golden(name)["losses"], plain, strict=True))
        same = name in ("fp32", "activation_checkpointing", "packing", "compile")
        assert (apart < 1e-5) if same else (apart > 5e-4), name
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(SWITCHES)


def configured(*overrides: str):
    given = [*make_golden.COMMON, *overrides]
    tiny = OmegaConf.load(ROOT / "configs" / "tiny" / "structured_kd.yaml")
    return OmegaConf.merge(tiny, OmegaConf.from_dotlist(given))


def run(*overrides: str):
    return run_recipe(configured(*overrides))


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        *(("fp8=tensorwise", Float8Linear), ("fp8=rowwise", Float8Linear)),
        *(("qat=8da4w", FakeQuantizedLinear), ("qat=int4", FakeQuantizedLinear)),
    ],
)
def test_every_linear_layer_of_the_student_is_of_the_switchs_kind(override, kind):
    recipe = run(override, "max_steps=1")
    layers = linear_layers(recipe.student).values()
    assert len(layers) == 14
    assert all(isinstance(layer, kind) for layer in layers)
    assert not any(isinstance(layer, kind) for layer in recipe.teacher.model.modules())


@pytest.mark.parametrize(
    "overrides",
    [
        ("qat=8da4w",),
        ("qat=int4", "qat_group_size=16", "activation_checkpointing=true"),
        ("qat=8da4w", "dtype=bf16"),
    ],
    ids=lambda overrides: "-".join(overrides),
)
def test_qat_leaves_the_student_that_was_trained(overrides, capsys):
    recipe = run(*overrides, "heldout={source: shipped:household/heldout, limit: 2}")
    assert "scores are those of the quantised student" in capsys.readouterr().out
    tokens = torch.arange(60).view(2, 30)
    quantized = load_quantized("runs/tiny/quantized")
    with torch.no_grad():
        trained = restore_logits(recipe.student).eval()(tokens)
        found = quantized.eval()(tokens)
    torch.testing.assert_close(found, trained, atol=1e-6, rtol=1e-6)
    scores = recipe.evaluator.score(stop_at_hidden(quantized), head_of(quantized)).to_dict()
    after = recipe.heldout["after"]
    assert scores["kl_act"] == pytest.approx(after["kl_act"], rel=1e-4)
    assert Path("runs/tiny/quantized/tokenizer.json").is_file()


def test_qat_writes_the_plain_student_for_transformers():
    from transformers import AutoModelForCausalLM

    recipe = run("qat=8da4w", "max_steps=1")
    reference = AutoModelForCausalLM.from_pretrained("runs/tiny/student", dtype=torch.float32)
    own = recipe.student.layers[0].mlp.w1.weight
    assert torch.equal(reference.model.layers[0].mlp.gate_proj.weight, own)


def test_resumed_run_equals_the_uninterrupted_one():
    switches = ("qat=int4", "activation_checkpointing=true", "lr_scheduler=null")
    run(*switches, "output_dir=whole")
    run(*switches, "output_dir=parts", "max_steps=3", "save_every_n_steps=3")
    run(*switches, "output_dir=parts", "resume=true")
    for folder in ("student", "quantized"):
        whole, parts = (
            load_file(Path(name) / folder / "model.safetensors") for name in ("whole", "parts")
        )
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize("override", ["fp8=tensorwise", "fp8=rowwise", "qat=8da4w"])
def test_rows_without_a_supervised_token_are_no_error(override):
    """Under a loss of REASON alone, a row without thoughts asks nothing of the last layer."""
    Path("rows.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": "You are in a room."},
                        {"role": "assistant", "content": said + "Action: look"},
                        {"role": "user", "content": "A drawer."},
                    ]
                }
            )
            + "\n"
            for said in ("", "Thought: I should look.\n")
        )
    )
    nothing = "loss.act={divergence: null, ce: 0.0, weight: 0.0}"
    run(override, nothing, "loss.branch=own", "dataset.source=rows.jsonl", "batch_size=1")
    for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["loss"] >= 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("fp8=tensorwise", "qat=8da4w"), "both replace the student's linear layers"),
        (("fp8=e5m2",), "fp8 is null, tensorwise or rowwise; got 'e5m2'"),
        (("qat=int4", "qat_group_size=48"), "does not divide the inputs of 14 of 14 linear layers"),
        (("qat=int4", "dtype=fp64"), "the run's dtype is float64"),
        (("activation_offloading=true",), "the device is cpu"),
        (("teacher_precision=int3",), "teacher_precision is null, bf16, fp8, int8, nf4"),
        (("fp8=tensorwise", *SWITCHES["lora"]), "fp8 replaces plain linear layers"),
        (("qat=8da4w", *SWITCHES["nf4_lora"]), "8da4w replaces plain linear layers"),
    ],
)
def test_what_cannot_work_is_refused_at_start(overrides, message):
    cfg = configured(*overrides)
    with pytest.raises(ValueError, match=message):
        load_module("recipes/structured_kd.py").StructuredKDRecipe(cfg).setup(cfg)


def test_checkpointed_adapters_are_saved_as_without():
    for name, checkpointed in (("plain", "false"), ("again", "true")):
        switch = f"activation_checkpointing={checkpointed}"
        run(*SWITCHES["lora"], "max_steps=2", "save_every_n_steps=1", switch, f"output_dir={name}")
    for file in ("student/model.safetensors", "adapter/adapter_model.safetensors"):
        plain, again = (load_file(Path(name) / file) for name in ("plain", "again"))
        assert plain.keys() == again.keys()
        assert all(torch.equal(plain[key], again[key]) for key in plain)
    run(*SWITCHES["lora"], "max_steps=3", "output_dir=again", "resume=true")  # without, from with
