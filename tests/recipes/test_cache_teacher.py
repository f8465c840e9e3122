"""The cache recipe on its tiny config, and training from what it wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loading import load_module
from omegaconf import OmegaConf
from recipe_runs import run_recipe
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny"
SMOLLM2 = ROOT / "configs" / "smollm2"
FEW = ("dataset.limit=8", "heldout.limit=3")


def configured(name: str, *overrides: str):
    return OmegaConf.merge(
        OmegaConf.load(TINY / f"{name}.yaml"), OmegaConf.from_dotlist(list(overrides))
    )


def cache(*overrides: str) -> Path:
    """The cache recipe in this process; the folder it wrote."""
    cfg = configured("cache_teacher", *FEW, *overrides)
    recipe = load_module("recipes/cache_teacher.py").CacheTeacherRecipe(cfg)
    recipe.setup(cfg)
    recipe.run()
    return Path(cfg.output_dir)


def train(name: str, *overrides: str):
    """structured_kd in this process; its summary and the student's weights."""
    cfg = configured(name, *FEW, "max_steps=3", "eval_every_n_steps=null", *overrides)
    run_recipe(cfg)
    folder = Path(cfg.output_dir)
    summary = json.loads((folder / "summary.json").read_text())
    return summary, load_file(folder / "student" / "model.safetensors")


def contents(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and p.name != "report.json")
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def test_training_from_hidden_states_is_training_beside_the_teacher(capsys):
    """One row a batch: the same bits, in the students and in every held-out figure."""
    same = ("batch_size=1", "loss.act.divergence=reverse_kl", "loss.reason.temperature=2")
    cache("cache.mode=hidden", "batch_size=1")
    assert "bias: none, hidden states are exact" in capsys.readouterr().out
    live, expected = train("structured_kd", *same, "eval_batch_size=1")
    cached, found = train("structured_kd_cached", *same, "eval_batch_size=1")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert cached["heldout"] == live["heldout"]


def test_training_from_top_tokens_learns_and_says_what_kl_means(capsys):
    folder = cache("cache.temperatures=[2.0]")
    printed = capsys.readouterr().out
    report = json.loads((folder / "report.json").read_text())
    assert report["rows"] == 11
    assert report["bytes_per_token"] < 110
    assert f"{report['bytes_per_token']:.1f} bytes per token" in printed
    assert {r["temperature"] for r in report["bias"]} == {1.0, 2.0}
    assert set(json.loads((folder / "entropy.json").read_text()).values()) != set()
    summary, _ = train("structured_kd_cached", "loss.act.temperature=2", "max_steps=6")
    printed = capsys.readouterr().out
    assert "KL and teacher entropy are taken over 65 buckets of a cached teacher" in printed
    before, after = summary["heldout"]["before"], summary["heldout"]["after"]
    assert after["kl_act"] < before["kl_act"]
    assert summary["heldout"]["teacher"]["entropy_act"] > 0


def test_draws_train_with_forward_kl_only():
    cache("cache.mode=sampled")
    with pytest.raises(ValueError, match=r"mode sampled.*loss.act asks for jsd: mode topk"):
        train("structured_kd_cached", "loss.act.divergence=jsd")
    train("structured_kd_cached", "output_dir=again")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("loss.act.temperature=3",), "loss.act asks for 3:"),
        (("transform.style=chat",), r"other data: 8 of 8 rows"),
        (("dataset.limit=9",), r"other data: 1 of 9 rows"),
        (("teacher.verify=never",), "verify is full, lazy or off"),
        (("teacher.path=nowhere",), "no teacher cache in nowhere"),
        (("loss.observation={}",), "no tokens of the span kinds observation"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused_at_start(
    tmp_path_factory, monkeypatch, overrides, message
):
    folder = tmp_path_factory.getbasetemp() / "shared_cache"
    if not (folder / "manifest.json").is_file():
        cache(f"output_dir={folder}")
    with pytest.raises(ValueError, match=message):
        train("structured_kd_cached", f"teacher.path={folder}", *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("cache.mode=dense",), "mode is one of topk, sampled, hidden"),
        (("cache.top=3",), "nobody reads these keys of cache: 'top'"),
        (("cache.k=512",), "k must lie between 1 and 511"),
        (("cache.supervise=[thought]",), "a span kind is one of"),
        (("cache.rows_per_shard=0",), "a shard holds at least one row"),
    ],
)
def test_bad_settings_are_explained(overrides, message):
    with pytest.raises(ValueError, match=message):
        cache(*overrides)


def test_two_processes_write_what_one_writes(tmp_path):
    whole = cache("output_dir=whole")
    command = [sys.executable, "-m", "torchtune._cli.tune", "run", "--nproc_per_node", "2"]
    command += ["recipes/cache_teacher.py", "--config", "tiny/cache_teacher", *FEW]
    done = subprocess.run(
        [*command, "output_dir=two"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "two") == contents(whole)


@pytest.mark.slow
def test_ten_kills_of_the_recipe_leave_the_same_cache(tmp_path):
    kill_cache = load_module("benchmarks/kill_cache.py")
    overrides = ["cache.rows_per_shard=1", "student=null"]
    assert len(kill_cache.check(10, "tiny/cache_teacher", overrides, 0, tmp_path)) == 10


@pytest.mark.parametrize("folder", [TINY, SMOLLM2], ids=lambda p: p.name)
def test_cached_configs_differ_from_live_ones_in_the_teacher_alone(folder):
    name = "structured_kd" if folder is TINY else "135M_to_15layers_structured_kd"
    live, cached = (OmegaConf.load(folder / f"{n}.yaml") for n in (name, name + "_cached"))
    different = ("teacher", "output_dir", "metric_logger")
    assert [k for k in live if k not in different and live[k] != cached[k]] == []
    assert set(live) == set(cached)
    cache_name = "cache_teacher" if folder is TINY else "135M_cache_teacher"
    caching = OmegaConf.load(folder / f"{cache_name}.yaml")
    for key in ("tokenizer", "transform", "dataset", "heldout", "teacher", "student"):
        assert caching[key] == live[key], key
    assert cached.teacher.path == caching.output_dir


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("transform.max_seq_length=9",), "did you mean 'max_seq_len'?"),
        (("dataset.sorce=x",), "dataset: TrajectoryDataset takes no 'sorce'"),
        (("cache.mode=null",), "cache needs these keys: mode"),
        (("output_dir=null",), "needs these keys: output_dir"),
    ],
)
def test_bad_config_is_explained(overrides, message):
    with pytest.raises(ValueError) as caught:
        cache(*overrides)
    assert message in str(caught.value)
