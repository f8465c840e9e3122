"""ALFWorld transcripts: the harness writes ``> `` and the agent a thought or an action.

``> think: ..`` (or ``> Think: ..``) is REASON, ``> go to shelf 1`` is ACT; the newline that ends
either is its stop token. KnowAgent's ``> ActionPath: ..``, the plan so far that the agent rewrites
before it thinks, is REASON. The prompt ``> `` is CONTEXT, every other line OBSERVATION.

A prompt line is believed when the harness treated it as one (an observation may quote lines that
start with ``> ``):

- an action is answered by at least one line;
- a thought is answered by ``OK.``, or, in transcripts without ``OK.`` lines, by the next prompt;
- a prompt line behind a line that ends with a colon is quoted (``The note says:``), unless most
  answers end so;
- the last line of the text may be cut off anywhere.

A quoted action without such an introduction, and with more text behind it, cannot be told apart.
Blocks before the last ``You are in the middle of a room`` that opens a task are few-shot examples:
CONTEXT.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sad_components.formats._chatml import is_chatml
from sad_components.formats._markers import early, is_introduced
from sad_components.formats.base import (
    Dialect,
    Evidence,
    Format,
    StepCounter,
    collector_paused,
    cover,
)
from sad_components.formats.registry import register_format
from sad_components.spans import Span, SpanKind, SpanValues
from sad_components.trajectory import TrajectoryError

_PROMPT = re.compile(r"^>(?: |$|(?=[A-Za-z]))", re.MULTILINE)
_THOUGHT = re.compile(r"(?:think|thought|actionpath)\b[ \t]*(?::|$)", re.IGNORECASE | re.MULTILINE)
_TASK = re.compile(
    r"^You are in the middle of a room\b[^\n]*\n[\r\n]*Your task is to:", re.MULTILINE
)
_NO_ANSWER = re.compile(r"Nothing happens|Invalid", re.IGNORECASE)


class _Prompt(NamedTuple):
    """A line that starts with the prompt: where the agent's text and what answers it stand."""

    start: int
    text_start: int
    line_end: int
    answer_end: int
    is_thought: bool
    is_last: bool

    def answer(self, text: str) -> str:
        return text[self.line_end : self.answer_end].strip("\n")


@register_format
class AlfWorld(Format):
    """``> think: ..`` / ``> go to ..`` with the environment's answer on the lines between."""

    name = "alfworld"
    summary = "ALFWorld: '> think: ..', '> ActionPath: ..', '> go to ..'; also actions alone"
    dialect = Dialect(reason="think:", act="", prompt="> ", stop="\n", thought_optional=True)

    def text_evidence(self, text: str) -> Evidence:
        prompts = [] if is_chatml(text) else list(_prompts(text))
        thoughts = sum(p.is_thought for p in prompts)
        why = f"{len(prompts)} '> ' lines, {thoughts} of them thoughts"
        if not prompts:
            return Evidence(0.0, why)
        score = 1.0 if thoughts or _TASK.search(text) else 0.5
        return Evidence(early(score, text, prompts[0].start), why)

    @collector_paused
    def segment_text(self, text: str) -> list[Span]:
        prompts = list(_prompts(text, _episode_start(text)))
        if not prompts:
            raise TrajectoryError("no line opens with the prompt '> ', so nothing is cut")
        return cover(text, _spans(text, prompts))


def _spans(text: str, prompts: Sequence[_Prompt]) -> Iterator[SpanValues]:
    """The prompts of the harness, and behind each what the agent wrote."""
    steps = StepCounter()
    for prompt, end in _believed(text, prompts):
        yield prompt.start, prompt.text_start, SpanKind.CONTEXT, 0, False
        if end > prompt.text_start:
            kind = SpanKind.REASON if prompt.is_thought else SpanKind.ACT
            step = steps.reason() if prompt.is_thought else steps.act()
            yield prompt.text_start, end, kind, step, True


def _episode_start(text: str) -> int:
    """Where the trajectory itself starts: behind the few-shot examples."""
    start = 0
    for match in _TASK.finditer(text):
        before = text[max(0, match.start() - 200) : match.start()]
        opens = match.start() == 0 or before.endswith(("\n\n", "\n\r\n"))
        if opens or re.search(r"here is the task[^\n]*\n\Z", before, re.IGNORECASE):
            start = match.start()
    return start


def _prompts(text: str, start: int = 0) -> Iterator[_Prompt]:
    found = [match.span() for match in _PROMPT.finditer(text, start)]
    answer_ends = [begin for begin, _ in found[1:]] + [len(text)]  # one more than none found
    for (begin, text_start), answer_end in zip(found, answer_ends, strict=False):
        line_end = text.find("\n", text_start) + 1 or len(text)
        thinks = _THOUGHT.match(text, text_start, line_end) is not None
        last = answer_end == len(text)
        yield _Prompt(begin, text_start, line_end, answer_end, thinks, last)


def _believed(text: str, prompts: Sequence[_Prompt]) -> Iterator[tuple[_Prompt, int]]:
    """Prompt lines that the harness treated as such, each with the end of the agent's text."""
    says_ok = any(p.is_thought and _is_ok(p.answer(text)) for p in prompts)
    introduced = {p.start for p in prompts[1:] if is_introduced(text, p.start)}
    if len(introduced) * 2 > len(prompts):
        introduced = set()
    for prompt in prompts:
        if prompt.start in introduced:
            continue
        answer = prompt.answer(text)
        if prompt.is_last and not answer:  # it may be cut off anywhere
            yield prompt, prompt.line_end
        elif prompt.is_thought and says_ok:
            if _is_ok(answer.rpartition("\n")[2]):  # the thought may run over several lines
                yield prompt, prompt.line_end + answer.rfind("\n") + 1
        elif prompt.is_thought:
            if not answer or _NO_ANSWER.match(answer):
                yield prompt, prompt.line_end
        elif answer:
            yield prompt, prompt.line_end


def _is_ok(line: str) -> bool:
    return line.strip() == "OK."
