"""Streams the rows of a transcript file, each cut into spans or skipped with its reason."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sad_components.data.rendering import Rendered, render_chatml
from sad_components.data.shipped import resolve_source
from sad_components.formats.base import Format
from sad_components.formats.registry import (
    FLAT,
    Detector,
    flat_text,
    get_format,
    list_formats,
    segment,
    to_trajectory,
)
from sad_components.spans import Span, check_cover, merge
from sad_components.trajectory import Trajectory, TrajectoryError

if TYPE_CHECKING:
    from sad_components.data.tokenizers import OffsetTokenizer
    from sad_components.data.transform import SpanTokenizer

#: Rows from which ``auto`` decides.
SAMPLE = 50
#: Suffixes of files that are one JSON document instead of one object a line.
DOCUMENT_SUFFIXES = (".json", ".traj")


#: First bytes of files that people try -> what they are, and what to do.
_OTHER_KINDS = {
    b"\x1f\x8b": ("gzip-compressed", "unpack it first: gunzip -k FILE"),
    b"PK\x03\x04": ("a zip archive", "unpack it first: unzip FILE"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "unpack it first: unzstd FILE"),
    b"PAR1": ("Parquet", "write it as JSONL first: datasets.Dataset.from_parquet(..).to_json(..)"),
}


@dataclass
class FileRow:
    """A row as found: ``row`` is its 0-based index; ``record`` is None when it is unreadable."""

    row: int
    where: str
    record: Mapping[str, Any] | None
    problem: str | None = None


@dataclass
class CutRow:
    """A row with its spans.

    Args:
        row: 0-based index in the file (blank lines do not count).
        format: name of the format that cut it; None when none did.
        text: the flat text, or the rendered chat; empty when skipped.
        spans: in order, covering ``text``.
        literal: stretches of ``text`` in which special tokens are plain text (see ``Rendered``).
        skipped: why the row could not be cut; None when it was.
        notes: what the user should know of the cut.
    """

    row: int
    format: str | None = None
    text: str = ""
    spans: list[Span] = field(default_factory=list)
    literal: list[tuple[int, int]] = field(default_factory=list)
    skipped: str | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``sad spans --json`` prints."""
        spans = [[s.start, s.end, s.kind.label, s.step] for s in self.spans]
        return {
            "row": self.row,
            "format": self.format,
            "text": self.text,
            "spans": spans,
            "skipped": self.skipped,
            **({"notes": self.notes} if self.notes else {}),
        }


def iter_rows(path: Path) -> Iterator[FileRow]:
    """The rows of a file: JSONL; one JSON document (``.json``, ``.traj``); or plain ``.txt``.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is a folder, or of a kind that is not read here (the remedy is named).
    """
    _refuse_other_kinds(path)
    if path.suffix == ".txt":
        text = path.read_bytes().decode("utf-8", errors="replace")
        yield FileRow(0, str(path), {"raw": text})
    elif path.suffix in DOCUMENT_SUFFIXES:
        yield from _document_rows(path)
    else:
        yield from _line_rows(path)


