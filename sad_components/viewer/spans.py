"""``sad spans``: shows how a file's rows are cut, in colour, as JSON, or as a web page."""

from __future__ import annotations

import argparse
import html
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TextIO

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from sad_components.spans import SpanKind
from sad_components.viewer.reading import (
    CutRow,
    Cutter,
    add_file_arguments,
    non_negative,
    with_progress,
)

STYLES = {
    SpanKind.CONTEXT: "dim",
    SpanKind.REASON: "black on bright_cyan",
    SpanKind.ACT: "black on bright_yellow",
    SpanKind.OBSERVATION: "green",
}
#: A picture has the colours of the page: dark letters on white, and light grounds.
_SVG_THEME = TerminalTheme(
    background=(255, 255, 255),
    foreground=(34, 34, 34),
    normal=[
        *((0, 0, 0), (176, 0, 32), (20, 105, 43), (138, 90, 0)),
        *((30, 80, 160), (130, 40, 130), (0, 110, 120), (90, 90, 90)),
    ],
    bright=[
        *((120, 120, 120), (220, 60, 80), (60, 160, 90), (255, 224, 138)),
        *((90, 140, 220), (190, 110, 190), (191, 230, 255), (255, 255, 255)),
    ],
)
_SVG_WIDTH = 84
#: Control characters would drive the terminal; their pictures are as long and do not.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_LEGEND = "supervised: reason, act; not supervised: context, observation"
_CSS = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace;
      border: 1px solid #ddd; border-radius: 6px; padding: 1rem }
.context { color: #888 } .observation { color: #14692b }
.reason { background: #bfe6ff } .act { background: #ffe08a } .branch { border-left: 3px solid #c00 }
.skipped { color: #b00020 } .note { color: #8a5a00 }
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``sad spans``; 0, or 1 when no row could be cut."""
    args = _parser().parse_args(argv)
    cutter = Cutter(args.file, args.format, args.tokenizer)
    print(cutter.explain(), file=sys.stderr)
    cut = skipped = 0
    with _output(args) as output:
        for row in with_progress(cutter.rows(args.limit)):
            cut += row.skipped is None
            skipped += row.skipped is not None
            output.write(row)
    print(f"{cut} rows cut, {skipped} skipped", file=sys.stderr)
    return 0 if cut or args.limit == 0 else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sad spans", description=__doc__)
    add_file_arguments(parser)
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="render chat rows by this tokenizer's chat template"
    )
    parser.add_argument("--limit", type=non_negative, metavar="N", help="only the first N rows")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON object a row on stdout")
    how.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained web page")
    how.add_argument("--svg", type=Path, metavar="FILE", help="write the terminal view as SVG")
    return parser


class _Output(Protocol):
    """Where rows go; a context manager that finishes the output."""

    def __enter__(self) -> _Output: ...
    def __exit__(self, *exc: object) -> None: ...
    def write(self, row: CutRow) -> None:
        """Shows one row."""


def _output(args: argparse.Namespace) -> _Output:
    if args.json:
        return _Json(sys.stdout)
    if args.html:
        return _Html(args.html, args.file.name)
    return _Terminal(args.svg)


class _Json:
    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __enter__(self) -> _Json:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stream.flush()

    def write(self, row: CutRow) -> None:
        self.stream.write(json.dumps(row.to_dict()) + "\n")


class _Terminal:
    """Colours where there are some; else (a pipe, NO_COLOR) one labelled line for each line."""

    def __init__(self, svg: Path | None) -> None:
        self.svg = svg
        self.console = Console(
            highlight=False,
            markup=False,
            record=svg is not None,
            force_terminal=True if svg else None,
            soft_wrap=svg is None,
            file=io.StringIO() if svg else None,
            width=_SVG_WIDTH if svg else None,
        )
        self.coloured = bool(self.console.color_system) and not self.console.no_color

    def __enter__(self) -> _Terminal:
        if self.coloured:
            legend = Text("spans: ")
            for kind, style in STYLES.items():
                legend.append(kind.label, style=style).append("  ")
            self.console.print(legend)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.svg is not None:
            self.console.save_svg(str(self.svg), title="sad spans", theme=_SVG_THEME)

    def write(self, row: CutRow) -> None:
        if row.skipped is not None:
            self.console.print(Text(f"── row {row.row}: skipped, {row.skipped}", style="bold red"))
            return
        self.console.print(Text(f"── row {row.row}: {row.format}", style="bold"))
        for note in row.notes:
            self.console.print(Text(f"note: {note}", style="yellow"))
        self.console.print(_coloured(row) if self.coloured else Text(_labelled(row)))


def _coloured(row: CutRow) -> Text:
    shown = Text()
    for span in row.spans:
        piece = row.text[span.start : span.end].translate(_CONTROLS)
        shown.append(piece, style=STYLES[span.kind])
    return shown


def _labelled(row: CutRow) -> str:
    """One line for each line of each span: kind, step, ``*`` at a branch; ``↵`` is a newline."""
    lines = []
    for span in row.spans:
        piece = row.text[span.start : span.end].translate(_CONTROLS)
        label = f"{span.kind.label:>11} {span.step or '':>2}{'*' if span.branch else ' '}"
        for line in piece.removesuffix("\n").split("\n"):
            lines.append(f"{label}│ {line}↵")
            label = " " * len(label)
        if not piece.endswith("\n"):
            lines[-1] = lines[-1].removesuffix("↵")
    return "\n".join(lines)


class _Html:
    def __init__(self, path: Path, title: str) -> None:
        self.path = path
        self.title = html.escape(title)

    def __enter__(self) -> _Html:
        self.stream = open(self.path, "w", encoding="utf-8")
        self.stream.write(
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>Spans of {self.title}</title><style>{_CSS}</style></head>\n"
            f"<body><h1>Spans of {self.title}</h1>\n<p>{_legend_html()}</p>\n"
        )
        return self

    def __exit__(self, *exc: object) -> None:
        self.stream.write("</body></html>\n")
        self.stream.close()

    def write(self, row: CutRow) -> None:
        if row.skipped is not None:
            reason = html.escape(row.skipped)
            self.stream.write(f'<p class="skipped">Row {row.row}: skipped, {reason}</p>\n')
            return
        self.stream.write(f"<h2>Row {row.row}: {html.escape(str(row.format))}</h2>\n")
        for note in row.notes:
            self.stream.write(f'<p class="note">Note: {html.escape(note)}</p>\n')
        pieces = []
        for span in row.spans:
            label = span.kind.label + (" branch" if span.branch else "")
            piece = html.escape(row.text[span.start : span.end])
            title = f"{span.kind.label}, step {span.step}"
            pieces.append(f'<span class="{label}" title="{title}">{piece}</span>')
        self.stream.write(f"<pre>\n{''.join(pieces)}</pre>\n")


def _legend_html() -> str:
    shown = " ".join(f'<span class="{k.label}">{k.label}</span>' for k in SpanKind)
    return f"{shown} ({_LEGEND}; a red line marks a branch position)"
