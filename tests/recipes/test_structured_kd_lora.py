"""Students with adapters, end to end: LoRA, DoRA and QLoRA on the tiny config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from recipe_runs import run_recipe, set_up_recipe
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from sad_components.models import from_scratch, save_student
from sad_components.models.hidden import restore_logits
from sad_components.models.lora import base_state_dict, trained_parameters

TINY = Path(__file__).parents[2] / "configs" / "tiny" / "structured_kd_lora.yaml"
#: Few rows and no scores: what a test of the training step needs.
FAST = ("dataset.limit=8", "heldout=null", "max_steps=1", "clip_grad_norm=null")
SGD = (
    *FAST,
    "dtype=fp64",
    "optimizer={_component_: torch.optim.SGD, lr: 1.0}",
    "lr_scheduler=null",
)
METHODS = {
    "lora": (),
    "dora": ("student.use_dora=true", "student.lora_attn_modules=[q_proj, v_proj]"),
    "qlora": ("student.quantize_base=true",),
}


def configured(*overrides: str):
    return OmegaConf.merge(OmegaConf.load(TINY), OmegaConf.from_dotlist(list(overrides)))


def set_up(*overrides: str):
    return set_up_recipe(configured("metric_logger=null", *overrides))


def run(*overrides: str):
    """The recipe in this process, in the current folder; the recipe object afterwards."""
    return run_recipe(configured("metric_logger=null", *overrides))


def copies(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def adapter(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_adapters_are_trained_alone_and_both_folders_load(method):
    recipe = set_up(
        *METHODS[method],
        *("dataset.limit=16", "heldout.limit=3", "eval_every_n_steps=null"),
        *("epochs=2", "save_every_n_steps=4"),
    )
    base, start = (copies(f(recipe.student)) for f in (base_state_dict, trained_parameters))
    recipe.train()
    recipe.cleanup()
    after = base_state_dict(recipe.student)
    assert all(torch.equal(after[name], base[name]) for name in base)
    trained = trained_parameters(recipe.student)
    assert all(not torch.equal(trained[name], start[name]) for name in start)
    assert {id(p) for p in trained.values()} == {
        id(p) for group in recipe.optimizer.param_groups for p in group["params"]
    }
    summary = json.loads(Path("runs/tiny_lora/summary.json").read_text())
    assert summary["parameters"]["trained"] == sum(p.numel() for p in trained.values())
    for name in ("kl_reason", "kl_act"):
        assert summary["heldout"]["after"][name] < 0.85 * summary["heldout"]["before"][name]
    (folder, *_) = Path("runs/tiny_lora/checkpoints").iterdir()
    files = sorted(p.name for p in folder.iterdir())
    assert files == ["adapters.safetensors", "manifest.json", "state.pt"]
    check_folders(recipe.student, Path("runs/tiny_lora"))


@torch.no_grad()
def check_folders(student, folder: Path) -> None:
    """The merged student, and the adapter on its base, in transformers and PEFT."""
    tokens = torch.arange(3, 40)[None]
    ours = restore_logits(student).eval()(tokens)
    merged = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    assert_close(merged.eval()(tokens).logits, ours, atol=1e-4, rtol=0)
    base = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    base = base["base_model_name_or_path"]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    assert (plain(tokens).logits - ours).abs().max() > 1e-3
    theirs = PeftModel.from_pretrained(plain, folder / "adapter").eval()
    assert_close(theirs(tokens).logits, ours, atol=1e-4, rtol=0)


def test_a_base_that_is_a_folder_is_named_not_copied():
    save_student(from_scratch(configured().student.config, seed=2), "base_model")
    student = OmegaConf.to_container(configured().student)
    del student["config"], student["seed"]
    student |= {"_component_": "sad_components.models.lora_from_pretrained", "path": "base_model"}
    cfg = configured(*FAST, "metric_logger=null", "lr_scheduler=null")
    cfg.student = student
    recipe = run_recipe(cfg)
    config = json.loads(Path("runs/tiny_lora/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base_model"
    assert not Path("runs/tiny_lora/base").exists()
    check_folders(recipe.student, Path("runs/tiny_lora"))


@pytest.mark.parametrize("method", ["dora", "qlora"])
def test_resumed_run_equals_the_uninterrupted_one(method):
    common = (*METHODS[method], "dataset.limit=8", "heldout=null", "batch_size=2")
    common += ("student.lora_dropout=0.2", "save_every_n_steps=2")
    run(*common, "output_dir=whole")
    cut = set_up(*common, "output_dir=parts")
    steps = iter(range(3))

    def step_until_the_power_goes():
        if next(steps, None) is None:
            raise InterruptedError
        return type(cut).train_step(cut)

    cut.train_step = step_until_the_power_goes
    with pytest.raises(InterruptedError):
        cut.train()
    with pytest.raises(ValueError, match=r"lora_a.weight is \(8, 64\) in .* and \(4, 64\)"):
        run(*common, "output_dir=parts", "resume=true", "student.lora_rank=4")
    run(*common, "output_dir=parts", "resume=true")
    for name in ("student/model.safetensors", "adapter/adapter_model.safetensors"):
        whole, parts = load_file(f"whole/{name}"), load_file(f"parts/{name}")
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_compiled_run_gives_the_same_loss():
    losses, small = [], ("student.config.num_hidden_layers=1", "student.apply_lora_to_mlp=false")
    for compiled in ("false", "true"):
        folder = f"compile_{compiled}"
        run(*FAST, *small, "dataset.limit=4", f"compile={compiled}", f"output_dir={folder}")
        losses.append(json.loads((Path(folder) / "metrics.jsonl").read_text())["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


UNTIED = "student.config.tie_word_embeddings=false"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("student.apply_lora_to_output=true",), "this model's is its embedding"),
        (("student.apply_lora_to_output=true", UNTIED), "set apply_lora_to_output: false"),
        (("student.lora_attn_modules=[qkv]",), "lora_attn_modules must name some of q_proj"),
        (("student.lora_ranks=4",), "did you mean 'lora_rank'?"),
        (
            ("student.quantize_base=true", "student.config.hidden_size=36"),
            "NF4 holds weights whose number is a multiple of 64; got (36, 36)",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_start(overrides, message):
    with pytest.raises(ValueError) as caught:
        set_up(*FAST, *overrides)
    assert message in str(caught.value)
