"""A report's figures. n images, K classes.

ROC and precision-recall curves, calibration, confusion and class balance. Curves are drawn from
exact counts of images; nothing is smoothed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from densekit.infer.metrics import BINS
from densekit.infer.ranking import Counts, Ranking
from densekit.report.answers import Judgement
from densekit.report.theme import FILL, INK, LINE, SERIES, SOFT, new_figure

NAMED_CURVES = 5  # with more classes than colours, only this many, the lowest, are coloured
CELLS_NAMED = 20  # classes up to which a confusion matrix shows names and counts
PANELS, ACROSS = 21, 3  # multilabel confusion matrices: at most, and per row
BARS = 30  # classes up to which each has its own bar
NAME_LENGTH = 22  # characters of a class name in a figure


@dataclass(frozen=True, eq=False)
class Curve:
    """A class' line, and its summary number."""

    name: str
    x: np.ndarray
    y: np.ndarray
    area: float


def roc_curve(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """1 - specificity and sensitivity, both from 0 to 1: one point for each distinct score."""
    x = np.concatenate([[0], counts.alarms]) / counts.negatives
    return x, np.concatenate([[0], counts.hits]) / counts.positives


def precision_recall_curve(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision, one point for each distinct score; starts at recall 0, precision 1, as
    in scikit-learn."""
    recall = np.concatenate([[0], counts.hits]) / counts.positives
    return recall, np.concatenate([[1], counts.hits / (counts.hits + counts.alarms)])


def calibration_points(
    probabilities: np.ndarray, came_true: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per non-empty one of BINS bins: the mean probability, the share that is correct, and the
    count. Arguments: float64 and bool, [m] both."""
    edges = np.linspace(0, 1, BINS + 1)[1:-1]
    place = np.searchsorted(edges, probabilities)
    there = np.bincount(place, minlength=BINS)
    has = there > 0
    sums = np.bincount(place, probabilities, BINS)[has], np.bincount(place, came_true, BINS)[has]
    return sums[0] / there[has], sums[1] / there[has], there[has]


def draw_roc(answered: Judgement) -> Figure:
    """With the AUROC of each class."""
    figure, axes = _square("ROC, with the area under it", "1 - specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
    found = [
        Curve(name, *roc_curve(counts), float(counts.auroc()))
        for name, counts in _ranked(answered)
        if counts.positives and counts.negatives
    ]
    _curves(axes, found)
    return figure


def draw_precision_recall(answered: Judgement) -> Figure:
    """With the average precision of each class."""
    figure, axes = _square(
        "Precision and recall, with the average precision", "recall", "precision"
    )
    found = [
        Curve(name, *precision_recall_curve(counts), float(counts.average_precision()))
        for name, counts in _ranked(answered)
        if counts.positives
    ]
    _curves(axes, found, step=True)
    return figure


def draw_calibration(answered: Judgement) -> Figure:
    """Of the top-1 class; or of all classes together if multilabel or binary."""
    figure = new_figure()
    axes, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    mean, share, there = calibration_points(*answered.claims())
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=":")
    axes.vlines(mean, mean, share, color=FILL, linewidth=1.2, alpha=0.6)
    axes.plot(mean, share, color=SERIES[0], linewidth=1.2, alpha=0.5)
    axes.scatter(mean, share, s=12 + 150 * there / there.max(), color=SERIES[0], linewidths=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title="Calibration")
    axes.set_ylabel("it was so" if answered.several else "the answer was right")
    edges = np.linspace(0, 1, BINS + 1)
    below.hist(answered.claims()[0], bins=edges.tolist(), color=SERIES[0], alpha=0.5)
    below.set(xlabel="probability", ylabel="count")
    below.locator_params(axis="y", nbins=3)
    return figure


def draw_confusion(answered: Judgement) -> Figure:
    """A row for each label, a column for each prediction; one matrix per class if multilabel."""
    names = answered.opened.classes
    if not answered.several:
        few = len(names) <= CELLS_NAMED
        side = max(4.0, 1.6 + 0.36 * len(names)) if few else 6.2
        figure = new_figure(side + 0.3, side)
        axes = figure.subplots()
        _cells(axes, np.array(answered.found["confusion"]), names)
        axes.set(title="Confusion", xlabel="answer", ylabel="label")
        return figure
    shown = range(min(len(names), PANELS))
    if len(names) == 1:
        figure = new_figure()
        panels = [figure.subplots()]
    else:
        rows = -(-len(shown) // ACROSS)
        figure = new_figure(1.6 * ACROSS, 1.75 * rows)
        panels = list(figure.subplots(rows, ACROSS, squeeze=False).flat)
    for k, axes in zip(shown, panels, strict=False):
        said = ["no", "yes"] if len(names) > 1 else [f"not {names[k]}", names[k]]
        _cells(axes, answered.confusion_of(k), said)
        axes.set_title(short(names[k]) if len(names) > 1 else "Confusion")
        axes.set(xlabel="answer", ylabel="label")
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return figure


def _cells(axes: Axes, confusion: np.ndarray, names: Sequence[str]) -> None:
    """int [K, K], shaded by share of the row."""
    count = len(names)
    few = count <= CELLS_NAMED
    rows = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, rows, out=np.zeros(confusion.shape), where=rows > 0)
    shade = np.empty((count, count, 4))
    shade[..., :3], shade[..., 3] = to_rgb(FILL), 0.85 * shares**0.7
    axes.imshow(shade, interpolation="none")
    axes.grid(visible=False)
    axes.spines[:].set_visible(few)
    if not few:
        return
    shown = [short(name) for name in names]
    axes.set_xticks(range(count), shown, rotation=0 if count <= 3 else 45,
                    ha="center" if count <= 3 else "right", rotation_mode="anchor")  # fmt: skip
    axes.set_yticks(range(count), shown)
    size = 11 if count <= 4 else 9 if count <= 12 else 7
    for (row, column), cell in np.ndenumerate(confusion):
        if cell:
            weight = "bold" if row == column else "normal"
            axes.text(column, row, f"{cell:,}", ha="center", va="center", color=INK,
                      fontsize=size, fontweight=weight)  # fmt: skip


def draw_balance(answered: Judgement) -> Figure:
    """Images in which each class is present."""
    counts, names = answered.positives, answered.opened.classes
    few = len(names) <= BARS
    figure = new_figure(4.2, max(1.6, 0.8 + 0.27 * len(names)) if few else 3.2)
    axes = figure.subplots()
    axes.set_title("Images of each class")
    if not few:
        axes.plot(np.arange(1, len(names) + 1), np.sort(counts)[::-1], color=SERIES[0])
        axes.set(xlabel="classes, the most frequent first", ylabel="images", ylim=(0, None))
        return figure
    places = np.arange(len(names))[::-1]
    axes.barh(places, counts, color=SERIES[0], height=0.62)
    axes.set_yticks(places, [short(name) for name in names])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    for place, count in zip(places, counts, strict=True):
        axes.annotate(f"{count:,}", (count, place), (4, 0), textcoords="offset points",
                      va="center", color=SOFT)  # fmt: skip
    axes.margins(x=0.15)
    return figure


def short(name: str) -> str:
    """A class name, cut to fit the figure."""
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _ranked(answered: Judgement) -> list[tuple[str, Counts]]:
    """Each class' images by score; only classes whose images all have one."""
    scores, found = answered.probabilities, []
    for k, name in enumerate(answered.opened.classes):
        images, there = answered.of_class(k)
        if len(images) and not np.isnan(scores[images, k]).any():
            found.append((name, Ranking.of(scores[:, k], there, images).counts()))
    return found


def _square(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = new_figure()
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    return figure, axes


def _curves(axes: Axes, found: list[Curve], step: bool = False) -> None:
    """Each class in its colour; with more classes than colours, only the lowest are coloured."""
    lowest = sorted(found, key=lambda curve: curve.area)
    named = found if len(found) <= len(SERIES) else lowest[:NAMED_CURVES]
    for curve in found:
        if curve not in named:
            axes.plot(*_corners(curve, step), color=LINE, linewidth=0.8)
    for curve, colour in zip(named, SERIES, strict=False):
        label = f"{short(curve.name)}  {curve.area:.3f}"
        axes.plot(*_corners(curve, step), color=colour, linewidth=1.5, label=label)
    if named and axes.figure is not None:
        more = "" if len(named) == len(found) else f"the {NAMED_CURVES} lowest of {len(found)}"
        axes.figure.legend(loc="outside lower center", ncols=2, fontsize=8.5, title=more)


def _corners(curve: Curve, step: bool) -> tuple[np.ndarray, np.ndarray]:
    """The points at which the line turns; `step`: a precision holds back to the previous recall."""
    x, y = curve.x, curve.y
    if step:
        x, y = np.repeat(x, 2)[:-1], np.repeat(y, 2)[1:]
    turns = np.diff(x)[:-1] * np.diff(y)[1:] != np.diff(x)[1:] * np.diff(y)[:-1]
    kept = np.concatenate([[True], turns, [True]])
    return x[kept], y[kept]
