"""The question-answering environment of ReAct, offline."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from sad_components.envs.hotpotqa.questions import SHIPPED, Question, load_questions
from sad_components.envs.hotpotqa.scoring import answer_f1, exact_match
from sad_components.envs.protocol import Environment, Outcome, require_task, slice_tasks
from sad_components.trajectory import Message

_ACTION = re.compile(r"(?P<verb>search|lookup|finish)\[(?P<text>.*)\]", re.IGNORECASE | re.DOTALL)
_MOST_SIMILAR = 5


class HotpotQAEnvironment(Environment):
    """``Search[title]``, ``Lookup[word]`` and ``Finish[answer]``; the reward is exact match.

    Search finds the question's own paragraphs by title (case and blanks do not count) and says
    which titles are similar where there is none; Lookup goes through the sentences of the last
    paragraph that hold a text, one at a time. F1 is reported beside the reward, in
    ``info["scores"]``.

    Args:
        source: of the questions (:func:`load_questions`).
        max_steps: actions after which an episode ends unanswered.
        sentences: how many sentences a search shows.

    Raises:
        FileNotFoundError, ValueError: what :func:`load_questions` raises.
    """

    name = "hotpotqa"
    instructions = (
        "Answer a question. Reply with one thought and one action.\n"
        "Actions: Search[title of a page], Lookup[text on the page], Finish[answer]."
    )

    def __init__(
        self, source: str | Path = SHIPPED, max_steps: int = 8, sentences: int = 5
    ) -> None:
        super().__init__(max_steps)
        self._questions = {q.id: q for q in load_questions(source)}
        self._shown = sentences
        self._question: Question | None = None

    def tasks(self, count: int | None = None, seed: int = 0) -> list[str]:
        return slice_tasks(list(self._questions), count, seed, self.name)

    def _start(self, task: str) -> str:
        require_task(task, self._questions, self.name)
        self._question = self._questions[task]
        self._page: tuple[str, ...] = ()
        self._lookup: tuple[str, int] = ("", 0)
        self._searched: list[str] = []
        return f"Question: {self._question.question}"

    def _act(self, action: str) -> Outcome:
        match = _ACTION.fullmatch(action.strip())
        if match is None:
            return Outcome(
                "Invalid action. Valid actions are Search[..], Lookup[..] and Finish[..].",
                valid=False,
            )
        text = match["text"].strip()
        return {"search": self._search, "lookup": self._find, "finish": self._finish}[
            match["verb"].lower()
        ](text)

    def _search(self, entity: str) -> Outcome:
        paragraphs = self._current.paragraphs
        titles = {_folded(title): title for title in paragraphs}
        title = titles.get(_folded(entity))
        if title is None:
            near = difflib.get_close_matches(_folded(entity), titles, _MOST_SIMILAR, cutoff=0.0)
            similar = [titles[name] for name in near]
            return Outcome(f"Could not find {entity}. Similar: {similar}.")
        self._searched.append(title)
        self._page, self._lookup = paragraphs[title], ("", 0)
        return Outcome(" ".join(s.strip() for s in self._page[: self._shown]))

    def _find(self, text: str) -> Outcome:
        if not self._page:
            return Outcome("There is no page to look in. Search for one first.", valid=False)
        last, number = self._lookup
        number = number + 1 if text == last else 1
        self._lookup = (text, number)
        hits = [s.strip() for s in self._page if text and text.lower() in s.lower()]
        if number > len(hits):
            return Outcome("No more results.")
        return Outcome(f"(Result {number} / {len(hits)}) {hits[number - 1]}")

    def _finish(self, answer: str) -> Outcome:
        gold = self._current.answer
        right = exact_match(answer, gold)
        scores = {"f1": answer_f1(answer, gold)}
        said = f"Episode finished, reward = {int(right)}"
        return Outcome(said, float(right), done=True, won=right, info={"scores": scores})

    def expert_turn(self) -> Message | None:
        """Searches the paragraphs that hold the answer, then gives it."""
        left = [t for t in self._current.supporting if t not in self._searched]
        if left:
            return Message("assistant", f"Thought: I need {left[0]}.\nAction: Search[{left[0]}]")
        answer = self._current.answer
        return Message("assistant", f"Thought: I know the answer.\nAction: Finish[{answer}]")

    def admissible(self) -> list[str] | None:
        """A search for each paragraph, and yes and no as answers (any other text is one, too)."""
        searches = [f"Search[{title}]" for title in self._current.paragraphs]
        return [*searches, "Finish[yes]", "Finish[no]"]

    def describe(self) -> dict[str, Any]:
        return {"task_type": self._current.kind} if self._current.kind else {}

    @property
    def task_sentence(self) -> str:
        return self._current.question

    @property
    def _current(self) -> Question:
        assert self._question is not None, "reset comes first"
        return self._question


def _folded(title: str) -> str:
    return " ".join(title.lower().split())
