"""Students on disk: what stays computes what it did, in transformers too."""

from __future__ import annotations

import json

import pytest
import torch
from hf_families import CONFIGS, reference, write_reference
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from sad_components.models import cut_student, from_pretrained
from sad_components.models.checkpoint import load_hf_config
from sad_components.pruning.importance import Rows
from sad_components.pruning.report import lines
from sad_components.pruning.shapes import Sizes
from sad_components.pruning.student import REPORT_FILE, prune

LLAMA_LIKE = ["llama2", "llama3", "llama3.2", "smollm2", "mistral", "qwen3-8b", "qwen3-0.6b"]
#: Units that a teacher of :func:`idle_teacher` does not need: what is left is what to ask for.
IDLE_NEURONS, IDLE_CHANNELS = [0, 7, 30, 79], [1, 2, 17, 46, 47, 13]
IDLE_HEADS = {0: [0, 5], 1: [1, 3], 2: [2, 4]}  # one of each group of three


@torch.no_grad()
def idle_teacher(name, folder, **changes):
    """A teacher some of whose heads, neurons and channels change nothing."""
    model = reference(name, **changes)
    decoder = model.model
    decoder.embed_tokens.weight[:, IDLE_CHANNELS] = 0
    for index, layer in enumerate(decoder.layers):
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight[IDLE_CHANNELS] = 0
        layer.mlp.down_proj.weight[:, IDLE_NEURONS] = 0
        size = layer.self_attn.head_dim
        for head in IDLE_HEADS[index]:
            layer.self_attn.o_proj.weight[:, head * size : (head + 1) * size] = 0
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def theirs(folder, tokens):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(tokens, use_cache=False).logits


@torch.no_grad()
def ours(folder, tokens):
    return from_pretrained(folder, dtype="fp32").eval()(tokens)


def equal(logits, expected, times=1e-5):
    assert expected.std() > 0.3, "too flat to tell anything"
    assert_close(logits, expected, rtol=0, atol=times * float(expected.abs().max().clamp(min=1)))


@pytest.mark.parametrize("name", LLAMA_LIKE)
@pytest.mark.parametrize(
    ("sizes", "units"),
    [
        (Sizes(ffn=76), {"ffn"}),
        (Sizes(width=42), {"width"}),
        (Sizes(heads=4, kv_heads=2), {"heads", "kv_heads"}),
        (Sizes(heads=4, kv_heads=2, ffn=76, width=44), {"heads", "kv_heads", "ffn", "width"}),
    ],
)
def test_units_that_do_nothing_go_and_nothing_changes(tmp_path, rows, tokens, name, sizes, units):
    if CONFIGS[name]["num_key_value_heads"] == 6 and sizes.heads:
        sizes = Sizes(heads=4, ffn=sizes.ffn, width=sizes.width)
    teacher = idle_teacher(name, tmp_path / "teacher")
    report = prune(teacher, tmp_path / "student", sizes, rows=rows)
    assert set(report["units"]) == units
    expected = theirs(teacher, tokens)
    equal(ours(tmp_path / "student", tokens), expected)
    equal(theirs(tmp_path / "student", tokens), expected)
    for name_of_unit in units - {"width", "kv_heads"}:
        assert report["units"][name_of_unit]["importance_kept"] == 1.0


def test_fewer_channels_do_not_make_epsilon_weigh_more(tmp_path, rows, tokens):
    teacher = idle_teacher("smollm2", tmp_path / "teacher", rms_norm_eps=0.5)
    prune(teacher, tmp_path / "student", Sizes(width=42), rows=rows)
    equal(theirs(tmp_path / "student", tokens), theirs(teacher, tokens))


def test_qwen2_shrinks_heads_and_width_together(tmp_path, rows, tokens):
    teacher = write_reference("qwen2.5-7b", tmp_path / "teacher")
    prune(teacher, tmp_path / "student", Sizes(kv_heads=1, width=24, ffn=70), rows=rows)
    student = from_pretrained(tmp_path / "student", dtype="fp32")
    assert student.layers[0].attn.q_proj.weight.shape == (24, 24)
    equal(ours(tmp_path / "student", tokens), theirs(tmp_path / "student", tokens), 1e-4)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_family_gets_shallower(tmp_path, rows, tokens, name):
    teacher = write_reference(name, tmp_path / "teacher")
    widest = Sizes(layers=2, ffn=50)
    report = prune(teacher, tmp_path / "student", widest, depth="influence", rows=rows)
    assert len(report["layers"]["kept"]) == load_layers(tmp_path / "student") == 2
    equal(ours(tmp_path / "student", tokens), theirs(tmp_path / "student", tokens), 1e-4)


def load_layers(folder):
    config = load_hf_config(folder)
    return config.get("n_layer") or config["num_hidden_layers"]


@pytest.mark.parametrize("name", ["smollm2", "gpt2", "qwen3-8b", "opt"])
def test_to_keep_everything_changes_nothing(tmp_path, rows, tokens, name):
    teacher = write_reference(name, tmp_path / "teacher")
    everything = Sizes(layers=3, heads=6, ffn=192 if name == "gpt2" else 80, width=48)
    report = prune(teacher, tmp_path / "student", everything, rows=rows)
    assert torch.equal(ours(tmp_path / "student", tokens), ours(teacher, tokens))
    assert (report["parameters"]["compression"], report["layers"]["how"]) == (1.0, "all")


def test_even_layers_are_those_of_cut_student(tmp_path, tokens):
    teacher = write_reference("smollm2", tmp_path / "teacher")
    prune(teacher, tmp_path / "student", Sizes(layers=2), depth="even")
    expected = cut_student(teacher, num_layers=2, dtype="fp32")(tokens)
    assert torch.equal(ours(tmp_path / "student", tokens), expected)


