"""Trajectories as documents of lm-eval's tasks: one document for each turn that is learnt.

A document's texts are what the model saw in training and sees while it plays: the transcript
rendered by :class:`~sad_components.data.SpanTokenizer`, with the tokenizer of the model under test.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoTokenizer

from sad_components.data import HFTokenizer, SpanTokenizer
from sad_components.data.rendering import Rendered
from sad_components.data.shipped import resolve_folder, resolve_source
from sad_components.data.transform import align
from sad_components.export.model_card import transform_options
from sad_components.formats import get_format
from sad_components.formats.base import Dialect
from sad_components.lm_harness.students import load_tokenizer
from sad_components.spans import AGENT_KINDS, SpanKind
from sad_components.trajectory import Trajectory, iter_json_lines, read_jsonl

_QUESTIONS = Path(__file__).parent / "tasks" / "common_sense.jsonl"
_log = logging.getLogger("lm_eval")


@dataclass
class Turn:
    """One learnt turn of a trajectory, as text.

    Args:
        trajectory: its id.
        turn: index of the turn's message.
        format: name of the transcript format.
        context: everything before the turn.
        before_action: the context and what of the turn comes before its first action.
        action: the first action with its marker, without what ends it; empty without one.
        whole: the whole turn without what ends it.
        action_until: texts that end an action.
        until: texts that end a turn.
        start: the context without its last blanks: behind it lie the continuations.
        continuations: the blanks (where there are some), then these and the turn up to the end of
            its first span, then up to the end of its second, .. : each begins with the one before.
        kinds: what each continuation adds to the one before: ``context`` (the blanks), ``reason``
            or ``act``.
        tokens: how many tokens each adds.
        acceptable: actions that are right in this state; empty where the record does not say.
        index: 0 (lm-eval wants a target).
    """

    trajectory: str
    turn: int
    format: str
    context: str
    before_action: str
    action: str
    whole: str
    action_until: list[str]
    until: list[str]
    start: str
    continuations: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    acceptable: list[str] = field(default_factory=list)
    index: int = 0


def turns(
    trajectories: str = "shipped:household/heldout",
    max_trajectories: int | None = None,
    tokenizer: str | None = None,
    pretrained: str | None = None,
    style: str | None = None,
    format: str = "auto",
    needs: SpanKind | None = None,
    **_: Any,
) -> dict[str, datasets.Dataset]:
    """The documents, under the split ``test``; lm-eval calls this (``custom_dataset``).

    Args:
        trajectories: canonical JSONL, or a shipped file.
        max_trajectories: how many of them; None: all.
        tokenizer: folder of the model's tokenizer; None: ``pretrained``.
        pretrained: folder of the model.
        style: ``chat`` or ``plain``, as the model was trained; None: what the model's card says,
            else ``chat``.
        format: transcript format by name; ``auto`` asks each record.
        needs: only turns with such a span; None: all.

    Raises:
        FileNotFoundError: no such file, or no tokenizer in the folder.
        ValueError: no folder of a tokenizer, no learnt turn, or records that are no trajectories.
    """
    folder = tokenizer or pretrained
    if folder is None:
        raise ValueError(
            "this task renders trajectories with the model's tokenizer: name its folder with "
            "--model_args pretrained=DIR or tokenizer=DIR, or with "
            '--metadata \'{"tokenizer": "DIR"}\''
        )
    options = {**transform_options(pretrained or folder, style), "on_rewrite": "per_turn"}
    transform = SpanTokenizer(HFTokenizer(folder), **options)
    source = resolve_source(trajectories)
    records = itertools.islice(read_jsonl(source), max_trajectories)
    found = [turn for record in records for turn in turns_of(record, transform, format)]
    kept = [turn for turn in found if needs is None or needs.label in turn.kinds]
    if not kept:
        spans = "" if needs is None else f" with {needs.label} spans"
        raise ValueError(
            f"the task needs learnt turns{spans} (weight other than 0); {source} has none in its "
            f"first {max_trajectories or 'all'} trajectories: name another file with "
            '--metadata \'{"trajectories": "FILE"}\''
        )
    _report_seams(kept, folder)
    return {"test": datasets.Dataset.from_list([asdict(turn) for turn in kept])}


def acting_turns(**options: Any) -> dict[str, datasets.Dataset]:
    """:func:`turns` that have an action."""
    return turns(**{**options, "needs": SpanKind.ACT})


def thinking_turns(**options: Any) -> dict[str, datasets.Dataset]:
    """:func:`turns` that have a thought."""
    return turns(**{**options, "needs": SpanKind.REASON})


def questions(questions: str | None = None, **_: Any) -> dict[str, datasets.Dataset]:
    """Multiple-choice questions in ARC's format, under the split ``test``.

    Args:
        questions: JSONL with ``question``, ``choices`` (``text`` and ``label``) and ``answerKey``;
            None: this project's own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is no such question.
    """
    path = _QUESTIONS if questions is None else Path(questions).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file of questions {str(path)!r} (looked in {Path.cwd()})")
    rows = []
    for number, row in iter_json_lines(path):
        try:
            choices = row["choices"]
            texts, labels = list(choices["text"]), list(choices["label"])
            known = {"question": row["question"], "answerKey": row["answerKey"]}
            if row["answerKey"] not in labels or len(texts) != len(labels):
                raise KeyError("answerKey")
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"{path}:{number}: a question has question, choices (text and label, equally "
                f"long) and an answerKey among the labels, as in ARC; wrong here: {error}"
            ) from None
        rows.append({**known, "choices": {"text": texts, "label": labels}})
    return {"test": datasets.Dataset.from_list(rows)}


def turns_of(record: Trajectory, transform: SpanTokenizer, format: str = "auto") -> Iterator[Turn]:
    """The learnt turns of a trajectory.

    Args:
        record: a trajectory of chat turns.
        transform: tokenizer and style.
        format: its format; ``auto``: what the record says, else what is detected.
    """
    named = record.format if format == "auto" else format
    row = {**record.to_dict(), **({"format": named} if named else {})}
    trajectory = transform.trajectory(row)
    for index, message in enumerate(trajectory.messages):
        if message.role != "assistant" or not message.is_learnt:
            continue
        history = Trajectory(
            trajectory.messages[: index + 1], format=trajectory.format, meta=trajectory.meta
        )
        turn = _turn(history, transform)
        if turn is not None:
            turn.trajectory, turn.acceptable = record.id, list(message.acceptable or [])
            yield turn


@dataclass
class _Piece:
    """Tokens of a turn that are of one kind, and the characters [start, end) that they cover."""

    kind: SpanKind
    start: int
    end: int
    tokens: int = 1


def _turn(history: Trajectory, transform: SpanTokenizer) -> Turn | None:
    """The last message's turn; None where the agent generates nothing of it."""
    rendered = transform.render(history)[-1]
    pieces, blanks = _pieces(rendered, transform)
    if not pieces:
        return None
    text, begin, end = rendered.text, pieces[0].start, pieces[-1].end
    bos = _bos_text(transform)
    context = bos + text[:begin]
    start = context.rstrip()
    dialect = get_format(history.format or "").dialect
    ending = _ending(text[begin:end], transform, dialect)
    action_at = next((p.start for p in pieces if p.kind is SpanKind.ACT), end)
    action_end = next((p.end for p in pieces if p.kind is SpanKind.ACT), end)
    turn = Turn(
        trajectory=history.id,
        turn=len(history.messages) - 1,
        format=history.format or "",
        context=context,
        before_action=bos + text[:action_at],
        action=text[action_at:action_end].removesuffix(ending),
        whole=text[begin:end].removesuffix(ending),
        action_until=[],
        until=[],
        start=start,
    )
    turn.action_until = _unless_inside(turn.action, [ending, "\n"])
    turn.until = _unless_inside(turn.whole, [ending, "\n", *_after_a_turn(dialect)])
    so_far = context[len(start) :]
    if so_far:
        turn.continuations, turn.kinds, turn.tokens = [so_far], ["context"], [blanks]
    for piece in pieces:
        so_far += text[piece.start : piece.end]
        turn.continuations.append(so_far)
        turn.kinds.append(piece.kind.label)
        turn.tokens.append(piece.tokens)
    return turn


