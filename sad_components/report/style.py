"""How figures look: one palette for light and dark, for colour-blind eyes and for paper."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sad_components.spans import SpanKind

#: Light colour -> dark colour. Figures are drawn in the light ones; in the page's SVG each becomes
#: a variable that follows the reader's colour scheme. Series colours are those of Okabe and Ito.
INK, MUTED, GRID, PAPER = "#1f2430", "#5c6470", "#e4e7ec", "#fefefe"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b5558f", "#e69f00", "#56b4e8", "#6b7280")
_DARK = {
    INK: "#e8eaee",
    MUTED: "#a3abb8",
    GRID: "#2e3440",
    PAPER: "#171a21",
    **dict(
        zip(SERIES, ("#4da9e0", "#ff8f4d", "#35c79b", "#e291c2", "#f2bd4b", "#8fd0f5", "#aab2bf"))
    ),
    "#bfe6ff": "#12506f",
    "#ffe08a": "#6a5211",
}
#: Backgrounds of the agent's spans, as in ``sad spans --html``.
SPAN_COLOURS = {SpanKind.REASON: "#bfe6ff", SpanKind.ACT: "#ffe08a"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Figures have this width (inches), so that a telephone shows them legibly; PNGs this resolution.
WIDTH, DPI = 4.1, 150

_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # names come from files: a dollar sign is a dollar sign
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.hashsalt": "sad report",
    "svg.fonttype": "path",
}


@dataclass
class Picture:
    """A finished figure.

    Args:
        name: file name of its PNG, without the ending.
        title: what it shows.
        alt: what it says, in words, for who cannot see it.
        caption: how it is to be read; may be empty.
        svg: for the page; follows the reader's colour scheme.
        png: on white, for papers and slides.
    """

    name: str
    title: str
    alt: str
    caption: str
    svg: bytes
    png: bytes


def colour(index: int) -> str:
    """The colour of the ``index``-th series."""
    return SERIES[index % len(SERIES)]


def marker(index: int) -> str:
    """The marker of the ``index``-th series: colour is never the only difference."""
    return MARKERS[index % len(MARKERS)]


def line_style(index: int) -> str:
    """Solid for as many series as there are colours, then dashed, then dotted."""
    return ("-", "--", ":")[index // len(SERIES) % 3]


def picture(
    name: str,
    title: str,
    alt: str,
    draw: Callable[[Axes], None],
    *,
    caption: str = "",
    kind: SpanKind | None = None,
    height: float = 2.8,
) -> Picture:
    """Draws a figure of one panel.

    Args:
        name, title, alt, caption: see :class:`Picture`.
        draw: draws onto the axes.
        kind: the span kind it is about, shown as a chip in the span's colour.
        height: inches.
    """
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        draw(axes)
        if kind is not None:
            axes.set_title(
                kind.name,
                loc="right",
                fontsize=8,
                bbox={"boxstyle": "round,pad=0.35", "fc": SPAN_COLOURS[kind], "ec": "none"},
            )
        figure.draw_without_rendering()  # lays out once, not for each file
        figure.set_layout_engine(None)
        return Picture(name, title, alt, caption, _svg(figure), _png(figure))


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def _svg(figure: Figure) -> bytes:
    out = io.StringIO()
    plain = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(out, format="svg", transparent=True, metadata=plain)
    return _themed(out.getvalue()).encode()


def _themed(svg: str) -> str:
    """The drawing with its colours as variables that follow the reader's colour scheme."""
    light, dark = [], []
    for number, (colour, in_the_dark) in enumerate(_DARK.items()):
        svg = svg.replace(colour, f"var(--c{number})")
        light.append(f"--c{number}:{colour}")
        dark.append(f"--c{number}:{in_the_dark}")
    style = (
        f"<style>:root{{{';'.join(light)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{';'.join(dark)}}}}}</style>"
    )
    svg = re.sub("<!--.*?-->", "", svg, flags=re.DOTALL)  # they repeat the texts
    opening = svg.index(">", svg.index("<svg")) + 1
    return svg[:opening] + style + svg[opening:]
