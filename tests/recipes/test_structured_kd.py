"""The recipe on the tiny config: as users run it (``tune run``), and in process where faster."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loading import load_module
from omegaconf import OmegaConf
from recipe_runs import run_recipe
from safetensors.torch import load_file

from sad_components.data.shipped import resolve_folder

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny" / "structured_kd.yaml"
#: Few rows and no scores: what a test of the training step needs.
FAST = ("dataset.limit=8", "heldout=null", "max_steps=1", "clip_grad_norm=null")
#: Loss of the tiny config's first step (seed 0, torch 2.13, CPU), printed by that very run.
FIRST_LOSS = 0.0497536


def tune(*arguments: str, cwd: Path, config: str = "tiny/structured_kd", processes: int = 1):
    """``tune run recipes/structured_kd.py --config ..`` in ``cwd``; the finished process."""
    torchrun = ["--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, "-m", "torchtune._cli.tune", "run", *torchrun]
    command += ["recipes/structured_kd.py", "--config", config, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def tune_two(*overrides: str, cwd: Path) -> None:
    """The tiny config with ``overrides`` on two processes."""
    OmegaConf.save(configured(*overrides), cwd / "two.yaml")
    done = tune(cwd=cwd, config="two.yaml", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]


def configured(*overrides: str):
    return OmegaConf.merge(OmegaConf.load(TINY), OmegaConf.from_dotlist(list(overrides)))


def run(*overrides: str):
    """The recipe in this process, in the current folder; the recipe object afterwards."""
    return run_recipe(configured(*overrides))


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "student" / "model.safetensors")


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """One whole run of the tiny config: its folder and what it printed."""
    cwd = tmp_path_factory.mktemp("tiny")
    done = tune("seed=0", cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return cwd / "runs" / "tiny", done.stdout


def test_summary_has_scores_counts_speed_versions_and_config(tiny_run):
    folder, _ = tiny_run
    summary = json.loads((folder / "summary.json").read_text())
    for when in ("before", "after"):
        assert {"kl_reason", "kl_act", "ce", "action_match"} <= set(summary["heldout"][when])
    assert {"ce", "action_match", "entropy_reason", "entropy_act"} <= set(
        summary["heldout"]["teacher"]
    )
    assert (
        summary["heldout"]["after"]["kl_reason"] < 0.6 * summary["heldout"]["before"]["kl_reason"]
    )
    steps = [row["step"] for row in summary["heldout"]["after"]["kl_by_step"]]
    assert steps == list(range(1, len(steps) + 1))
    assert 0 < summary["parameters"]["student"] < summary["parameters"]["teacher"]
    assert summary["data"]["tokens"]["reason"] > 0
    speed = summary["throughput"]
    assert speed["tokens_per_s"] > speed["supervised_tokens_per_s"] > 0
    assert sum(speed["time_shares"].values()) == pytest.approx(1)
    assert speed["time_shares"]["teacher"] > 0
    assert summary["versions"]["torch"].startswith("2.13")
    assert summary["seed"] == 0
    assert summary["config"]["loss"]["normalize"] == "span"


def test_metrics_of_every_step_are_logged(tiny_run):
    folder, _ = tiny_run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 13))
    assert all(
        {"kl_reason", "kl_act", "tokens_per_s", "seconds_teacher", "lr"} <= set(x)
        for x in lines
        if "loss" in x
    )
    assert [x["step"] for x in lines if "heldout_kl_act" in x] == [0, 6, 12, 12]


def test_table_shows_before_after_and_teacher(tiny_run):
    _, printed = tiny_run
    for row in ("student before", "student after", "teacher"):
        assert row in printed
    assert "KL_reason" in printed
    assert "cut at a step boundary" in printed


def test_first_loss_is_pinned(tiny_run):
    folder, _ = tiny_run
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[1])
    assert first["loss"] == pytest.approx(FIRST_LOSS, rel=1e-4)


def test_student_loads_in_transformers_with_equal_logits(tiny_run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sad_components.models import from_pretrained

    folder, _ = tiny_run
    reference = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    tokens = tokenizer("Thought: look.\nAction: go to drawer 1\n", return_tensors="pt").input_ids
    ours = from_pretrained(folder / "student", dtype="fp32")
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), reference(tokens).logits, atol=1e-4, rtol=1e-4)
    assert reference.generate(tokens, max_new_tokens=3).shape[1] == tokens.shape[1] + 3


SGD = (
    *FAST,
    "dtype=fp64",
    "optimizer={_component_: torch.optim.SGD, lr: 1.0}",
    "lr_scheduler=null",
)


def test_gradient_does_not_depend_on_the_split(tmp_path):
    """8 rows at once, accumulated, packed, on 2 processes, ..: one SGD step, equal weights."""
    start = run(*SGD, "max_steps=0", "output_dir=start")
    assert start.step == 0
    run(*SGD, "batch_size=8", "output_dir=whole")
    run(*SGD, "batch_size=4", "gradient_accumulation_steps=2", "output_dir=accumulated")
    budget = ("max_tokens_per_batch=1500", "batch_size=8")
    run(*SGD, *budget, "output_dir=budget")
    run(*SGD, *budget, "packing=true", "output_dir=packed")
    tune_two(*SGD, "batch_size=4", "packing=true", "output_dir=ranks", cwd=tmp_path)
    before, whole = weights("start"), weights("whole")
    assert max((whole[k] - before[k]).abs().max() for k in whole) > 1e-5
    for name in ("accumulated", "budget", "packed", "ranks"):
        for key, value in weights(name).items():
            torch.testing.assert_close(
                value, whole[key], atol=1e-10, rtol=1e-8, msg=f"{name} {key}"
            )


def test_rank_without_rows_takes_part(tmp_path):
    """A step of one row on two processes: the second has none."""
    tune_two(*SGD, "dataset.limit=1", "output_dir=ranks", cwd=tmp_path)
    run(*SGD, "dataset.limit=1", "output_dir=one")
    one, ranks = weights("one"), weights("ranks")
    assert all(torch.allclose(one[k], ranks[k], atol=1e-10) for k in one)


def test_resumed_run_equals_the_uninterrupted_one(tmp_path, monkeypatch):
    common = ("dataset.limit=8", "heldout=null", "batch_size=2", "epochs=2")
    run(*common, "output_dir=whole")
    interrupted = (*common, "output_dir=parts", "save_every_n_steps=3")
    (tmp_path / "power.py").write_text(
        "class Cut:\n"
        "    def __init__(self, log_dir):\n        pass\n"
        "    def log_dict(self, payload, step):\n"
        "        if step == 5:\n            raise InterruptedError('the power went')\n"
        "    def close(self):\n        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InterruptedError):
        run(*interrupted, "metric_logger={_component_: power.Cut}")
    with pytest.raises(ValueError, match=r"'rows_per_step': 2.* another .*'rows_per_step': 4"):
        run(*interrupted, "resume=true", "batch_size=4")
    run(*interrupted, "resume=true")
    whole, parts = weights("whole"), weights("parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))


CE = "{divergence: null, ce: 1.0}"


def test_imitation_needs_no_teacher(tmp_path):
    run(*FAST, "teacher=null", f"loss.reason={CE}", f"loss.act={CE}")
    line = json.loads((tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text())
    assert line["loss"] == pytest.approx(line["ce_reason"] + line["ce_act"], rel=1e-4)


def test_compiled_run_gives_the_same_loss(tmp_path):
    losses = []
    for compiled in ("false", "true"):
        run(*FAST, "dataset.limit=4", f"compile={compiled}", f"output_dir=compile_{compiled}")
        losses.append(
            json.loads((tmp_path / f"compile_{compiled}" / "metrics.jsonl").read_text())["loss"]
        )
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optimiser=1",), "did you mean 'optimizer'?"),
        (("optimizer.learning_rate=1",), "optimizer: torch.optim.AdamW takes no 'learning_rate'"),
        (("student._component_=sad_components.models.from_scrap",), "did you mean 'from_scratch'?"),
        (("loss._component_=nowhere.Loss",), "does not import: no module 'nowhere'"),
        (("loss.reason.temprature=2",), "no field temprature (did you mean 'temperature'?)"),
        (("transform.max_seq_length=9",), "did you mean 'max_seq_len'?"),
        (("dataset.sorce=x",), "dataset: TrajectoryDataset takes no 'sorce'"),
        (("teacher=null",), "teacher is null"),
        (("student.config.vocab_size=500",), "student vocab 500 < tokenizer vocab 512"),
        (("dataset.source=missing.jsonl",), "no trajectory file 'missing.jsonl'"),
        (("dataset.source=bad.jsonl",), "bad.jsonl:2: every line is one JSON object"),
        (("dataset.source=empty.jsonl",), "the file is empty"),
        (("transform.max_seq_len=40",), "no row can be learnt from"),
        (("dtype=fp8",), "dtype is auto"),
        (
            ("teacher={_component_: sad_components.models.from_pretrained, path: other}",),
            "other holds a tokenizer that gives a text other ids",
        ),
        (("resume=true",), "needs a checkpoint"),
        (("batch_size=two",), "batch_size must be an integer >= 1; got 'two'"),
        (("seed=null",), "seed must be an integer >= 0; got None"),
        (("save_every_n_steps=-1",), "save_every_n_steps must be an integer >= 0; got -1"),
        (("loss=null",), "the config needs these keys: loss"),
    ],
)
def test_bad_input_is_explained(tmp_path, overrides, message):
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}\n{oops\n')
    (tmp_path / "empty.jsonl").write_text("")
    shutil.copytree(resolve_folder("shipped:household/tokenizer"), tmp_path / "other")
    content = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    content["model"]["merges"] = []
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises((ValueError, OSError)) as caught:
        run(*FAST, *overrides)
    assert message in str(caught.value)


def test_command_line_prints_errors_without_a_traceback(tmp_path):
    done = tune("optimiser=1", cwd=tmp_path)
    assert done.returncode != 0
    assert "structured_kd: error: nobody reads these keys" in done.stderr
    assert "Traceback" not in done.stderr


def test_full_disk_while_training_is_explained(tmp_path, monkeypatch):
    (tmp_path / "full.py").write_text(
        "class Full:\n"
        "    def log_dict(self, payload, step):\n"
        "        raise OSError(28, 'No space left on device')\n"
        "    def close(self):\n        pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    cfg = configured(*FAST)
    cfg.metric_logger = {"_component_": "full.Full"}
    OmegaConf.save(cfg, tmp_path / "full.yaml")
    done = tune(cwd=tmp_path, config="full.yaml")
    assert done.returncode != 0
    assert "structured_kd: error: [Errno 28] No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_student_that_could_not_be_saved_is_refused_at_start():
    cfg = configured(*FAST)
    cfg.student = {
        "_component_": "torchtune.models.gemma.gemma",
        **{"vocab_size": 512, "num_layers": 1, "num_heads": 2, "head_dim": 8, "num_kv_heads": 1},
        **{"embed_dim": 16, "intermediate_dim": 32, "max_seq_len": 1024},
    }
    with pytest.raises(ValueError, match="none of the families"):
        load_module("recipes/structured_kd.py").StructuredKDRecipe(cfg).setup(cfg)


def test_output_dir_of_another_run_is_refused():
    run(*FAST)
    with pytest.raises(ValueError, match=r"holds another run .*resume: true"):
        run(*FAST)


TRAININGS = sorted(ROOT.glob("configs/smollm2/135M_to_15layers_*.yaml"))
BASELINES = [p for p in TRAININGS if not p.stem.endswith(("_cached", "_export"))]


#: What these change instead of the loss.
ABLATED = {
    "135M_to_15layers_random_spans": "transform",
    "135M_to_15layers_curriculum": "curriculum",
    "135M_to_15layers_structured_kd_lora": "student",
    "135M_to_15layers_structured_kd_qat": "qat",
}


@pytest.mark.parametrize("path", BASELINES, ids=lambda p: p.stem)
def test_baselines_differ_from_structured_kd_in_one_key(path):
    main = OmegaConf.load(ROOT / "configs/smollm2/135M_to_15layers_structured_kd.yaml")
    other = OmegaConf.load(path)
    assert other.output_dir == f"runs/{path.stem}"
    changed = ABLATED.get(path.stem, "loss")
    assert path.stem.endswith("structured_kd") or other[changed] != main.get(changed)
    for key in {*main, *other} - {changed, "output_dir", "metric_logger"}:
        assert other.get(key) == main.get(key), key
