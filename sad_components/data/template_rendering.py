"""A tokenizer's own chat template: its text, with spans over it.

A turn's share of the text is what it adds to the rendering of the turns before it. In an agent
turn the generation prompt is CONTEXT; what follows, up to and including the first stop token
behind the turn's own texts, is the agent's; the rest is CONTEXT.

Rendering every prefix of a conversation is the reference, and costs the square of its length.
:class:`TemplateRenderer` renders prefixes of stand-ins once for each shape of conversation, and
after that one rendering a conversation; whenever a template reads more of the texts than where to
put them, it goes back to the reference.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache

from sad_components.data.chat_template import ApplyTemplate
from sad_components.data.prefixes import common_prefix
from sad_components.data.rendering import (
    Rendered,
    Renderer,
    agent_kinds,
    last_agent_kind,
    turn_steps,
)
from sad_components.data.template_parts import (
    Filled,
    Part,
    Pattern,
    Skeleton,
    search_history,
    search_turn,
    template_record,
)
from sad_components.spans import Span, SpanKind
from sad_components.trajectory import Message, TrajectoryError

_CLOSING_TAG = re.compile(r"\s*</[^>\s]+>\s*")
_MAX_SHAPES = 512


class NotAppendOnly(TrajectoryError):
    """The template rewrites earlier turns, so one sequence cannot hold the whole trajectory."""


class TemplateRenderer:
    """Renders conversations by one chat template.

    Args:
        apply: the template as a function.
        stop_tokens: texts that may end an agent's turn.
    """

    def __init__(self, apply: ApplyTemplate, stop_tokens: Sequence[str] = ()) -> None:
        self._apply = apply
        self._stops = tuple(stop_tokens)
        self._layouts: OrderedDict[str, Pattern | None] = OrderedDict()

    def render(
        self,
        messages: Sequence[Message],
        content_spans: Sequence[Sequence[Span]],
        *,
        thought_optional: bool = True,
    ) -> Rendered:
        """The whole conversation as one text.

        Args:
            messages: the trajectory's turns.
            content_spans: per message the spans over its text.
            thought_optional: the first token of every agent turn is a branch position.

        Raises:
            NotAppendOnly: a later turn changed the text of earlier ones (some templates drop
                earlier reasoning).
            TrajectoryError: the template left out or changed what a turn says.
        """
        records = [template_record(m) for m in messages]
        skeleton = Skeleton.of(records)
        self._refuse_control_labels(skeleton)
        filled = self._fill(messages, records, skeleton)
        if filled is None:
            return self.render_by_prefixes(
                messages, content_spans, thought_optional=thought_optional
            )
        placer = _Placer(messages, content_spans, self._stops, thought_optional)
        parts = _by_turn(filled.parts, len(messages))
        start = 0
        for turn in range(len(messages)):
            prompt, end = filled.edges[2 * turn : 2 * turn + 2]
            placer.add_turn(filled.text, (start, prompt, end), parts[turn], turn)
            start = end
        return placer.out.finish()

    def render_by_prefixes(
        self,
        messages: Sequence[Message],
        content_spans: Sequence[Sequence[Span]],
        *,
        thought_optional: bool = True,
    ) -> Rendered:
        """The reference for :meth:`render`: every prefix is rendered, texts are searched for."""
        records = [template_record(m) for m in messages]
        placer = _Placer(messages, content_spans, self._stops, thought_optional)
        before = ""
        for turn, message in enumerate(messages):
            prompt, whole = self._grow(records, turn, before)
            parts = search_turn(whole, prompt, message, turn, self._stops)
            placer.add_turn(whole, (len(before), prompt, len(whole)), parts, turn)
            before = whole
        return placer.out.finish()

    def render_per_turn(
        self,
        messages: Sequence[Message],
        content_spans: Sequence[Sequence[Span]],
        *,
        thought_optional: bool = True,
    ) -> list[Rendered]:
        """One rendering per agent turn, in which only that turn is supervised.

        For templates that rewrite the history: each shows it as the model sees it at that turn.
        """
        records = [template_record(m) for m in messages]
        skeleton = Skeleton.of(records)
        self._refuse_control_labels(skeleton)
        rows = []
        for turn, message in enumerate(messages):
            if message.role != "assistant" or not message.is_learnt:
                continue
            whole = self._apply(records[: turn + 1], False)
            prompt = common_prefix(self._apply(records[:turn], True), whole)
            history, own = self._locate(skeleton, messages, turn, whole, prompt)
            placer = _Placer(messages, content_spans, self._stops, thought_optional)
            placer.add_history(whole[:prompt], history)
            placer.add_turn(whole, (prompt, prompt, len(whole)), own, turn)
            rows.append(placer.out.finish())
        return rows

    def _refuse_control_labels(self, skeleton: Skeleton) -> None:
        """Names and ids are not searched for: none may be read as a control token."""
        for slot in skeleton.slots:
            if slot.part == "label" and any(stop in slot.text for stop in self._stops):
                raise TrajectoryError(
                    f"names and ids hold no text of control tokens; got {slot.text!r:.80} in turn "
                    f"{slot.turn}"
                )

    def _fill(
        self, messages: Sequence[Message], records: list, skeleton: Skeleton
    ) -> Filled | None:
        """The conversation laid out by its shape; None where only the reference is safe."""
        if any(m.role == "assistant" and "</think>" in m.text for m in messages):
            return None  # templates take reasoning out of such content, one turn unlike another
        layout = self._layout(skeleton)
        if layout is None:
            return None
        return layout.fill(skeleton.slots, self._apply(records, False))

    def _layout(self, skeleton: Skeleton) -> Pattern | None:
        """The skeleton as rendered, with the two edges of every turn; None: not to be relied on.

        The edges are where the turn's generation prompt ends (a turn of the agent's, else where
        the turn begins), and where the turn ends.
        """
        shape = skeleton.shape
        if shape in self._layouts:
            self._layouts.move_to_end(shape)
            return self._layouts[shape]
        try:
            layout = self._new_layout(skeleton)
        except ValueError:  # it reads the texts, or refuses the conversation: the reference knows
            layout = None
        self._layouts[shape] = layout
        if len(self._layouts) > _MAX_SHAPES:
            self._layouts.popitem(last=False)
        return layout

    def _new_layout(self, skeleton: Skeleton) -> Pattern | None:
        text, edges = "", []
        for turn in range(len(skeleton.records)):
            prompt, text = self._grow(skeleton.records, turn, text)
            edges += [prompt, len(text)]
        pattern = Pattern(text, skeleton.slots, edges)
        return pattern if pattern.shows_each_once(skeleton.slots) else None

    def _grow(self, records: list, turn: int, before: str) -> tuple[int, str]:
        """End of the generation prompt, and the text, once ``turn`` has been added."""
        whole = self._apply(records[: turn + 1], False)
        role = records[turn]["role"]
        if not whole.startswith(before):
            raise NotAppendOnly(
                f"the chat template is not append-only: adding turn {turn} ({role}) "
                "changed the text of earlier turns (it may drop earlier reasoning); set "
                "on_rewrite: per_turn for one row a turn, or give a chat_template that keeps it"
            )
        if role != "assistant":
            return len(before), whole
        # what the prompt and the turn share: a prompt may end in more, e.g. an empty think block
        prompt = common_prefix(self._apply(records[:turn], True), whole)
        return max(prompt, len(before)), whole

    def _locate(
        self,
        skeleton: Skeleton,
        messages: Sequence[Message],
        turn: int,
        whole: str,
        prompt: int,
    ) -> tuple[list[tuple[int, int]], list[Part]]:
        """Literal ranges of the history, and the parts of ``turn`` itself."""
        try:
            shown = self._apply(skeleton.records[: turn + 1], False)
        except ValueError:
            shown = ""
        pattern = Pattern(shown, skeleton.slots)
        filled = pattern.fill(skeleton.slots, whole)
        if filled is not None and pattern.shows_each_once(skeleton.slots, turn):
            own = [p for p in filled.parts if p.slot.turn == turn]
            return [(p.start, p.end) for p in filled.parts if p.slot.turn < turn], own
        own = search_turn(whole, prompt, messages[turn], turn, self._stops)
        return search_history(whole[:prompt], messages[:turn], self._stops), own


class _Placer:
    """Lays the turns' spans over their shares of a rendered text."""

    def __init__(
        self,
        messages: Sequence[Message],
        content_spans: Sequence[Sequence[Span]],
        stops: tuple[str, ...],
        thought_optional: bool,
    ) -> None:
        self.out = Renderer()
        self._messages = messages
        self._spans = content_spans
        self._steps = turn_steps(messages, content_spans)
        self._stops = stops
        self._thought_optional = thought_optional

    def add_history(self, text: str, literal: Sequence[tuple[int, int]]) -> None:
        """Adds what is shown, but not learnt."""
        position = 0
        for start, end in literal:
            self.out.add(text[position:start], SpanKind.CONTEXT)
            self.out.add(text[start:end], SpanKind.CONTEXT, literal=True)
            position = end
        self.out.add(text[position:], SpanKind.CONTEXT)

    def add_turn(
        self, text: str, bounds: tuple[int, int, int], parts: Sequence[Part], turn: int
    ) -> None:
        """Adds one turn.

        Args:
            text: the rendering.
            bounds: where the turn starts, where its generation prompt ends, where it ends.
            parts: the turn's texts in ``text``.
            turn: its index.
        """
        start, prompt, end = bounds
        self.out.open_turn(self._thought_optional)
        self.out.add(text[start:prompt], SpanKind.CONTEXT)
        if self._messages[turn].role == "assistant":
            self._add_agent_turn(text, prompt, end, parts, turn)
            return
        position = prompt
        for part in parts:  # its content; a call's text in somebody else's turn is not learnt
            self.out.add(text[position : part.start], SpanKind.CONTEXT)
            if part.slot.part == "content":
                self._add_content(text[part.start : part.end], turn)
            else:
                self.out.add(text[part.start : part.end], SpanKind.CONTEXT, literal=True)
            position = part.end
        self.out.add(text[position:end], SpanKind.CONTEXT)

    def _add_agent_turn(
        self, text: str, position: int, end: int, parts: Sequence[Part], turn: int
    ) -> None:
        message, spans, step = self._messages[turn], self._spans[turn], self._steps[turn]
        reason, act = agent_kinds(message)
        first = spans[0].step if spans else step
        thinking = False
        for slot, begin, stop in parts:
            gap = text[position:begin]
            if thinking and (closing := _CLOSING_TAG.match(gap)):
                self.out.add(closing[0], reason, first)
                gap = gap[closing.end() :]
            thinking = slot.part == "reasoning"
            if slot.part == "content":
                self.out.add(gap, spans[0].kind, first)
                self._add_content(text[begin:stop], turn)
            else:
                kind = reason if thinking else act
                self.out.add(gap, kind, first if thinking else step)
                self.out.add(text[begin:stop], kind, first if thinking else step, literal=True)
            position = stop
        stop = position + _stop_end(text[position:end], self._stops)
        self.out.add(text[position:stop], last_agent_kind(message, spans), step)
        self.out.add(text[stop:end], SpanKind.CONTEXT)

    def _add_content(self, shown: str, turn: int) -> None:
        """A turn's content, whole or stripped as several templates do."""
        whole, spans = self._messages[turn].text, self._spans[turn]
        if len(shown) == len(whole):
            self.out.add_spans(shown, spans)
            return
        start = len(whole) - len(whole.lstrip())
        inner = [
            s._replace(start=max(s.start - start, 0), end=min(s.end - start, len(shown)))
            for s in spans
            if s.end > start and s.start < start + len(shown)
        ]
        self.out.add_spans(shown, inner)


def _by_turn(parts: Sequence[Part], turns: int) -> list[list[Part]]:
    out: list[list[Part]] = [[] for _ in range(turns)]
    for part in parts:
        out[part.slot.turn].append(part)
    return out


@lru_cache(maxsize=64)  # a template ends its turns in one way, or few
def _stop_end(tail: str, stop_tokens: tuple[str, ...]) -> int:
    """End of the agent's share of what ends a turn: behind the first stop token, else all."""
    ends = [found + len(stop) for stop in stop_tokens if (found := tail.find(stop)) >= 0]
    return min(ends, default=len(tail))
