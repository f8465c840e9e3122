"""``sad doctor`` on the configs of published pairs (no weights here), and on mistakes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from sad_components.data.shipped import resolve_folder
from sad_components.doctor.checks import Doctor
from sad_components.doctor.command import main
from sad_components.doctor.config_file import read_config
from sad_components.models.families import hf_config_of
from sad_components.models.smollm2 import smollm2_135m
from sad_components.training import sharding

ROOT = Path(__file__).parents[2]
PAIRS = [p for p in ROOT.glob("configs/*/*_structured_kd*.yaml") if "builder:" in p.read_text()]
ADAPTED = [p for p in PAIRS if p.stem.endswith("_lora")]


def marks(config: str, *overrides: str, memory: float | None = None, processes: int = 1) -> dict:
    doctor = Doctor(read_config(config, overrides), memory and int(memory * 1e9), processes)
    return {check.name: check for check in doctor.checks()}


def processes_of(path) -> int:
    return 2 if path.stem.endswith("_distributed") else 1


@pytest.mark.parametrize("path", PAIRS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_pairs_on_the_meta_device(path, tmp_path, monkeypatch):
    """Both models, one vocabulary, an estimate, and the command that fetches what is missing."""
    monkeypatch.chdir(tmp_path)
    found = marks(str(path), memory=141, processes=processes_of(path))
    assert found["keys"].mark == found["vocabulary"].mark == found["memory"].mark == "ok"
    for name in ("teacher", "student"):
        assert found[name].figures["parameters"] > 1e8
        assert "is not there: run `" in found[name].lines[-1]
    whole = 2 * found["teacher"].figures["parameters"] / processes_of(path)
    assert found["memory"].figures["total"] > whole


@pytest.mark.parametrize("path", ADAPTED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_adapters_of_pairs(path, tmp_path, monkeypatch):
    """The student is the other config's, and only what is added to it has gradients and state."""
    monkeypatch.chdir(tmp_path)
    whole = path.with_name(path.name.replace("_lora", ""))
    plain, adapted, packed = (
        marks(str(p), *o, memory=141)
        for p, o in ((whole, ()), (path, ()), (path, ("student.quantize_base=true",)))
    )
    trained = adapted["student"].figures["trained"]
    added = [found["student"].figures["parameters"] for found in (adapted, plain)]
    assert trained == added[0] - added[1]
    assert adapted["memory"].figures["optimizer state"] == 2 * 2 * trained  # AdamW in bf16
    sizes = [found["memory"].figures["total"] for found in (plain, adapted, packed)]
    assert sizes == sorted(sizes, reverse=True)
    weights = [found["memory"].figures["student weights"] for found in (adapted, packed)]
    assert weights[1] < 0.55 * weights[0]


