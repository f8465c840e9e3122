"""Trajectory to tokens: ids, labels, span ids and steps from one transform."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from sad_components.data.chat_template import compile_template
from sad_components.data.rendering import Rendered, render_chatml, render_plain
from sad_components.data.shuffle import shuffle_spans as with_shuffled_spans
from sad_components.data.template_rendering import NotAppendOnly, TemplateRenderer
from sad_components.data.tokenizers import as_offset_tokenizer
from sad_components.formats import get_format
from sad_components.formats.registry import FLAT, detect, is_format, segment, to_trajectory
from sad_components.spans import AGENT_KINDS, Span, SpanKind
from sad_components.trajectory import Trajectory, TrajectoryError

#: Label of a token that no loss reads (torchtune's and PyTorch's convention).
IGNORE = -100
_AGENT = np.array([kind in AGENT_KINDS for kind in SpanKind])
#: A lone surrogate, what is left of a cut emoji: no tokenizer can read one.
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class NotSupervised(TrajectoryError):
    """The trajectory holds no token to learn from."""


@dataclass
class TokenizedTrajectory:
    """One row: everything per token, in order.

    Args:
        tokens: token ids, shape [T].
        span_ids: ``SpanKind`` of each token, shape [T].
        steps: 1-based step of each token, 0 for context, shape [T].
        branch: whether the agent chose between thinking and acting at this token, shape [T].
        id: the trajectory's id.
        truncated: tokens dropped to fit ``max_seq_len``.
        entropy: teacher entropy in nats per supervised token, if known.
    """

    tokens: np.ndarray
    span_ids: np.ndarray
    steps: np.ndarray
    branch: np.ndarray
    id: str = ""
    truncated: int = 0
    entropy: float | None = None

    @property
    def labels(self) -> np.ndarray:
        """Token ids where REASON or ACT, else -100 (not shifted)."""
        return np.where(_AGENT[self.span_ids], self.tokens, IGNORE)

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: np.ndarray | slice) -> TokenizedTrajectory:
        """The chosen tokens as a row of their own."""
        arrays = ("tokens", "span_ids", "steps", "branch")
        return replace(self, **{name: getattr(self, name)[index] for name in arrays})

    def to_sample(self) -> dict[str, Any]:
        """torchtune's sample dict: lists under tokens, labels, span_ids, steps, branch."""
        return {
            "tokens": self.tokens.tolist(),
            "labels": self.labels.tolist(),
            "span_ids": self.span_ids.tolist(),
            "steps": self.steps.tolist(),
            "branch": self.branch.tolist(),
            "id": self.id,
        }


