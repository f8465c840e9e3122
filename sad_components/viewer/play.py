"""``sad play``: an agent plays one episode of an environment, live in the terminal."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from sad_components.envs import ENVIRONMENTS, Environment, make_environment
from sad_components.evaluation.policies import ExpertPolicy, Policy, RandomPolicy, Turn
from sad_components.evaluation.policies.base import EpisodeView, text_turn
from sad_components.evaluation.turns import TurnReader
from sad_components.formats import get_format
from sad_components.spans import SpanKind
from sad_components.trajectory import Message
from sad_components.viewer.spans import STYLES

#: Control characters, the eight-bit ones among them, would drive the terminal.
CONTROLS = {c: 0xFFFD for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


class HumanPolicy:
    """Asks whoever sits at the terminal.

    Args:
        name: what is shown.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, name: str = "you") -> None:
        self.name = name

    def act(self, episodes: Sequence[EpisodeView]) -> list[Turn]:
        return [self._ask(view) for view in episodes]

    def _ask(self, view: EpisodeView) -> Turn:
        try:
            action = input("action> ")
        except EOFError:
            return Turn(failure="the input has ended")
        return text_turn(TurnReader(view.format).write(None, action))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``sad play``; 0 when the episode was won, else 1."""
    args = _parser().parse_args(argv)
    env = make_environment(args.environment, **dict(args.option))
    try:
        policy = _policy(args)
        task = args.task if args.task is not None else env.tasks(1, args.seed)[0]
        return 0 if play(env, policy, task, args.seed, args.delay) else 1
    finally:
        env.close()


def play(env: Environment, policy: Policy, task: str, seed: int = 0, delay: float = 0.0) -> bool:
    """Shows an episode as it is played, on stdout.

    Args:
        env: where.
        policy: who.
        task: what.
        seed: of the policy's draws, as in a rollout.
        delay: seconds to wait after every turn.

    Returns:
        Whether the task was solved.

    Raises:
        ValueError: no such task.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    show = _Screen(console, env.format)
    messages = [env.first_message(env.reset(task))]
    rng = random.Random(f"{seed}:{task}:0")
    view = EpisodeView(0, task, env.format, messages, rng)
    reader = TurnReader(env.format)
    show.line(f"{env.name} · {task} · {policy.name}", "bold")
    show.text(messages[0].text, SpanKind.CONTEXT)
    score, steps, won, done = 0.0, 0, False, False
    while not done:
        view.admissible = env.admissible() if "admissible" in policy.needs else None
        view.expert = env.expert_turn() if "expert_turn" in policy.needs else None
        turn = policy.act([view])[0]
        if turn.failure is not None:
            show.line(f"stopped: {turn.failure}", "bold red")
            return False
        messages.append(turn.message)
        show.turn(turn.message)
        result = env.step(reader.read(turn.message.text).action)
        messages.append(Message("user", result.observation))
        show.text(result.observation, SpanKind.OBSERVATION)
        score, steps, won, done = score + result.reward, steps + 1, result.info["won"], result.done
        time.sleep(delay)
    end = "won" if won else "out of steps" if result.info["truncated"] else "lost"
    show.line(f"{end} · {steps} steps · score {score:.3g}", "bold green" if won else "bold red")
    return won


class _Screen:
    """Prints texts by their spans; what they say is never markup or a control sequence."""

    def __init__(self, console: Console, format: str) -> None:
        self._console, self._format = console, get_format(format)
        self._coloured = bool(console.color_system) and not console.no_color

    def line(self, text: str, style: str) -> None:
        self._console.print(Text(text.translate(CONTROLS), style=style))

    def text(self, text: str, kind: SpanKind) -> None:
        shown = text.translate(CONTROLS).rstrip("\n")
        if not self._coloured:
            width = len("observation")
            lines = shown.split("\n")
            heads = [f"{kind.label:>{width}}│ ", *[" " * width + "│ "] * (len(lines) - 1)]
            shown = "\n".join(head + line for head, line in zip(heads, lines))
        self._console.print(Text(shown, style=STYLES[kind] if self._coloured else ""))

    def turn(self, message: Message) -> None:
        if message.reasoning_content:
            self.text(message.reasoning_content, SpanKind.REASON)
        spans = self._format.content_spans([Message("user", "task"), message])[1]
        for span in spans:
            self.text(message.text[span.start : span.end], span.kind)


def _policy(args: argparse.Namespace) -> Policy:
    if args.endpoint:
        from sad_components.evaluation.policies import EndpointPolicy

        if not args.model:
            raise ValueError("--endpoint needs --model, the model's name there")
        return EndpointPolicy(args.endpoint, args.model, args.temperature, seed=args.seed)
    if args.model:
        from sad_components.evaluation.generation import Generator
        from sad_components.evaluation.policies import ModelPolicy
        from sad_components.viewer.students import open_student

        student, transform, _ = open_student(args.model, args.tokenizer, args.style)
        generator = Generator(student, transform.tokenizer, temperature=args.temperature)
        return ModelPolicy(generator, transform, args.constrain, args.model)
    known: dict[str, Callable[[], Policy]] = {
        "expert": ExpertPolicy,
        "random": RandomPolicy,
        "human": HumanPolicy,
    }
    return known[args.policy]()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sad play", description=__doc__)
    parser.add_argument(
        "environment", help=f"{', '.join(ENVIRONMENTS)}, or the dotted path of a class"
    )
    parser.add_argument("--task", help="id of the task; without it the one of --seed")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of task and policy")
    parser.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the environment, for example split=train (may be repeated)",
    )
    parser.add_argument(
        "--policy", choices=["expert", "random", "human"], default="expert", help="who plays"
    )
    parser.add_argument(
        "--model",
        help="a student's folder, also an exported one; with --endpoint the model's name there",
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="where it is not in the model's folder")
    parser.add_argument(
        "--style",
        choices=["chat", "plain"],
        help="in which the model was trained: chat, where nothing is said; an export knows",
    )
    parser.add_argument("--constrain", action="store_true", help="admissible actions only")
    parser.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible server plays")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument(
        "--delay", type=float, default=0.0, metavar="S", help="seconds to wait after every turn"
    )
    return parser


def _option(text: str) -> tuple[str, Any]:
    """``key=value``; the value is JSON where it can be read as JSON, else text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"an option is KEY=VALUE; got {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


if __name__ == "__main__":
    sys.exit(main())