@pytest.mark.parametrize("path", PAIRS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_headers_of_pairs_say_what_a_user_must_know(path):
    header = path.read_text().partition("\noutput_dir:")[0]
    for said in (r"weights: .*(Licen[cs]e|Apache-2\.0)", r"Hardware: ", r"Memory: about \d+ GB"):
        assert re.search(said, header), said
    name = f"{path.parent.name}/{path.stem}"
    several = "--nproc_per_node 2 " if processes_of(path) == 2 else ""
    assert f"#   sad doctor {several}--config {name}\n" in header
    assert f"#   tune run {several}recipes/structured_kd.py --config {name}\n" in header


SPREAD = [p for p in PAIRS if p.stem.endswith("_distributed")]


def test_every_family_has_configs_for_several_gpus():
    assert {p.parent.name for p in SPREAD} == {p.parent.name for p in PAIRS}


@pytest.mark.parametrize("path", SPREAD, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_configs_for_several_gpus_differ_in_how_the_work_is_shared_alone(path):
    """Two processes read together the rows a step that one reads alone, and each needs less."""
    shared, alone = (OmegaConf.load(p) for p in (path, str(path).replace("_distributed", "")))
    different = {k for k in {*shared, *alone} if shared.get(k) != alone.get(k)}
    assert different <= {
        "output_dir",
        "gradient_accumulation_steps",
        *sharding.KEYS,
        "metric_logger",
    }
    rows = [cfg.batch_size * cfg.gradient_accumulation_steps for cfg in (shared, alone)]
    assert 2 * rows[0] == rows[1]
    figures = [
        marks(str(p), memory=141, processes=processes_of(p))["memory"].figures
        for p in (path, path.with_name(path.name.replace("_distributed", "")))
    ]
    for part in ("student weights", "teacher weights", "optimizer state"):
        assert 2 * figures[0][part] == pytest.approx(figures[1][part], rel=1e-6)
    assert figures[0]["total"] < figures[1]["total"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with what the other configs name, without weights: configs and tokenizers."""
    root = tmp_path_factory.mktemp("prepared")
    distil = OmegaConf.load(ROOT / "configs" / "household" / "distil_student.yaml")
    with torch.device("meta"):
        demo = hf_config_of(smollm2_135m())
    household = OmegaConf.to_container(distil.student.config)
    folders = {"demo/SmolLM2-135M-Instruct": demo, "runs/household/tokenizer": {}}
    folders |= {f"runs/household/{name}/student": household for name in ("teacher", "student")}
    rounded = {"quantization_config": {"quant_method": "sad_int4_groups", "name": "8da4w"}}
    quantized = ("runs/household/export/8da4w_eager", "runs/household/student_qat/quantized")
    folders |= dict.fromkeys(quantized, household | rounded)
    for name, config in folders.items():
        shutil.copytree(resolve_folder("shipped:household/tokenizer"), root / name)
        (root / name / "config.json").write_text(json.dumps(config))
    return root


OTHERS = [p for p in sorted(ROOT.glob("configs/*/*.yaml")) if p not in PAIRS]


@pytest.mark.parametrize("path", OTHERS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_other_config(path, prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    monkeypatch.delenv("HOUSEHOLD_RUN", raising=False)
    cfg = OmegaConf.load(path)
    few = [f"{key}.limit=2" for key in ("dataset", "heldout") if "source" in (cfg.get(key) or {})]
    found = marks(str(path), *few)
    assert found["keys"].mark == found["device"].mark == "ok"
    for name, check in found.items():
        if name.endswith(("student", "model", "teacher")):
            made_by_a_run = "CachedTeacher" in str(cfg.get(name))
            assert check.mark == ("fail" if made_by_a_run else "ok"), check.lines
    if "student" in found and "loss" in cfg:
        assert found["memory"].mark == "ok", found["memory"].lines


def test_a_config_that_is_ready(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--config", "tiny/structured_kd", "dataset.limit=4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    checks = {check["name"]: check for check in report["checks"]}
    assert 0.2 < checks["data"]["figures"]["supervised"] < 0.6
    assert checks["time"]["figures"]["seconds_per_epoch"] > 0


@pytest.mark.parametrize(
    ("override", "check", "message"),
    [
        ("batch_sise=2", "keys", "did you mean 'batch_size'"),
        ("student.config.vocab_size=300", "vocabulary", "student vocab 300 < tokenizer vocab"),
        ("tokenizer.path=demo/none", "tokenizer", "run `sad fetch-demo`"),
        ("transform.max_seq_len=4096", "student", "the model reads 2048 tokens"),
        ("fp8=e5m2", "device", "fp8 is null, tensorwise or rowwise; got 'e5m2'"),
    ],
)
def test_mistakes_fail_and_are_named(override, check, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = marks("tiny/structured_kd", "dataset.limit=2", "heldout=null", override)
    assert found[check].mark == "fail"
    assert message in " ".join(found[check].lines)


def test_a_models_own_tokenizer_and_template_are_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    distil = OmegaConf.load(ROOT / "configs" / "tiny" / "structured_kd.yaml")
    shutil.copytree(resolve_folder("shipped:household/tokenizer"), "teacher")
    config = OmegaConf.to_container(distil.teacher.config)
    Path("teacher/config.json").write_text(json.dumps(config))
    Path("teacher/chat_template.jinja").write_text("{{ messages }}")
    distil.teacher = {"_component_": "sad_components.models.from_pretrained", "path": "teacher"}
    distil.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    distil.transform.style, distil.dataset.limit, distil.heldout = "chat", 2, None
    OmegaConf.save(distil, "my.yaml")
    found = marks("my.yaml")
    assert found["tokenizer"].mark == "warn"
    assert "teacher has another chat template" in found["tokenizer"].lines[-1]
    assert found["vocabulary"].mark == "ok"

    tokenizer = json.loads(Path("teacher/tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    Path("teacher/tokenizer.json").write_text(json.dumps(tokenizer))
    found = marks("my.yaml")
    assert found["vocabulary"].mark == "fail"
    assert "teacher holds a tokenizer that gives a text other ids" in found["vocabulary"].lines[0]


def test_what_does_not_fit_fails_with_remedies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--config", "tiny/structured_kd", "dataset.limit=4", "--memory", "0.01"]) == 1
    printed = capsys.readouterr().out
    assert "would help: halve batch_size" in printed
    assert "would help: activation_checkpointing: true" in printed


def test_switches_make_the_estimate_smaller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ("dataset.limit=4", "heldout=null", "teacher.config.num_hidden_layers=24")
    plain = marks("tiny/structured_kd", *few)["memory"].figures
    for precision, share in {"bf16": 0.53, "fp8": 0.4, "int8": 0.4, "nf4": 0.25}.items():
        found = marks("tiny/structured_kd", *few, f"teacher_precision={precision}")
        assert found["memory"].figures["teacher weights"] <= share * plain["teacher weights"]
    again = marks("tiny/structured_kd", *few, "activation_checkpointing=true")["memory"].figures
    assert again["activations"] < plain["activations"] / 3


def test_what_would_help_names_the_switches_of_gpus(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pair = ROOT / "configs" / "gpt2" / "1.5B_to_760M_structured_kd_distributed.yaml"
    alone = ["--config", str(pair), "--memory", "0.5"]
    assert main(alone) == 1
    printed = capsys.readouterr().out
    for switch in ("two GPUs instead of one", "activation_offloading: true"):
        assert f"would help: {switch}" in printed
    assert "would help: teacher_precision: nf4" in printed
    assert main([*alone, "--nproc_per_node", "2"]) == 1
    assert "would help: fsdp_cpu_offload: true" in capsys.readouterr().out
    assert main([*alone, "--nproc_per_node", "2", "fsdp_cpu_offload=true"]) == 1
    printed = capsys.readouterr().out
    assert "would help: fsdp_cpu_offload" not in printed
    assert "student weights" not in printed