class SpanTokenizer:
    """torchtune ``Transform`` from a trajectory to tokens that know their span.

    The whole text is rendered as the model sees it at inference, tokenised once, and characters
    are aligned to tokens by offsets (``docs/method.md``, "Spans"). A token that straddles a
    boundary is the agent's if the agent has a character in it (it generates that token whole),
    else it has its first character's kind.

    Args:
        tokenizer: :class:`~sad_components.data.tokenizers.OffsetTokenizer`, or torchtune's
            tiktoken or SentencePiece tokenizers.
        style: ``chat`` (the tokenizer's template, ChatML without one) or ``plain``.
        format: transcript format by name; ``auto`` asks each record, then the evidence.
        max_seq_len: rows longer than this many tokens are cut at a step boundary; None: never.
        truncate: ``end`` drops the last steps, ``start`` the first ones (the task stays).
        on_rewrite: what to do when the chat template rewrites earlier turns: ``error``, or
            ``per_turn`` (one row for each agent turn).
        add_bos: whether plain style starts with the bos token; None: if the tokenizer has one.
        shuffle_spans: an ablation: the seed with which each row's spans are put into random places
            (:func:`~sad_components.data.shuffle.shuffle_spans`); None: where they are.

    Raises:
        ValueError: an option is none of its choices, or the seed no integer >= 0.

    Example:
        >>> transform = SpanTokenizer(tokenizer, style="plain")
        >>> sample = transform({"messages": [{"role": "user", "content": "Say hi."},
        ...                                  {"role": "assistant", "content": "Action: hi"}]})
        >>> sorted(sample)
        ['branch', 'id', 'labels', 'span_ids', 'steps', 'tokens']
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        style: str = "chat",
        format: str = "auto",
        max_seq_len: int | None = None,
        truncate: str = "end",
        on_rewrite: str = "error",
        add_bos: bool | None = None,
        shuffle_spans: int | None = None,
    ) -> None:
        _choice("style", style, ("chat", "plain"))
        _choice("truncate", truncate, ("end", "start"))
        _choice("on_rewrite", on_rewrite, ("error", "per_turn"))
        _check_seed("shuffle_spans", shuffle_spans)
        self.tokenizer = as_offset_tokenizer(tokenizer)
        self.style = style
        self.format = format
        self.max_seq_len = max_seq_len
        self.truncate = truncate
        self.on_rewrite = on_rewrite
        self.shuffle_spans = shuffle_spans
        has_bos = self.tokenizer.bos_id is not None
        self.add_bos = (style == "plain" and has_bos) if add_bos is None else add_bos
        self._template: TemplateRenderer | None = None
        if style == "chat" and self.tokenizer.chat_template:
            variables = getattr(self.tokenizer, "template_variables", None)
            apply = compile_template(self.tokenizer.chat_template, variables)
            self._template = TemplateRenderer(apply, tuple(self.tokenizer.special))

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """One row as torchtune's sample dict.

        Raises:
            TrajectoryError: not a trajectory, nothing to supervise, no step fits, or several rows
                (``on_rewrite: per_turn``: use :meth:`rows`).
        """
        rows = self.rows(self.trajectory(sample))
        if len(rows) != 1:
            raise TrajectoryError(
                f"this trajectory makes {len(rows)} rows (one a turn), but a Transform returns "
                "one; use SpanTokenizer.rows"
            )
        return rows[0].to_sample()

    def trajectory(self, sample: Mapping[str, Any] | Trajectory) -> Trajectory:
        """The canonical record of a raw row, its format decided."""
        if isinstance(sample, Trajectory):
            return sample
        if self.format != "auto":
            return to_trajectory(sample, get_format(self.format))
        if is_format(sample.get("format")) and "messages" in sample:
            return Trajectory.from_dict(sample)
        return to_trajectory(sample, detect([sample])[0])

    def render(self, trajectory: Trajectory) -> list[Rendered]:
        """The text the model sees, with its spans: one rendering, or one a turn."""
        spans = segment(trajectory)
        messages = trajectory.messages
        dialect = get_format(trajectory.format or self.format).dialect
        if self.style == "plain":
            flat = trajectory.meta.get("layout") == FLAT
            return [render_plain(messages, spans, dialect, flat=flat)]
        optional = dialect.thought_optional
        if self._template is None:
            return [render_chatml(messages, spans, thought_optional=optional)]
        try:
            return [self._template.render(messages, spans, thought_optional=optional)]
        except NotAppendOnly:
            if self.on_rewrite == "error":
                raise
            return self._template.render_per_turn(messages, spans, thought_optional=optional)

    def with_real_spans(self) -> SpanTokenizer:
        """This transform without ``shuffle_spans``: for rows that scores are taken on."""
        real = copy(self)
        real.shuffle_spans = None
        return real

    def rows(
        self, trajectory: Trajectory, left_out: list[str] | None = None
    ) -> list[TokenizedTrajectory]:
        """Tokenised rows, cut to ``max_seq_len``.

        Args:
            trajectory: what to tokenise.
            left_out: gets the reason for each turn of ``on_rewrite: per_turn`` that makes no row;
                without it, such a turn is an error.

        Raises:
            NotSupervised: no REASON or ACT token, or none left after truncation: in any row, or
                without ``left_out`` in one of them.
        """
        rows, reasons = [], []
        for rendered in self.render(trajectory):
            try:
                rows.append(self._row(rendered, trajectory))
            except NotSupervised as error:
                if left_out is None:
                    raise
                reasons.append(str(error))
        if not rows:
            raise NotSupervised(
                reasons[0]
                if reasons
                else "a trajectory needs an agent turn to learn from; every one of this has weight "
                "0 or is a demonstration: filter such records out"
            )
        if left_out is not None:
            left_out += reasons
        return rows

    def _row(self, rendered: Rendered, trajectory: Trajectory) -> TokenizedTrajectory:
        text = _HALF_CHARACTER.sub("\ufffd", rendered.text)
        row = align(rendered, *self.tokenizer.encode_arrays(text, rendered.literal))
        row.id = trajectory.id
        row.entropy = _entropy(trajectory)
        if self.add_bos and self.tokenizer.bos_id is not None:
            row = _with_bos(row, self.tokenizer.bos_id)
        # the first token of a sequence is predicted by nothing
        if not _AGENT[row.span_ids[1:]].any():
            raise NotSupervised(
                "a trajectory needs at least one REASON or ACT token to learn from; found none "
                f"in {len(row)} tokens (format {trajectory.format!r})"
            )
        if self.max_seq_len is not None and len(row) > self.max_seq_len:
            row = truncate_steps(row, self.max_seq_len, self.truncate)
        if self.shuffle_spans is not None:
            row = with_shuffled_spans(row, self.shuffle_spans)
        return row


def align(
    rendered: Rendered,
    ids: Sequence[int] | np.ndarray,
    offsets: Sequence[tuple[int, int]] | np.ndarray,
) -> TokenizedTrajectory:
    """Gives each token the kind and step of its characters (the straddling rule above).

    Args:
        rendered: text and spans.
        ids: token ids, length T.
        offsets: character range of each token, length T; an empty range takes the next character.
    """
    spans = rendered.spans
    where = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    start = np.minimum(where[:, 0], max(len(rendered.text) - 1, 0))
    end = np.maximum(where[:, 1], start + 1)
    values = np.fromiter(chain.from_iterable(spans), np.int64, count=5 * len(spans))
    starts, ends, kinds, steps, marked = values.reshape(-1, 5).T
    owner = starts.searchsorted(start, side="right") - 1
    for token in np.flatnonzero(end > ends[owner]).tolist():  # it straddles a boundary
        owner[token] = _owner(spans, int(owner[token]), int(end[token]))
    branch = np.zeros(len(where), dtype=bool)
    first = end.searchsorted(starts[marked > 0], side="right")
    branch[first[first < len(branch)]] = True
    return TokenizedTrajectory(
        np.asarray(ids, dtype=np.int64),
        kinds.astype(np.int8)[owner],
        steps.astype(np.int32)[owner],
        branch,
    )


def _owner(spans: Sequence[Span], first: int, end: int) -> int:
    """The span that has a token from span ``first`` to character ``end``: the agent's, if any."""
    for index in range(first, len(spans)):
        if spans[index].start >= end:
            break
        if spans[index].kind in AGENT_KINDS:
            return index
    return first


