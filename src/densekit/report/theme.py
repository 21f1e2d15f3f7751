"""Figure style: PNG on white, and SVG in the page's colours, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from densekit.training import curves

INK, SOFT, LINE, FILL = "#1d1d1f", "#63636b", "#e3e1dc", "#d9653b"
SERIES = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8f6b00", "#2f9fd8", "#6a51a3", "#777776",
)  # fmt: skip
"""The colour-blind-safe palette of Okabe and Ito."""
CSS_VARIABLES = {
    INK: "ink", SOFT: "soft", LINE: "line", FILL: "fill",
    **{colour: f"s{i}" for i, colour in enumerate(SERIES)},
    curves.TRAIN: "s5", curves.EVAL: "s1", curves.QUIET: "soft", curves.GRID: "line",
}  # fmt: skip
"""The page's CSS variable of each colour."""
STYLE: dict[Any, Any] = {
    "font.size": 9, "font.sans-serif": ["DejaVu Sans"], "text.color": INK,
    "axes.edgecolor": LINE, "axes.labelcolor": SOFT, "axes.titlecolor": INK,
    "xtick.color": SOFT, "ytick.color": SOFT, "xtick.major.size": 0, "ytick.major.size": 0,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": LINE, "grid.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "legend.title_fontsize": 8.5,
    "svg.fonttype": "none", "svg.hashsalt": "densekit", "axes.titlelocation": "left",
    "axes.titlesize": 10, "axes.labelsize": 9,
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """Figures made or written in this context use STYLE."""
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(width: float = 4.2, height: float = 4.2) -> Figure:
    """Sizes in inches; the default, at 72 points per inch, is as wide as a phone."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_png(figure: Figure) -> bytes:
    """On white."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    return out.getvalue()


def as_svg(figure: Figure, label: str) -> Markup:
    """An inline element without a background; `label` describes it for screen readers."""
    for axes in figure.axes:
        axes.set_facecolor("none")
    out = io.StringIO()
    figure.savefig(out, format="svg", facecolor="none", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)  # ids must be unique on a page
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    said = Markup('<svg role="img" aria-label="{}"').format(label)
    return Markup(text.replace("<svg", said, 1))
