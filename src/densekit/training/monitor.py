"""By what an epoch is judged: what its evaluation counts, and which of two is better."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from densekit.config import UserError
from densekit.data.checks import are_uneven
from densekit.data.config import Task
from densekit.data.listing import Examples
from densekit.infer import metrics, multilabel_metrics
from densekit.infer.evaluate import ReportOf
from densekit.training.loss import balanced_weights
from densekit.training.recipe import LoopConfig, Recipe

WHOLE = ("auroc", "average_precision", "f1", "balanced_accuracy")
"""What takes every image's logits."""
ON_A_LINE = {"top1": "top-1", "auroc": "auroc", "balanced_accuracy": "balanced", "f1": "f1"}
"""Metrics on the line of an epoch, and what they are called there."""


def for_images(loop: LoopConfig, task: Task, train: Examples, counts: np.ndarray) -> dict[str, Any]:
    """What monitor=auto and class_weights=balanced mean for these training images, of which
    `counts` [K] are in each class. Raises UserError."""
    weights = loop.class_weights
    if weights == "balanced":
        weights = balanced_weights(train)
    if weights is not None and len(weights) != len(counts):
        raise UserError(
            f"loop.class_weights has {len(weights)} numbers for {len(counts)} classes; give one "
            f"for each, or balanced"
        )
    monitor = loop.monitor
    if monitor == "auto" and task != "multiclass":
        monitor = "auroc"
    elif monitor == "auto":
        monitor = "balanced_accuracy" if are_uneven(counts) else "top1"
    return {"monitor": monitor, "class_weights": weights}


def epoch_report(recipe: Recipe) -> ReportOf | None:
    """The report that the task or loop.monitor needs: WHOLE, and thresholds. None: top-k and the
    loss are enough."""
    if recipe.model.task != "multiclass":
        return partial(_of_multilabel, loop=recipe.loop)
    return partial(_of_multiclass, recipe=recipe) if recipe.loop.monitor in WHOLE else None


def _of_multiclass(logits: Tensor, labels: Tensor, recipe: Recipe) -> dict[str, Any]:
    assert recipe.model.num_classes is not None
    name = recipe.loop.monitor
    return {name: metrics.report(logits, labels, recipe.model.num_classes)[name]}


def _of_multilabel(logits: Tensor, labels: Tensor, loop: LoopConfig) -> dict[str, Any]:
    thresholds = multilabel_metrics.choose_thresholds(logits, labels, loop.threshold)
    found = multilabel_metrics.report(logits, labels, thresholds)
    return {**{name: found[name] for name in WHOLE}, "thresholds": thresholds}


def score(evaluation: dict[str, Any], loop: LoopConfig) -> float:
    """What loop.monitor says of an evaluation, the more the better; of none, less than anything."""
    value = evaluation.get(loop.monitor)
    if value is None:
        return -math.inf
    return -value if loop.monitor == "loss" else value


def evaluated(evaluation: dict[str, Any]) -> str:
    """The line of an epoch."""
    values = {name: evaluation.get(name) for name in ON_A_LINE}
    shown = [f"{ON_A_LINE[k]} {v:.4f}" for k, v in values.items() if v is not None]
    return "  ".join([f"val loss {evaluation['loss']:.4f}", *shown])
