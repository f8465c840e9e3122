"""A tiny student with a tokenizer, and exports of it: what the tests of exports share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sad_components.data import HFTokenizer, SpanTokenizer
from sad_components.data.shipped import resolve_folder, resolve_source
from sad_components.export.requirements import executorch_problems
from sad_components.export.variants import Variant
from sad_components.export.writer import Facts
from sad_components.models import from_scratch, save_student
from sad_components.trajectory import Trajectory, read_jsonl

needs_executorch = pytest.mark.skipif(
    bool(executorch_problems()), reason="executorch not installed"
)
QUANTISED = Variant("8da4w", group_size=32, head="8da8w", embedding="int8")
TOKENIZER = "shipped:household/tokenizer"
STUDENT = {
    **{"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"max_position_embeddings": 256, "tie_word_embeddings": True},
}


def write_student(folder: Path, **changes: Any) -> Path:
    """A random student; its logits are large enough that greedy choices are clear."""
    model = from_scratch({**STUDENT, **changes}, seed=5, std=None)
    return save_student(model, folder, resolve_folder(TOKENIZER))


def transcripts(count: int) -> list[Trajectory]:
    """The first of the shipped held-out trajectories."""
    found = read_jsonl(resolve_source("shipped:household/heldout"))
    return [next(found) for _ in range(count)]


def facts(student: Path, style: str = "plain") -> Facts:
    """As the recipe finds them."""
    transform = SpanTokenizer(HFTokenizer(str(student)), style=style)
    eos = transform.tokenizer.eos_id
    return Facts(student, transform, "react", () if eos is None else (eos,))