def _pieces(rendered: Rendered, transform: SpanTokenizer) -> tuple[list[_Piece], int]:
    """The last turn's pieces, cut between tokens, and how many tokens are blanks before it.

    A token that straddles a boundary lies whole in the piece that has it by the rule of training.
    """
    ids, offsets = transform.tokenizer.encode_arrays(rendered.text, rendered.literal)
    row = align(rendered, ids, offsets)
    is_agent = [kind in AGENT_KINDS for kind in map(SpanKind, row.span_ids.tolist())]
    last = len(is_agent) - 1
    while last >= 0 and not is_agent[last]:
        last -= 1
    first = last
    while first > 0 and is_agent[first - 1]:
        first -= 1
    if last < 0:
        return [], 0
    pieces: list[_Piece] = []
    for token in range(first, last + 1):
        kind, (start, end) = SpanKind(int(row.span_ids[token])), offsets[token].tolist()
        if pieces and pieces[-1].kind is kind:
            pieces[-1].end, pieces[-1].tokens = end, pieces[-1].tokens + 1
        else:
            pieces.append(_Piece(kind, start, end))
    before = len(rendered.text[: pieces[0].start].rstrip())
    return pieces, sum(int(start) >= before for start, _ in offsets[:first])


def _bos_text(transform: SpanTokenizer) -> str:
    """The text of the bos token, where training put one before the transcript."""
    bos = transform.tokenizer.bos_id if transform.add_bos else None
    return next((text for text, i in transform.tokenizer.special.items() if i == bos), "")


