"""The recipe with a curriculum, and with shuffled spans: order, resuming, ranks, scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load_module
from omegaconf import OmegaConf
from safetensors.torch import load_file

TINY = Path(__file__).parents[2] / "configs" / "tiny"
#: Eight steps of two rows: all rows are in from the fifth on.
SHORT = ("dataset.limit=8", "heldout=null", "batch_size=2", "epochs=2", "eval_every_n_steps=null")
CURRICULUM = "curriculum={start: 0.25, full_at: 0.5}"


def configured(*overrides: str, name: str = "structured_kd"):
    return OmegaConf.merge(
        OmegaConf.load(TINY / f"{name}.yaml"), OmegaConf.from_dotlist(list(overrides))
    )


def run(*overrides: str, name: str = "structured_kd", fails_after: int | None = None):
    """The recipe in this process; the recipe object, which notes the rows of each step."""
    cfg = configured(*overrides, name=name)
    recipe = load_module("recipes/structured_kd.py").StructuredKDRecipe(cfg)
    train_step, recipe.read = recipe.train_step, []

    def noting():
        if recipe.step == fails_after:
            raise InterruptedError("the power went")
        recipe.read.append(recipe.order.step_rows(recipe.step))
        return train_step()

    recipe.train_step = noting
    try:
        recipe.setup(cfg)
        recipe.train()
    finally:
        recipe.cleanup()
    return recipe


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "student" / "model.safetensors")


def metrics(folder: str) -> list[dict]:
    return [json.loads(x) for x in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def cache(*overrides: str) -> None:
    cfg = configured("dataset.limit=8", "heldout.limit=2", *overrides, name="cache_teacher")
    recipe = load_module("recipes/cache_teacher.py").CacheTeacherRecipe(cfg)
    recipe.setup(cfg)
    recipe.run()


def test_a_resumed_curriculum_goes_on_as_if_nothing_had_happened(capsys):
    whole = run(*SHORT, CURRICULUM, "output_dir=whole")
    assert "curriculum: complexity" in capsys.readouterr().out
    parts = (*SHORT, CURRICULUM, "output_dir=parts", "save_every_n_steps=3")
    with pytest.raises(InterruptedError):
        run(*parts, fails_after=4)
    with pytest.raises(ValueError, match="use the run's seed, dataset and curriculum"):
        run(*parts, "resume=true", "curriculum.start=0.5")
    with pytest.raises(ValueError, match=r"'steps': 8.* another .*'steps': 7"):
        run(*parts, "resume=true", "max_steps=7")
    resumed = run(*parts, "resume=true")
    assert resumed.read == whole.read[3:]
    one, other = weights("whole"), weights("parts")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [m["pool"] for m in metrics("parts")] == [m["pool"] for m in metrics("whole")]


def test_easy_rows_come_first_and_the_pool_is_logged():
    recipe = run(*SHORT, CURRICULUM)
    counts = [int(np.isin(row.span_ids, (1, 2)).sum()) for row in recipe.data.rows]
    assert sorted(recipe.read[0]) == sorted(np.argsort(counts, kind="stable")[:2].tolist())
    assert {row for rows in recipe.read for row in rows} == set(range(8))
    pools = [line["pool"] for line in metrics("runs/tiny")]
    assert pools == [2 / 8, 4 / 8, 5 / 8, 6 / 8, 1.0, 1.0, 1.0, 1.0]
    order = json.loads(Path("runs/tiny/summary.json").read_text())["order"]
    assert order["curriculum"]["start"] == 0.25
    assert order["pool"] == 1.0


def test_without_a_curriculum_nothing_changes(capsys):
    recipe = run(*SHORT, "max_steps=2", "curriculum=null")
    shuffled = np.random.default_rng([0, 0]).permutation(8)
    assert [sorted(rows) for rows in recipe.read] == [
        sorted(shuffled[:2].tolist()),
        sorted(shuffled[2:4].tolist()),
    ]
    assert "curriculum" not in capsys.readouterr().out
    assert all("pool" not in line for line in metrics("runs/tiny"))


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    sgd = "optimizer={_component_: torch.optim.SGD, lr: 1.0}"
    same = (*SHORT, CURRICULUM, "dtype=fp64", "lr_scheduler=null", "max_steps=3", sgd)
    run(*same, "output_dir=one")
    OmegaConf.save(configured(*same, "batch_size=1", "output_dir=two"), tmp_path / "two.yaml")
    command = [sys.executable, "-m", "torchtune._cli.tune", "run", "--nproc_per_node", "2"]
    command += ["recipes/structured_kd.py", "--config", "two.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = weights("one"), weights("two")
    for key, value in two.items():
        torch.testing.assert_close(value, one[key], atol=1e-10, rtol=1e-8, msg=key)


def test_entropy_is_taken_from_the_cache_or_its_file():
    hard = "curriculum={alpha: 0, beta: 0, gamma: 1, start: 0.25, full_at: 1.0}"
    with pytest.raises(ValueError, match=r"8 of 8 rows have none .*: run recipes/cache_teacher.py"):
        run(*SHORT, hard, "output_dir=live")
    cache()
    cached = run(*SHORT, hard, "max_steps=2", name="structured_kd_cached")
    known = json.loads(Path("runs/tiny_cache/entropy.json").read_text())
    expected = [known[row.id] for row in cached.data.rows]
    assert cached.order.complexities == pytest.approx(expected, rel=1e-12)
    assert sorted(cached.read[0]) == sorted(np.argsort(expected, kind="stable")[:2].tolist())
    file = "curriculum.entropy=runs/tiny_cache/entropy.json"
    by_file = run(*SHORT, hard, file, "max_steps=2", "output_dir=by_file")
    assert by_file.read == cached.read


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("curriculum.strat=0.3", "curriculum: Curriculum takes no 'strat' (did you mean 'start'?)"),
        ("curriculum.full_at=2", "curriculum.full_at is a number from 0 to 1; got 2"),
        ("curriculum=easy", "curriculum is a mapping of keys"),
        ("transform.shuffle_spans=-1", "shuffle_spans is a seed"),
    ],
)
def test_bad_settings_are_explained(override, message):
    with pytest.raises(ValueError) as caught:
        run(*SHORT, override)
    assert message in str(caught.value)


SCORED = ("dataset.limit=8", "heldout.limit=2", "max_steps=1", "eval_every_n_steps=null")


def test_scores_are_taken_on_real_spans_whatever_is_trained_on():
    real = run(*SCORED, "output_dir=real")
    shuffled = run(*SCORED, "transform.shuffle_spans=0", "output_dir=shuffled")
    assert shuffled.heldout["before"] == real.heldout["before"]
    assert shuffled.heldout["teacher"] == real.heldout["teacher"]
    for one, other in zip(real.heldout_rows, shuffled.heldout_rows):
        assert np.array_equal(one.span_ids, other.span_ids)
    for one, other in zip(real.data.rows, shuffled.data.rows):
        assert not np.array_equal(one.span_ids, other.span_ids)
        assert np.array_equal(np.bincount(one.span_ids), np.bincount(other.span_ids))
    assert metrics("shuffled")[1]["loss"] != metrics("real")[1]["loss"]


def test_a_cache_of_shuffled_spans_serves_the_same_training():
    cache("transform.shuffle_spans=0")
    with pytest.raises(ValueError, match="their tokens are there with other spans"):
        run(*SCORED, name="structured_kd_cached")
    recipe = run(
        *SCORED, "transform.shuffle_spans=0", "output_dir=again", name="structured_kd_cached"
    )
    assert recipe.step == 1
