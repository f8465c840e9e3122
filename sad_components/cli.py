"""The console script ``sad``: a table of commands, each in a module that loads when it is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from sad_components import __version__


class Command(NamedTuple):
    """Where a command lives: ``module`` offers ``main(argv) -> int`` with its own argparse."""

    module: str
    help: str


#: Name -> command. Importing this table imports none of the modules: ``sad --help`` stays fast.
COMMANDS = {
    "fetch-demo": Command(
        "sad_components.demo", "fetch SmolLM2-135M-Instruct, the demo's teacher, as a model folder"
    ),
    "spans": Command("sad_components.viewer.spans", "show a transcript file with its spans"),
    "stats": Command("sad_components.viewer.stats", "count episodes, steps and spans of a file"),
    "convert": Command(
        "sad_components.viewer.convert", "write a transcript file as canonical JSONL"
    ),
    "train-tokenizer": Command(
        "sad_components.data.train_tokenizer", "train a small BPE tokenizer on transcripts"
    ),
    "prune": Command(
        "sad_components.pruning.command", "cut a smaller student out of a teacher, by importance"
    ),
    "doctor": Command(
        "sad_components.doctor.command", "check a config: models, data, memory, time, before a run"
    ),
    "lm-eval": Command(
        "sad_components.lm_harness.command", "lm-eval's own command, with our model and our tasks"
    ),
    "card": Command(
        "sad_components.export.card_command", "write a run's model card anew, with its success rate"
    ),
    "report": Command("sad_components.report.command", "make a web page about runs, and PNGs"),
    "export": Command(
        "sad_components.viewer.export", "write a student for a phone's runtime, or quantised"
    ),
    "chat": Command("sad_components.viewer.chat", "talk to a student, trained or exported"),
    "play": Command("sad_components.viewer.play", "show an episode live in the terminal"),
}

#: What the user can mend: bad values, missing files or packages, a full disk, no network.
_USER_ERRORS = (ValueError, OSError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``sad <command> ...``; the exit code is the command's, or 2 after a user's error.

    A user's error is printed to stderr as one line ``sad: error: ...``. With ``SAD_DEBUG=1`` in
    the environment it is raised instead, with its traceback.

    Args:
        argv: the arguments after ``sad``; those of the process if None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"sad {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _fail(f"no command {name!r}; commands: {', '.join(COMMANDS)}")
    try:
        return import_module(COMMANDS[name].module).main(rest)
    except KeyboardInterrupt:
        print("sad: interrupted", file=sys.stderr)
        return 130
    except _USER_ERRORS as error:
        if os.environ.get("SAD_DEBUG") == "1":
            raise
        return _fail(" ".join(str(error).split()) or type(error).__name__)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sad [--help | --version] <command> [options]",
            "",
            "Tools around structured agent distillation; training itself runs through `tune run`.",
            "",
            "commands:",
            *rows,
            "",
            "`sad <command> --help` describes a command. SAD_DEBUG=1 shows tracebacks.",
        ]
    )


def _fail(message: str) -> int:
    print(f"sad: error: {message}", file=sys.stderr)
    return 2