def _ending(written: str, transform: SpanTokenizer, dialect: Dialect) -> str:
    """What ends an agent's turn: a control token's text, or the newline of plain style."""
    if transform.style == "plain":
        return dialect.stop or "\n"
    ends = [token for token in transform.tokenizer.special if written.endswith(token)]
    return max(ends, key=len, default="")


def _after_a_turn(dialect: Dialect) -> list[str]:
    """What only comes when a turn is over: the environment's marker, the tag that closes."""
    marks = [f"\n{dialect.observation}"] if dialect.observation else []
    return [*marks, f"</{dialect.act[1:]}"] if dialect.act.startswith("<") else marks


def _unless_inside(text: str, marks: Sequence[str]) -> list[str]:
    """The marks, each once, that are no part of ``text`` itself (which would be cut there)."""
    return [mark for mark in dict.fromkeys(marks) if mark and mark not in text.strip()]


def _report_other_tokens(tokenizer: Any, folder: str, text: str) -> None:
    """Warns if ``AutoTokenizer``, which lm-eval's ``hf`` takes, encodes a text otherwise."""
    auto = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if auto.encode(text) != tokenizer.encode(text):
        _log.warning(
            "transformers' AutoTokenizer (%s) gives other tokens than %s/tokenizer.json: figures "
            "of --model hf are those of a wrong tokenizer (docs/lm_eval.md)",
            *(type(auto).__name__, folder),
        )


def _report_seams(found: Sequence[Turn], folder: str | Path) -> None:
    """Warns if lm-eval's way of encoding gives other tokens than training had.

    lm-eval encodes the context and the context with a continuation, and takes what the second has
    more as the continuation's tokens. That is exact where the first is the beginning of the second.
    """
    tokenizer = load_tokenizer(resolve_folder(folder))
    bos = tokenizer.bos_token
    _report_other_tokens(tokenizer, str(resolve_folder(folder)), found[0].start)

    def encode(text: str) -> list[int]:
        has_bos = bool(bos) and text.startswith(bos)
        return tokenizer.encode(text, **({"add_special_tokens": False} if has_bos else {}))

    seams = 0
    for turn in found:
        encoded = [encode(turn.start), *(encode(turn.start + c) for c in turn.continuations)]
        added = [len(b) - len(a) for a, b in itertools.pairwise(encoded)]
        whole = encoded[-1]
        exact = all(whole[: len(ids)] == ids for ids in encoded) and added == turn.tokens
        seams += not exact
    if seams:
        _log.warning(
            "%d of %d turns are encoded by lm-eval otherwise than in training (a span boundary "
            "inside a token, a control token inside a message, or a tokenizer that adds bos): "
            "their log-likelihoods are approximate (docs/lm_eval.md)",
            *(seams, len(found)),
        )
