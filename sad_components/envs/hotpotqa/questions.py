"""Questions with their paragraphs, from JSONL or from a ``datasets`` split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sad_components.trajectory import iter_json_lines

SHIPPED = "shipped"
#: ``datasets:<name or folder>[:<config>[:<split>]]``
FROM_DATASETS = "datasets:"


@dataclass(frozen=True)
class Question:
    """A question and where its answer is found.

    Args:
        id: unique.
        question: in words.
        answer: the gold answer.
        kind: ``bridge`` or ``comparison``; empty if not known.
        paragraphs: title -> its sentences, in order.
        supporting: titles of the paragraphs that the answer needs, in order.
    """

    id: str
    question: str
    answer: str
    kind: str
    paragraphs: Mapping[str, tuple[str, ...]]
    supporting: tuple[str, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Question:
        """From the official JSON's shape (pairs) or from that of ``datasets`` (columns).

        Raises:
            ValueError: no question, answer or context, or a paragraph that is none.
        """
        missing = [key for key in ("question", "answer", "context") if not row.get(key)]
        if missing:
            raise ValueError(f"a question has question, answer and context; no {missing[0]!r} here")
        context, facts = row["context"], row.get("supporting_facts") or []
        if isinstance(context, Mapping):
            context = list(zip(context["title"], context["sentences"]))
        if isinstance(facts, Mapping):
            facts = list(zip(facts["title"], facts["sent_id"]))
        try:
            paragraphs = {str(title): tuple(map(str, sentences)) for title, sentences in context}
        except (TypeError, ValueError):
            raise ValueError("context is a list of [title, sentences] pairs") from None
        return cls(
            id=str(row.get("id") or row.get("_id")),
            question=row["question"],
            answer=row["answer"],
            kind=row.get("type") or "",
            paragraphs=paragraphs,
            supporting=tuple(dict.fromkeys(title for title, _ in facts)),
        )


def load_questions(source: str | Path = SHIPPED) -> list[Question]:
    """All questions of a source.

    Args:
        source: path of a JSONL file; ``shipped`` (12 questions by this project); or
            ``datasets:hotpot_qa:distractor:validation``, a name or folder that ``datasets`` loads.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a row that is no question (its number is named), two with one id, or none.
    """
    questions: dict[str, Question] = {}
    for number, row in _rows(str(source)):
        try:
            question = Question.from_row(row)
        except ValueError as error:
            raise ValueError(f"{source}:{number}: {error}") from None
        if question.id in questions:
            raise ValueError(f"{source}:{number}: a second question with the id {question.id!r}")
        questions[question.id] = question
    if not questions:
        raise ValueError(f"{source} holds no question")
    return list(questions.values())


def _rows(source: str) -> Iterable[tuple[int, Any]]:
    if source == SHIPPED:
        return iter_json_lines(str(files(__package__) / "questions.jsonl"))
    if not source.startswith(FROM_DATASETS):
        return iter_json_lines(Path(source).expanduser())
    from datasets import load_dataset

    name, *rest = source.removeprefix(FROM_DATASETS).split(":")
    config = rest[0] if rest else None
    split = rest[1] if len(rest) > 1 else "validation"
    return enumerate(load_dataset(name, config or None, split=split), start=1)
