"""docs/formats.md: its example runs, its capture is what the viewer prints, its table is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sad_components import formats
from sad_components.formats import registry
from sad_components.viewer import spans

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "formats.md").read_text(encoding="utf-8")


def block(marker, language):
    found = re.search(rf"<!-- {marker} -->\n```{language}\n(.*?)^```$", PAGE, re.S | re.M)
    assert found, f"docs/formats.md has no block {marker!r}"
    return found[1]


def test_every_format_stands_in_the_table():
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))
    assert named == {f.name for f in formats.list_formats()}


def test_capture_is_what_the_viewer_prints(capsys):
    assert spans.main([str(DOCS / "examples" / "transcripts.jsonl")]) == 0
    assert capsys.readouterr().out == block("capture", "text")


def test_capture_shows_every_format():
    shown = set(re.findall(r"^── row \d+: (\w+)$", block("capture", "text"), re.M))
    assert shown == {f.name for f in formats.list_formats()} - {"canonical"}


def test_own_format(monkeypatch):
    formats.list_formats()
    monkeypatch.setattr(registry, "_FORMATS", dict(registry._FORMATS))
    exec(compile(block("example: own format", "python"), "docs/formats.md", "exec"), {})
    row = {"raw": "A door.\n? It may be open.\n! push\nIt opens.\n"}
    format, why = formats.detect([row])
    assert (format.name, why) == ("question_marks", "2 '? ' or '! ' lines")
    trajectory = registry.to_trajectory(row, format)
    kinds = [s.kind.label for cut in registry.segment(trajectory) for s in cut]
    assert kinds == ["context", "reason", "act", "observation"]
    with pytest.raises(ValueError, match="no line starts"):
        format.segment_text("nothing")
