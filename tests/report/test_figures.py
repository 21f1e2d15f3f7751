"""figures.py: the curves' points are scikit-learn's; every figure can be drawn of any task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from judged import answered

from densekit.data.config import Task
from densekit.infer.metrics import BINS
from densekit.infer.ranking import Ranking
from densekit.report import figures
from densekit.report.theme import as_png, as_svg, styled


def scores(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Some of equal value, and whether the class is there."""
    draw = np.random.default_rng(0)
    there = draw.random(n) < 0.2
    return np.round(draw.random(n) * 0.7 + 0.3 * there, 2), there


def test_roc_and_precision_recall_are_scikit_learns() -> None:
    found, there = scores()
    counts = Ranking.of(found, there, np.arange(len(found))).counts()
    alarms, hits, _ = sklearn.metrics.roc_curve(there, found, drop_intermediate=False)
    np.testing.assert_allclose(figures.roc_curve(counts), (alarms, hits))
    precision, recall, _ = sklearn.metrics.precision_recall_curve(there, found)
    ours = figures.precision_recall_curve(counts)
    np.testing.assert_allclose(ours, (recall[::-1], precision[::-1]))


def test_calibration_is_scikit_learns() -> None:
    found, there = scores()
    mean, share, count = figures.calibration_points(found, there)
    theirs = sklearn.calibration.calibration_curve(there, found, n_bins=BINS)
    np.testing.assert_allclose((share, mean), theirs)
    assert count.sum() == len(found)


@pytest.mark.parametrize("step", [False, True])
def test_corners_leave_the_line_as_it_is(step: bool) -> None:
    found, there = scores()
    counts = Ranking.of(found, there, np.arange(len(found))).counts()
    curve = figures.Curve("x", *figures.roc_curve(counts), 0.0)
    x, y = figures._corners(curve, step)
    assert len(x) < (2 if step else 1) * len(curve.x)
    if not step:
        np.testing.assert_allclose(np.trapezoid(y, x), counts.auroc())
        np.testing.assert_allclose(np.interp(curve.x[::7], x, y).max(), curve.y[::7].max())
    else:  # each step at the height of its right end
        np.testing.assert_allclose(np.trapezoid(y, x), (np.diff(curve.x) * curve.y[1:]).sum())


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "binary"])
def test_every_figure_is_drawn_in_both_ways(tmp_path: Path, task: Task) -> None:
    of = answered(tmp_path, task)
    with styled():
        for draw in (
            figures.draw_roc, figures.draw_precision_recall, figures.draw_calibration,
            figures.draw_confusion, figures.draw_balance,
        ):  # fmt: skip
            figure = draw(of)
            assert as_png(figure).startswith(b"\x89PNG")
            text = str(as_svg(figure, 'a "label"'))
            assert text.startswith('<svg role="img" aria-label="a &#34;label&#34;"')
            assert "var(--ink)" in text
            assert "#1d1d1f" not in text
            assert "<u>" not in text


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_confusion_of_a_class_is_scikit_learns(tmp_path: Path, task: Task) -> None:
    of = answered(tmp_path, task)
    for k in range(len(of.opened.classes)):
        known = of.examples.labels[:, k] >= 0
        said = of.probabilities[known, k] >= of.thresholds[k]
        theirs = sklearn.metrics.confusion_matrix(of.examples.labels[known, k], said, labels=[0, 1])
        assert (of.confusion_of(k) == theirs).all()
