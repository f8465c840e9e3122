"""``sad chat``: talk to a student of any kind: trained, quantised or exported."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence

from sad_components.data.transform import SpanTokenizer
from sad_components.evaluation.decoding import NextToken
from sad_components.evaluation.generation import Generator, Prompt
from sad_components.evaluation.prompts import PromptBuilder
from sad_components.evaluation.turns import TurnReader
from sad_components.trajectory import Message
from sad_components.viewer.play import CONTROLS
from sad_components.viewer.students import open_student


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``sad chat``; 0 when the input has ended."""
    args = _parser().parse_args(argv)
    student, transform, format = open_student(args.student, args.tokenizer, args.style)
    chat = Chat(student, transform, format, args.max_new_tokens, args.temperature, args.seed)
    for said in args.prompt or _typed():
        chat.say(said, lambda text: print(text, end="", flush=True))
        print()
    return 0


class Chat:
    """A conversation: what was said, and the student that goes on with it.

    Args:
        student: gives logits.
        transform: how it is shown conversations.
        format: of the transcripts; says where a turn ends in plain style.
        max_new_tokens: most tokens of an answer.
        temperature: 0 is greedy.
        seed: of sampled tokens.
    """

    def __init__(
        self,
        student: NextToken,
        transform: SpanTokenizer,
        format: str = "react",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.messages: list[Message] = []
        self._tokenizer = transform.tokenizer
        self._builder = PromptBuilder(transform, format)
        self._reader = TurnReader(format)
        self._generator = Generator(student, self._tokenizer, max_new_tokens, temperature)
        self._rng = random.Random(seed)

    def say(self, text: str, show: Callable[[str], None] = lambda _: None) -> str:
        """Adds a message of the user; the student's answer.

        Args:
            text: what the user says.
            show: gets the answer piece by piece, while it is written.

        Raises:
            ValueError: the conversation fills the student's context.
        """
        self.messages.append(Message("user", text))
        prompt = self._builder.build(self.messages)
        if len(prompt.token_ids) >= self._generator.max_seq_len:
            raise ValueError(
                f"the conversation has {len(prompt.token_ids)} tokens, and the student reads "
                f"{self._generator.max_seq_len}: begin anew"
            )
        by_text = "" if prompt.stop in self._tokenizer.special else prompt.stop
        stops = {self._tokenizer.special.get(prompt.stop), self._tokenizer.eos_id} - {None}
        shown = 0

        def end(written: str) -> int | None:
            nonlocal shown
            at = self._reader.end(written, by_text)
            # a piece of a character that is not whole yet is shown with the next token
            ready = len(written[:at].removesuffix(by_text or "\ufffd").rstrip("\ufffd"))
            if ready > shown:
                show(written[shown:ready].translate(CONTROLS))
                shown = ready
            return at

        (answer,) = self._generator.generate(
            [Prompt(0, prompt.token_ids, self._rng, end, frozenset(stops))]
        )
        said = answer.text.removesuffix(by_text)
        if len(said) > shown:
            show(said[shown:].translate(CONTROLS))
        self.messages.append(Message("assistant", said))
        return said


def _typed() -> Iterator[str]:
    """Lines from stdin, with a prompt where somebody sits there; empty ones are left out."""
    asks = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if asks else "")
        except EOFError:
            return
        if line.strip():
            yield line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sad chat", description=__doc__)
    parser.add_argument("student", metavar="DIR", help="a student's folder, or an exported one")
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="say this and end (may be repeated); without it lines of the standard input are said",
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="where it is not in the student's folder"
    )
    parser.add_argument(
        "--style", choices=["chat", "plain"], help="in which it was trained; an export knows"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="an answer (256)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of sampled tokens")
    return parser


if __name__ == "__main__":
    sys.exit(main())