def test_whole_groups_go(tmp_path, rows):
    teacher = write_reference("smollm2", tmp_path / "teacher")
    report = prune(teacher, tmp_path / "student", Sizes(kv_heads=1), rows=rows)
    heads, groups = (report["units"][unit]["kept"] for unit in ("heads", "kv_heads"))
    for layer in ("0", "1", "2"):
        (group,) = groups[layer]
        assert heads[layer] == [3 * group, 3 * group + 1, 3 * group + 2]
    assert report["shape"]["student"]["heads"] == 3


def test_two_runs_give_the_same(tmp_path, rows):
    teacher = write_reference("smollm2", tmp_path / "teacher")
    sizes = Sizes(layers=2, kv_heads=1, ffn=33, width=30)
    reports = [prune(teacher, tmp_path / out, sizes, rows=rows) for out in ("first", "second")]
    assert reports[0] == reports[1]
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_weights_keep_their_dtype(tmp_path, rows):
    reference("smollm2").to(torch.bfloat16).save_pretrained(tmp_path / "teacher")
    prune(tmp_path / "teacher", tmp_path / "student", Sizes(layers=1, width=30), rows=rows)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_report_says_what_was_kept_and_saved(tmp_path, rows):
    teacher = write_reference("smollm2", tmp_path / "teacher")
    sizes = Sizes(layers=2, heads=4, ffn=33, width=40)
    report = prune(teacher, tmp_path / "student", sizes, rows=rows, notes={"seed": 3})
    assert json.loads((tmp_path / "student" / REPORT_FILE).read_text(encoding="utf-8")) == report
    student = from_pretrained(tmp_path / "student")
    assert report["parameters"]["student"] == sum(p.numel() for p in student.parameters())
    whole = from_pretrained(teacher)
    assert report["parameters"]["teacher"] == sum(p.numel() for p in whole.parameters())
    assert report["shape"]["student"] | {"head_dim": 8} == {
        **{"layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 33, "width": 40}
    }
    (gone,) = report["layers"]["dropped"]
    assert sorted([*report["layers"]["kept"], gone["layer"]]) == [0, 1, 2]
    assert gone["score"] > 0
    assert len(report["units"]["width"]["kept"]["all"]) == 40
    assert 0.5 < report["units"]["ffn"]["importance_kept"] < 1
    assert report["importance"]["rows"] == ["row-0", "row-1", "row-2"]
    assert len(report["importance"]["influence"]) == 3
    assert report["seed"] == 3
    text = "\n".join(lines(report))
    assert "layers kept (influence)" in text
    assert f"{report['parameters']['student']:,}" in text


def test_less_important_units_cost_less(tmp_path, rows, tokens):
    """Neurons kept by importance against those it would drop: the first are nearer the teacher."""
    teacher = write_reference("smollm2", tmp_path / "teacher")
    prune(teacher, tmp_path / "best", Sizes(ffn=60), rows=rows)
    expected = ours(teacher, tokens)
    error = (ours(tmp_path / "best", tokens) - expected).norm()
    model = from_pretrained(teacher, dtype="fp32")
    kept = json.loads((tmp_path / "best" / REPORT_FILE).read_text())["units"]["ffn"]["kept"]
    with torch.no_grad():
        for index, layer in enumerate(model.layers):
            layer.mlp.w2.weight[:, kept[str(index)][:20]] = 0
        assert error < (model(tokens) - expected).norm()


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("smollm2", Sizes(layers=4), "has layers 3: a student keeps 1 to 3, not 4"),
        ("smollm2", Sizes(ffn=0), "keeps 1 to 80, not 0"),
        ("smollm2", Sizes(heads=5), "multiple of kv heads.*ask for heads 2 or 4 or 6"),
        ("smollm2", Sizes(heads=6, kv_heads=1), "at most 3 for each"),
        ("smollm2", Sizes(heads=4, width=30), "width 30 and heads 4: ask for width 28"),
        ("qwen2.5-7b", Sizes(width=40), "ask for width 48"),
        ("gpt2", Sizes(width=40), "gpt2 family can be pruned in layers, ffn, not in width"),
        ("opt", Sizes(heads=3), "layers, ffn, not in heads"),
    ],
)
def test_impossible_sizes(tmp_path, rows, name, sizes, message):
    teacher = write_reference(name, tmp_path / "teacher")
    with pytest.raises(ValueError, match=message):
        prune(teacher, tmp_path / "student", sizes, rows=rows)
    assert not (tmp_path / "student").exists()


def test_impossible_calls(tmp_path, rows):
    teacher = write_reference("smollm2", tmp_path / "teacher")
    with pytest.raises(ValueError, match="pass rows, or choose layers by place"):
        prune(teacher, tmp_path / "student", Sizes(layers=2))
    with pytest.raises(ValueError, match=r"'even'.*got 'odd'"):
        prune(teacher, tmp_path / "student", Sizes(layers=2), depth="odd")
    (tmp_path / "student").mkdir()
    with pytest.raises(ValueError, match="student exists: choose another folder"):
        prune(teacher, tmp_path / "student", Sizes(layers=2), depth="even")
    config = json.loads((teacher / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (teacher / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"quantised weights.*take the bf16 or fp32 version"):
        prune(teacher, None, Sizes(layers=2), depth="even")


def test_all_tokens_choose_otherwise(tmp_path, rows):
    teacher = write_reference("smollm2", tmp_path / "teacher")
    agent = prune(teacher, None, Sizes(ffn=40), rows=rows)
    everything = prune(teacher, None, Sizes(ffn=40), rows=Rows(rows.rows, tokens="all"))
    assert agent["units"]["ffn"]["kept"] != everything["units"]["ffn"]["kept"]
