"""curves.png: what a run's log.jsonl says, to look at."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from densekit.files import write_atomically

SPOKEN = {"top1": "top-1", "auroc": "AUROC"}
TITLES = {"top1": "Top-1 error, %", "auroc": "1 - AUROC, %"}
TRAIN, EVAL, QUIET, GRID = "#8fb3d9", "#d1495b", "#666666", "#e6e6e6"


def draw(lines: Iterable[dict[str, Any]], title: str, file: Path) -> None:
    """`figure_of` these lines, written whole or not at all."""
    png = io.BytesIO()
    figure_of(lines, title).savefig(png, dpi=120, format="png")
    write_atomically(file, png.getbuffer())


def figure_of(lines: Iterable[dict[str, Any]], title: str) -> Figure:
    """Loss, error (of top-1, else of the AUROC) and learning rate over epochs, a panel each."""
    by_kind: dict[str, list[dict[str, Any]]] = {"train": [], "eval": [], "event": []}
    for line in lines:
        by_kind[line["kind"]].append(line)
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, error, rate = figure.subplots(1, 3)
    _curves(loss, by_kind, "loss", "Loss")
    of_top1 = any("top1" in each for each in by_kind["eval"]) or not by_kind["eval"]
    name = "top1" if of_top1 else "auroc"
    for each in by_kind["train"] + by_kind["eval"]:
        if each.get(name) is not None:  # there is no top1 under mixing
            each["error"] = 100 * (1 - each[name]) or None  # a log axis has no zero
    _curves(error, by_kind, "error", TITLES[name])
    _mark_best(error, by_kind["eval"], name)
    train = by_kind["train"]
    rate.plot([t["epoch"] for t in train], [t["lr"] for t in train], color=QUIET)
    _dress(rate, "Learning rate")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def _curves(axes: Axes, by_kind: dict[str, list[dict[str, Any]]], key: str, title: str) -> None:
    for kind, color, width in (("train", TRAIN, 1.2), ("eval", EVAL, 2.0)):
        points = [(line["epoch"], line[key]) for line in by_kind[kind] if line.get(key) is not None]
        if points:
            marker = "o" if kind == "eval" and len(points) <= 30 else None
            axes.plot(
                *zip(*points, strict=True),
                color=color,
                linewidth=width,
                label=kind,
                marker=marker,
                markersize=3.5,
            )
    if axes.lines:
        axes.legend(frameon=False)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    _dress(axes, title)


def _mark_best(axes: Axes, evaluations: list[dict[str, Any]], name: str) -> None:
    counted = [line for line in evaluations if line.get(name) is not None]
    best = max(counted, key=lambda line: line[name], default=None)
    if best and best["error"]:
        axes.axhline(best["error"], color=EVAL, linewidth=0.8, linestyle=":")
        axes.annotate(
            f"best {SPOKEN[name]} {best[name]:.4f}",
            (axes.get_xlim()[0], best["error"]),
            (4, 4),
            textcoords="offset points",
            color=EVAL,
            fontsize=9,
        )


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("epoch", fontsize=9)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, length=0)
    axes.spines[:].set_visible(False)
