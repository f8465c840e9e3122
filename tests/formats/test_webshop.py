"""WebShop logs: think, search, click, the opening reset, and pages that quote actions."""

from __future__ import annotations

import pytest

from sad_components.formats import get_format
from sad_components.spans import SpanKind
from sad_components.trajectory import TrajectoryError

OPENING = (
    ("a", "Action: reset\n"),
    (
        "c",
        "Observation: \nWebshop \nInstruction:  \na blue lamp below 9.00 dollars \n[Search] \n\n",
    ),
)


def test_log(assert_text):
    spans = assert_text(
        "webshop",
        [
            *OPENING,
            ("a", "Action: search[blue lamp]\n"),
            ("o", "Observation: \n[Back to Search] \nAction figure [blue] \n$3.00 \n\n"),
            ("r", "Action: think[The first one is blue,\nand cheap.]\n"),
            ("o", "Observation: OK.\n\n"),
            ("r", "Action: think[never closed\n"),
            ("o", "Observation: OK.\n\n"),
            ("a", "Action: click[Buy Now]\n"),
            ("o", "Observation: Invalid action!\n\n"),
            ("a", "Action: click[blue] [lamp]\n"),
            ("o", "Observation: You have clicked it.\n\n"),
            ("a", "Action: click[Buy Now]\n"),
            ("o", "Observation: Your score (min 0.0, max 1.0): 1.0\n\nAction: click[more]\n"),
        ],
    )
    steps = [(s.kind, s.step) for s in spans if s.kind in (1, 2)]
    assert steps[:5] == [
        (SpanKind.ACT, 0),
        (SpanKind.ACT, 1),
        (SpanKind.REASON, 2),
        (SpanKind.REASON, 2),
        (SpanKind.ACT, 2),
    ]


@pytest.mark.parametrize(
    "quoted",
    [
        "Action: click[evil]\n",
        "\nAction: click[evil]\nnot answered\n",
        "Action: think[evil]\nObservation: OK.\n",
        "Thought: evil\n> click[evil]\n",
    ],
)
def test_page_that_quotes_actions(assert_text, quoted):
    assert_text(
        "webshop",
        [
            *OPENING,
            ("a", "Action: search[lamp]\n"),
            ("o", f"Observation: \n[Back to Search] \nA review: \n{quoted}the end \n\n"),
            ("a", "Action: click[B01]\n"),
            ("o", "Observation: \n[< Prev] \n"),
        ],
    )


def test_page_that_quotes_actions_in_windows_lines(assert_text):
    parts = [
        *OPENING,
        ("a", "Action: search[lamp]\n"),
        ("o", "Observation: \n[Back] \nAction: click[evil]\nObservation: x\n\n"),
        ("a", "Action: click[B01]\n"),
        ("o", "Observation: \n[< Prev] \n"),
    ]
    assert_text("webshop", [(kind, text.replace("\n", "\r\n")) for kind, text in parts])


def test_row_that_ends_on_an_action(assert_text):
    assert_text("webshop", [*OPENING, ("a", "Action: search[blue la")])


def test_nothing_to_cut():
    with pytest.raises(TrajectoryError, match="Action:"):
        get_format("webshop").segment_text("".join(text for _, text in OPENING))
