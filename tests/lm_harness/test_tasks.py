"""The tasks through lm-eval itself: the same figures with ``hf`` and ``sad``, and as heldout.py."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from sad_components._lm_eval_plugin import TASKS
from sad_components.data import HFTokenizer, SpanTokenizer
from sad_components.data.shipped import resolve_source
from sad_components.evaluation.heldout import HeldoutEvaluator
from sad_components.lm_harness.metrics import (
    action_match,
    nats_per_token,
    reason_match,
    span_nll,
    token_perplexity,
)
from sad_components.models import from_pretrained
from sad_components.models.hidden import head_of, stop_at_hidden
from sad_components.trajectory import read_jsonl

OURS = ["sad_span_ppl", "sad_action_match", "sad_reason_f1"]
COUNT = 1


def evaluate(model: str, folder: Path, tasks: list, style: str, **more) -> dict:
    arguments = {"pretrained": str(folder), **more}
    metadata = {**arguments, "style": style, "max_trajectories": COUNT}
    return lm_eval.simple_evaluate(
        model=model,
        model_args=arguments,
        tasks=tasks,
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        log_samples=False,
        gen_kwargs={"max_gen_toks": 24},
        task_manager=TaskManager(
            include_path=str(TASKS), include_defaults=False, metadata=metadata
        ),
    )


def figures(results: dict, task: str) -> dict[str, float]:
    own = results["results"][task]
    named = {k.removesuffix(",none"): v for k, v in own.items() if "stderr" not in k}
    return {k: v for k, v in named.items() if isinstance(v, float)}


@pytest.fixture(scope="module", params=["plain", "chat"])
def runs(request, long_student) -> tuple[str, dict, dict]:
    """The style, and the results of ``hf`` and of ``sad``."""
    results = (evaluate(model, long_student, OURS, request.param) for model in ("hf", "sad"))
    return (request.param, *results)


@pytest.mark.parametrize("task", OURS)
def test_hf_and_sad_give_the_same_figures(runs, task):
    _, theirs, ours = (runs[0], figures(runs[1], task), figures(runs[2], task))
    assert set(ours) == set(theirs) and len(ours) >= 1  # noqa: PT018
    # Random weights nearly tie, so that rounding may turn a greedy text; likelihoods do not jump.
    written = task != "sad_span_ppl"
    for name, value in ours.items():
        close = pytest.approx(theirs[name], rel=1e-5, abs=0.25 if written else None)
        assert value == close, name


def test_span_perplexity_is_the_cross_entropy_of_heldout(runs, long_student):
    style, _, ours = runs
    transform = SpanTokenizer(HFTokenizer(str(long_student)), style=style)
    trajectories = list(read_jsonl(resolve_source("shipped:household/heldout")))[:COUNT]
    rows = [row for trajectory in trajectories for row in transform.rows(trajectory)]
    model = from_pretrained(long_student)
    evaluator = HeldoutEvaluator(rows, 0, transform.tokenizer.decode)
    scores = evaluator.score(stop_at_hidden(model), head_of(model)).to_dict()
    found = figures(ours, "sad_span_ppl")
    for kind in ("reason", "act"):
        assert found[f"{kind}_nll"] == pytest.approx(scores[f"ce_{kind}"], rel=1e-5)
        assert found[f"{kind}_ppl"] == pytest.approx(math.exp(scores[f"ce_{kind}"]), rel=1e-4)


def test_chat_template_is_refused(long_student):
    with pytest.raises(ValueError, match="takes no --apply_chat_template"):
        lm_eval.simple_evaluate(
            model="sad",
            model_args={"pretrained": str(long_student)},
            tasks=["sad_span_ppl"],
            device="cpu",
            apply_chat_template=True,
            task_manager=TaskManager(
                include_path=str(TASKS),
                include_defaults=False,
                metadata={"pretrained": str(long_student), "max_trajectories": 1},
            ),
        )


def test_command_line(long_student, tmp_path):
    """lm-eval's own command finds the model by its name, and the tasks by their folder."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "sad"),
            *("--model_args", f"pretrained={long_student}", "--device", "cpu"),
            *("--include_path", str(TASKS), "--tasks", "sad_span_ppl"),
            *("--metadata", json.dumps({"max_trajectories": 1, "style": "plain"})),
            *("--output_path", str(tmp_path / "out")),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "|reason_nll|" in done.stdout.replace(" ", "")
    (file,) = (tmp_path / "out").rglob("results_*.json")
    content = json.loads(file.read_text())
    assert content["config"]["model"] == "sad"
    assert content["config"]["model_kind"] == "torchtune"
    assert content["versions"] == {"sad_span_ppl": 1.0}