def truncate_steps(row: TokenizedTrajectory, limit: int, side: str) -> TokenizedTrajectory:
    """Drops whole steps so that at most ``limit`` tokens are left; the task (step 0) stays.

    Args:
        row: the whole row.
        limit: tokens that may stay.
        side: ``end`` keeps the first steps, ``start`` the last ones.

    Raises:
        NotSupervised: not even one step fits behind the task.
    """
    agent = np.flatnonzero(_AGENT[row.span_ids])
    later = np.flatnonzero(row.steps > 0)
    first = int(later[0]) if len(later) else len(row)
    steps = np.unique(row.steps[agent])
    steps = steps[steps > 0] if steps[-1] > 0 else steps  # what an agent says in step 0 is no step
    kept = None
    # a step is over where its last agent token is: what follows is the answer to it
    if side == "end":
        ends = [int(agent[row.steps[agent] == step][-1]) + 1 for step in steps]
        if fitting := [end for end in ends if end <= limit]:
            kept = row.take(slice(0, max(fitting)))
    else:
        end = int(agent[-1]) + 1
        starts = [int(np.flatnonzero(row.steps == step)[0]) for step in steps]
        if fitting := [start for start in starts if first + end - start <= limit]:
            kept = row.take(np.r_[0:first, min(fitting) : end])
    if kept is None or not _AGENT[kept.span_ids[1:]].any():
        raise NotSupervised(
            f"max_seq_len must hold the task and one step; got {limit} for a row of {len(row)} "
            f"tokens whose task alone has {first}: raise max_seq_len"
        )
    kept.truncated = len(row) - len(kept)
    return kept


def _entropy(trajectory: Trajectory) -> float | None:
    """The record's ``meta.teacher_entropy`` in nats per token, if it has one."""
    entropy = trajectory.meta.get("teacher_entropy")
    if entropy is None:
        return None
    if isinstance(entropy, bool) or not isinstance(entropy, int | float):
        raise TrajectoryError(
            f"meta.teacher_entropy is a number of nats per token; got {entropy!r:.60}: write a "
            "number, or leave it out"
        )
    return float(entropy)


def _with_bos(row: TokenizedTrajectory, bos: int) -> TokenizedTrajectory:
    """The row behind a bos token, which is CONTEXT of step 0."""
    row.tokens = np.concatenate(([bos], row.tokens))
    for name in ("span_ids", "steps", "branch"):  # in all of them 0 is what bos is
        values = getattr(row, name)
        setattr(row, name, np.concatenate((np.zeros(1, values.dtype), values)))
    return row


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}; got {value!r}")


def _check_seed(name: str, value: Any) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(f"{name} is a seed, an integer >= 0, or null; got {value!r}")