def _refuse_other_kinds(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name one file in it")
    with open(path, "rb") as handle:
        start = handle.read(4)
    for magic, (kind, remedy) in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise ValueError(f"{path} is {kind}, but rows are read from JSONL; {remedy}")


def _line_rows(path: Path) -> Iterator[FileRow]:
    index = 0
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield _parsed(index, f"line {number}", line)
                index += 1


def _document_rows(path: Path) -> Iterator[FileRow]:
    found = _parsed(0, str(path), path.read_bytes(), any_type=True)
    records = found.record if isinstance(found.record, list) else [found.record]
    for index, record in enumerate(records):
        if found.problem or isinstance(record, dict):
            yield FileRow(index, f"item {index}", record, found.problem)
        else:
            yield FileRow(index, f"item {index}", None, f"item {index}: {_no_object(record)}")


def _parsed(index: int, where: str, raw: bytes, any_type: bool = False) -> FileRow:
    try:
        record = json.loads(raw.decode("utf-8-sig"))  # a byte order mark may come first
    except UnicodeDecodeError as error:
        return FileRow(index, where, None, f"{where}: not UTF-8 ({error.reason})")
    except (json.JSONDecodeError, RecursionError) as error:
        what = f"{error.msg} at column {error.colno}" if hasattr(error, "colno") else str(error)
        return FileRow(index, where, None, f"{where}: not JSON ({what})")
    if not any_type and not isinstance(record, dict):
        return FileRow(index, where, None, f"{where}: {_no_object(record)}")
    return FileRow(index, where, record)


def _no_object(record: Any) -> str:
    return f"a row is a JSON object; got {type(record).__name__}"


class Cutter:
    """Cuts the rows of one file.

    Args:
        path: the file.
        format: a format's name, or ``auto`` to decide from the first rows.
        tokenizer: folder of a Hugging Face tokenizer, whose chat template then renders the chat
            rows (ChatML without); None for ChatML.

    Raises:
        ValueError: no such format.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, format: str = "auto", tokenizer: str | None = None) -> None:
        self.path = path
        self.tokenizer: OffsetTokenizer | None = None
        self._transform: SpanTokenizer | None = None
        if tokenizer:
            self.tokenizer, self._transform = _load_tokenizer(tokenizer)
        self._format: Format | None = None if format == "auto" else get_format(format)
        self._detector: Detector | None = None
        self._problem = "the file has no readable row"
        if self._format is None:
            readable = (r.record for r in iter_rows(path) if r.record is not None)
            sample = list(islice(readable, SAMPLE))
            try:
                self._detector = Detector(sample) if sample else None
            except TrajectoryError as error:
                self._problem = str(error)

    def explain(self) -> str:
        """One line on how formats are decided."""
        if self._format is not None:
            return f"format {self._format.name} for every row, as asked"
        if self._detector is None:
            return f"format auto: {self._problem}"
        return f"format auto: {self._detector.explain()}"

    def trajectory(self, row: FileRow) -> Trajectory:
        """A row as a canonical record.

        Raises:
            TrajectoryError: the row is unreadable or of no known format.
        """
        return to_trajectory(row.record or {}, self._choose(row))

    def rows(self, limit: int | None = None) -> Iterator[CutRow]:
        """Every row of the file, cut or skipped with the reason, one at a time."""
        for row in islice(iter_rows(self.path), limit):
            yield self.cut(row)

    def cut(self, row: FileRow) -> CutRow:
        """One row, cut or skipped with the reason; never raises for what the row holds."""
        try:
            format = self._choose(row)
            record = row.record or {}
            text = flat_text(record)
            if text is not None and format.row_evidence(record).score == 0:
                spans = format.segment_text(text)
                check_cover(spans, len(text))
                return CutRow(row.row, format.name, text, spans, [(0, len(text))])
            trajectory = to_trajectory(record, format)
            renderings = self._render(trajectory)
            rendered = _one_text(renderings)
        except ValueError as error:
            problem = str(error)
            where = "" if problem.startswith(row.where) else f"{row.where}: "
            return CutRow(row.row, skipped=where + problem)
        notes = [str(note) for note in trajectory.meta.get("notes", [])]
        if len(renderings) > 1:
            notes.append(
                f"the chat template rewrites earlier turns: {len(renderings)} renderings in a row, "
                "one for each agent turn, as on_rewrite: per_turn trains on them"
            )
        name = trajectory.format or format.name
        return CutRow(row.row, name, rendered.text, rendered.spans, rendered.literal, notes=notes)

    def _choose(self, row: FileRow) -> Format:
        if row.record is None:
            raise TrajectoryError(row.problem or "unreadable")
        if self._format is not None:
            return self._format
        if self._detector is None:
            # none of the first rows fits any format, but a later one may
            return Detector([row.record]).choose(row.record)[0]
        return self._detector.choose(row.record)[0]

    def _render(self, trajectory: Trajectory) -> list[Rendered]:
        """One rendering; several where the tokenizer's template rewrites earlier turns."""
        if trajectory.meta.get("layout") == FLAT:
            return [_joined(trajectory)]
        if self._transform is not None:
            return self._transform.render(trajectory)
        return [render_chatml(trajectory.messages, segment(trajectory))]


def _load_tokenizer(folder: str) -> tuple[OffsetTokenizer, SpanTokenizer]:
    """The tokenizer and what renders by its template; imported only when asked for, being slow."""
    from sad_components.data.tokenizers import HFTokenizer
    from sad_components.data.transform import SpanTokenizer

    tokenizer = HFTokenizer(folder)
    return tokenizer, SpanTokenizer(tokenizer, on_rewrite="per_turn")


def _one_text(renderings: list[Rendered]) -> Rendered:
    """Renderings one behind the other.

    Raises:
        TrajectoryError: there is none.
    """
    if not renderings:
        raise TrajectoryError("no agent turn to render")
    spans: list[Span] = []
    literal: list[tuple[int, int]] = []
    start = 0
    for rendered in renderings:
        spans.extend(span.shifted(start) for span in rendered.spans)
        literal.extend((first + start, last + start) for first, last in rendered.literal)
        start += len(rendered.text)
    return Rendered("".join(r.text for r in renderings), merge(spans), literal)


def _joined(trajectory: Trajectory) -> Rendered:
    """The flat text a record was made from, with its spans."""
    spans: list[Span] = []
    start = 0
    for message, cut in zip(trajectory.messages, segment(trajectory), strict=True):
        spans.extend(s.shifted(start) for s in cut)
        start += len(message.text)
    text = "".join(m.text for m in trajectory.messages)
    return Rendered(text, merge(spans), [(0, len(text))])


def with_progress(rows: Iterator[Any], every: int = 100) -> Iterator[Any]:
    """The rows, with a count on stderr when that is a terminal."""
    show = sys.stderr.isatty()
    count = 0
    for count, row in enumerate(rows, start=1):
        yield row
        if show and count % every == 0:
            print(f"\r{count} rows", end="", file=sys.stderr, flush=True)
    if show and count >= every:
        print(f"\r{count} rows", file=sys.stderr)


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that all commands on transcript files share."""
    names = ", ".join(f.name for f in list_formats())
    parser.add_argument(
        "file",
        type=_existing_file,
        help="JSONL, one JSON document (.json, .traj), .txt, or shipped:household/train",
    )
    parser.add_argument("--format", default="auto", help=f"auto (default), {names}")


def _existing_file(value: str) -> Path:
    path = Path(value).expanduser()
    try:
        return path if path.exists() else resolve_source(value)
    except FileNotFoundError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def non_negative(value: str) -> int:
    """argparse type of ``--limit``."""
    number = int(value)
    if number < 0:
        raise argparse.ArgumentTypeError(f"a count is 0 or more; got {value}")
    return number
