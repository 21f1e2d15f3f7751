"""Draws docs/concepts/dense-block.svg: python docs/concepts/figure.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

LAYERS, FIRST = 4, 3.0  # FIRST: the width of the block's input, where a layer's columns are 1
INK, GREY, PAPER = "#24292f", "#6e7781", "#eef1f4"
COLOURS = ("#3b6fb6", "#2f9c95", "#e09f3e", "#c8553d")
WIDTH = FIRST + LAYERS


def box(ax: Axes, x: float, y: float, width: float, height: float, colour: str, text: str) -> None:
    ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="white", lw=1.5))
    dark = colour in COLOURS
    label(ax, x + width / 2, y + height / 2, text, "white" if dark else INK)


def label(ax: Axes, x: float, y: float, text: str, colour: str = INK, size: float = 9.5) -> None:
    ax.text(x, y, text, color=colour, size=size, ha="center", va="center")


def strip(ax: Axes, y: float, names: str, title: str) -> None:
    """The whole [M, C + L k], its columns in the colours of the layers that write them."""
    box(ax, 0, y, FIRST, 0.8, "#d3dae2", names.format("0"))
    for i, colour in enumerate(COLOURS):
        box(ax, FIRST + i, y, 1, 0.8, colour, names.format(i + 1))
        label(ax, FIRST + i + 0.5, y + 1.25, "$k$", GREY, 8.5)
    ax.annotate("", (0, y + 1.0), (FIRST, y + 1.0), arrowprops={"arrowstyle": "<->", "color": GREY})
    label(ax, FIRST / 2, y + 1.25, "$C$ channels", GREY, 8.5)
    label(ax, WIDTH + 1.05, y + 0.55, title)
    label(ax, WIDTH + 1.05, y + 0.2, "$[M,\\ C + L\\,k]$")


def saved(ax: Axes, y: float, text: str) -> None:
    style = "round,pad=0,rounding_size=0.18"
    place = (WIDTH + 0.45, y)
    ax.add_patch(FancyBboxPatch(place, 1.2, 0.6, style, facecolor="white", edgecolor=INK, lw=1.2))
    label(ax, WIDTH + 1.05, y + 0.3, text)


def link(ax: Axes, x: float, start: float, end: float, colour: str) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (x, end), (x, start), arrowprops=arrow)


def below(ax: Axes, *lines: str) -> None:
    for i, line in enumerate(lines):
        label(ax, WIDTH / 2, -4.75 - 0.4 * i, line, GREY)


def forward(ax: Axes) -> None:
    ax.set_title("Forward: each layer reads a prefix and writes its own columns", **TITLE)
    strip(ax, 0, "$x_{}$", "the buffer")
    for i, colour in enumerate(COLOURS):
        y = -1.25 - 0.95 * i
        box(ax, 0, y, FIRST + i, 0.6, PAPER, "norm, relu, 1×1    norm, relu, 3×3")
        box(ax, FIRST + i, y, 1, 0.6, colour, "write")
        link(ax, FIRST + i + 0.5, y + 0.6, 0, colour)
        saved(ax, y, f"$y_{i + 1}\\ [M,K]$")
    below(
        ax,
        "Mean and variance of columns: taken once, as they are written;",
        "every later layer normalises with them, by its own γ and β.",
    )
    label(ax, WIDTH + 1.05, -4.75, "kept for", GREY)
    label(ax, WIDTH + 1.05, -5.15, "backward", GREY)


def backward(ax: Axes) -> None:
    ax.set_title("Backward: from the last layer to the first; the correction is a line", **TITLE)
    strip(ax, 0, "$d_{}$", "the gradient")
    for row, (i, colour) in enumerate(reversed(list(enumerate(COLOURS)))):
        y = -1.25 - 0.95 * row
        box(ax, 0, y + 0.2, FIRST + i, 0.4, PAPER, "")
        label(ax, FIRST / 2, y + 0.4, "$d$ += scale · $g$")
        for x, width in [(0.0, FIRST)] + [(FIRST + j, 1.0) for j in range(i)]:
            tint: dict[str, Any] = {"facecolor": "white", "edgecolor": GREY, "lw": 0.8}
            ax.add_patch(Rectangle((x + 0.04, y), width - 0.08, 0.16, **tint))
        box(ax, FIRST + i, y, 1, 0.6, colour, "+ line")
        link(ax, FIRST + i + 0.5, 0, y + 0.6, colour)
        label(ax, WIDTH + 1.05, y + 0.42, f"layer {i + 1}:", INK)
        label(ax, WIDTH + 1.05, y + 0.1, "shift, slope", GREY, 8.5)
    below(
        ax,
        "Each reader adds to $d$, and two numbers per column to the lines (white);",
        "a column gets shift + slope · ($x$ − mean) once, when all have read it.",
    )


TITLE: dict[str, Any] = {"loc": "left", "size": 11.5, "color": INK, "pad": 6}


def main() -> None:
    matplotlib.rcParams.update({"svg.hashsalt": "densekit", "font.family": "DejaVu Sans"})
    figure, axes = plt.subplots(2, 1, figsize=(8.4, 9.4), layout="constrained")
    for ax, draw in zip(axes, (forward, backward), strict=True):
        draw(ax)
        ax.set(xlim=(-0.15, WIDTH + 1.95), ylim=(-5.5, 1.5))
        ax.axis("off")
    file = Path(__file__).with_name("dense-block.svg")
    figure.savefig(file, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
