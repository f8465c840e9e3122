"""Folders as the recipes leave them, written by hand for the tests of `sad report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TASK_TYPES = ("pick", "heat")


def json_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def training_run(folder: Path, **summary: Any) -> Path:
    """Three steps with a score before and after."""
    row = {"lr": 0.1, "kl_reason": 3.0, "kl_act": 2.0, "ce_act": 1.0, "tokens_per_s": 50.0}
    rows: list[dict] = [{"step": 0, "heldout_kl_reason": 9.0, "heldout_action_match": 0.0}]
    rows += [{"step": n, "loss": 5.0 / n, **row} for n in (1, 2, 3)]
    rows.append({"step": 3, "heldout_kl_reason": 1.5, "heldout_action_match": 0.25})
    json_lines(folder / "metrics.jsonl", rows)
    by_step = [{"step": n, "reason": 1.0 * n, "act": 0.5, "tokens": 9} for n in (1, 2)]
    scores = {"kl_reason": 1.5, "kl_act": 0.75, "action_match": 0.25, "actions": 8}
    content = {
        "heldout": {
            "before": {"kl_reason": 9.0, "action_match": 0.0},
            "after": {**scores, "kl_by_step": by_step, "step": 3},
            "teacher": {"ce_act": 0.5, "action_match": 0.5, "entropy_act": 0.125},
        },
        "data": {"kept": 40, "tokens": {"reason": 900, "act": 300}},
        "steps": 3,
        "parameters": {"student": 1000, "teacher": 4000},
        "throughput": {"tokens_per_s": 50.0, "train_seconds": 12.0},
        "seed": 7,
        "dtype": "float32",
        "versions": {"torch": "2.13.0"},
        "finished": "2026-01-02T03:04:05Z",
    }
    (folder / "summary.json").write_text(json.dumps(content | summary))
    return folder


def episode(task: str, won: bool, actions: list[str], task_type: str = "pick") -> dict[str, Any]:
    """A line of episodes.jsonl."""
    return {
        "id": f"room-{task}",
        "task": task,
        "seed": 0,
        "task_type": task_type,
        "won": won,
        "steps": len(actions),
        "actions": actions,
        "failure": None,
    }


def transcript(task: str, actions: list[str], observation: str = "You see a cup.") -> dict:
    """The record of such an episode."""
    messages = [{"role": "user", "content": f"Your task is to: {task}."}]
    for action in actions:
        said = f"Thought: I will {action}.\nAction: {action}"
        messages.append({"role": "assistant", "content": said})
        messages.append({"role": "user", "content": observation})
    return {"id": f"room-{task}", "task": task, "format": "react", "messages": messages}


def policy_figures(episodes: list[dict], **more: Any) -> dict[str, Any]:
    """What results.json says of a policy that played these."""

    def rate(own: list[dict]) -> dict:
        return {"won": sum(e["won"] for e in own), "episodes": len(own)}

    types = {e["task_type"] for e in episodes}
    return {
        "success": rate(episodes),
        "by_task_type": {t: rate([e for e in episodes if e["task_type"] == t]) for t in types},
        "steps": sum(e["steps"] for e in episodes) / len(episodes),
        "reasoning_length": 4.5,
        "reasoning_unit": "tokens",
        "thoughts": 2.0,
        "seconds_per_step": 0.25,
        "tokens_per_s": 0.0,
        "failed": {},
        **more,
    }


def evaluation_run(folder: Path, policies: dict[str, tuple[list[dict], dict]]) -> Path:
    """Policy name -> its episodes and further figures; transcripts are made of the actions."""
    figures = {}
    for name, (episodes, more) in policies.items():
        figures[name] = policy_figures(episodes, **more)
        json_lines(folder / name / "episodes.jsonl", episodes)
        records = [transcript(e["task"], e["actions"]) for e in episodes]
        json_lines(folder / name / "trajectories.jsonl", records)
    results = {"environment": {"name": "rooms"}, "policies": figures, "comparisons": []}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def teacher_and_student(folder: Path) -> Path:
    """Four tasks: the student loses one that the teacher wins, at step 2."""
    teacher = [
        episode("a", True, ["go", "take", "put"]),
        episode("b", True, ["go", "take"]),
        episode("c", True, ["go"], "heat"),
        episode("d", False, ["go"], "heat"),
    ]
    student = [
        episode("a", True, ["go", "take", "put"]),
        episode("b", False, ["go", "wander", "wander"]),
        episode("c", True, ["go"], "heat"),
        episode("d", False, ["stay"], "heat"),
    ]
    return evaluation_run(
        folder,
        {
            "teacher": (teacher, {"parameters": 4000}),
            "student": (student, {"parameters": 1000}),
        },
    )
