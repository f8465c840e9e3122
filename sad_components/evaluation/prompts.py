"""The prompt of an agent's next turn: what training showed before such a turn, token for token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sad_components.data.rendering import Rendered
from sad_components.data.transform import SpanTokenizer
from sad_components.evaluation.turns import TurnReader
from sad_components.spans import AGENT_KINDS
from sad_components.trajectory import Message, Trajectory


@dataclass
class TurnPrompt:
    """Where a turn begins.

    Args:
        text: everything before the turn.
        token_ids: its tokens.
        stop: text that the harness expects behind a turn: a newline, or a control token's text.
    """

    text: str
    token_ids: list[int]
    stop: str


class PromptBuilder:
    """Renders histories by the transform that renders training data.

    Args:
        transform: tokenizer and style.
        format: of the transcripts.

    Raises:
        ValueError: a format without an action marker.
    """

    def __init__(self, transform: SpanTokenizer, format: str) -> None:
        self._transform, self._format = transform, format
        self._stand_in = Message("assistant", TurnReader(format).write(None, "x"))

    def build(
        self, messages: Sequence[Message], known_text: str = "", known_ids: Sequence[int] = ()
    ) -> TurnPrompt:
        """The prompt behind ``messages``.

        Args:
            messages: the history; what it says is never read as a control token.
            known_text: text of a prompt and the turn sampled behind it.
            known_ids: their tokens, kept as they are where the new prompt begins with that text.
        """
        rendered = self._render(messages)
        start, stop = self._last_turn(rendered)
        text = rendered.text[:start]
        literal = [(a, min(b, start)) for a, b in rendered.literal if a < start]
        ids, offsets = self._transform.tokenizer.encode(text, literal)
        bos = self._transform.tokenizer.bos_id
        if self._transform.add_bos and bos is not None:
            ids, offsets = [bos, *ids], [(0, 0), *offsets]
        if known_text and text.startswith(known_text):
            new = [(i, a) for i, (a, _) in zip(ids, offsets) if a >= len(known_text)]
            if not new or new[0][1] == len(known_text):
                ids = [*known_ids, *(i for i, _ in new)]
        return TurnPrompt(text, list(ids), stop)

    def _render(self, messages: Sequence[Message]) -> Rendered:
        whole = Trajectory([*messages, self._stand_in], format=self._format)
        return self._transform.render(whole)[-1]

    def _last_turn(self, rendered: Rendered) -> tuple[int, str]:
        """Where the stand-in begins, and what ends it."""
        index = len(rendered.spans) - 1
        while rendered.spans[index].kind not in AGENT_KINDS:
            index -= 1
        end = rendered.spans[index].end
        while index and rendered.spans[index - 1].kind in AGENT_KINDS:
            index -= 1
        start = rendered.spans[index].start
        written = self._stand_in.text
        at = rendered.text.find(written, start)
        return start, rendered.text[at + len(written) : end]