class TestMetrics:
    def test_spans_are_differences(self):
        doc = {"kinds": ["context", "reason", "act"], "tokens": [1, 4, 2]}
        found = span_nll(doc, [(-1.0, False), (-5.0, False), (-6.0, True)])
        assert found["reason_nll"] == found["reason_ppl"] == (4.0, 4)
        assert found["act_nll"] == (1.0, 2)

    def test_without_blanks_and_without_a_thought(self):
        found = span_nll({"kinds": ["act"], "tokens": [2]}, [(-3.0, False)])
        assert found["act_nll"] == (3.0, 2)
        assert found["reason_nll"] == (0.0, 0)

    def test_means_are_over_tokens(self):
        items = [(4.0, 4), (8.0, 2), (0.0, 0)]
        assert nats_per_token(items) == 2
        assert token_perplexity(items) == pytest.approx(math.exp(2))
        assert math.isnan(nats_per_token([(0.0, 0)]))

    @pytest.mark.parametrize(
        ("written", "matches"),
        [
            ("Action: go to drawer 2", 1.0),
            ("action:  Go  to drawer 2", 0.0),  # the marker is none
            ("Action:  Go  to drawer 2 ", 1.0),
            ("Action: go to drawer 12", 0.0),
            ("", 0.0),
        ],
    )
    def test_action(self, written, matches):
        doc = {"format": "react", "action": "Action: go to drawer 2"}
        assert action_match(doc, [written]) == {"action_match": matches}

    def test_action_of_a_format_without_markers(self):
        doc = {"format": "alfworld", "action": "go to drawer 2"}
        assert action_match(doc, ["Go to  drawer 2"]) == {"action_match": 1.0}

    def test_turn(self):
        doc = {
            "format": "react",
            "whole": "Thought: it is there\nAction: open desk",
            "acceptable": ["open desk", "open drawer"],
        }
        found = reason_match(doc, ["Thought: it may be  there\nAction: open drawer"])
        assert found["reason_f1"] == pytest.approx(2 * 2 / (3 + 4))
        assert (found["reason_match"], found["step_accuracy"], found["parsed"]) == (0, 1, 1)
        found = reason_match({**doc, "acceptable": []}, ["Thought: it  is there\nAction: run"])
        assert (found["reason_match"], found["step_accuracy"]) == (1, 0)
        assert reason_match(doc, ["Thought: hm"])["parsed"] == 0

    def test_what_comes_behind_the_first_action_does_not_count(self):
        doc = {"format": "react", "whole": "Thought: it is\nAction: run", "acceptable": []}
        once = "Thought: it is there\nAction: open drawer"
        for more in ("\nAction: open drawer", "\nThought: next\nAction: run", "\nThought: n"):
            assert reason_match(doc, [once + more]) == reason_match(doc, [once])


def test_every_task_file_is_versioned_and_in_the_changelog():
    log = (TASKS / "CHANGELOG.md").read_text()
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    assert set(OURS) <= set(manager.all_subtasks)
    for name in manager.all_subtasks:
        version = manager.task_index[name].cfg["metadata"]["version"]
        assert f"`{name}` {version}" in log, name
