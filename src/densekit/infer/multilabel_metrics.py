"""Multilabel and binary metrics, in float64.

n images, K classes, B batches; labels are int8 [n, K]: 1 present, 0 absent, -1 unknown, which is
ignored. A class that is present in all images or in none has no AUROC; means are over the classes
whose value is defined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from densekit.data.listing import strata_of
from densekit.data.mix import as_targets
from densekit.infer.bootstrap import Resampling, known, pair
from densekit.infer.metrics import calibration_error, known_mean
from densekit.infer.ranking import Counts, Ranking, ratio, with_mean

ThresholdRule = Literal["youden", "f1"]
SPECIFICITY = 0.9
NUMBERS = (
    "auroc",
    "average_precision",
    "f1",
    "balanced_accuracy",
    "sensitivity_at_specificity",
    "precision",
    "sensitivity",
    "specificity",
)
"""Per class."""
MEANS = 5  # the first 5 are also reported as means over the classes


def batch_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, K] both -> count and loss, float64 [2]: the binary cross entropy, 0 for an unknown label,
    averaged over classes and summed over images."""
    targets = as_targets(labels).double()
    unknown = targets.isnan()
    terms = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.double(), targets.masked_fill(unknown, 0), reduction="none"
    )
    loss = terms.masked_fill(unknown, 0).sum() / labels.shape[1]
    return torch.stack([loss.new_tensor(len(labels)), loss])


def summary(rows: Tensor) -> dict[str, Any]:
    """Each batch's sums, [B, 2] -> count and the mean loss."""
    count, loss = (math.fsum(column) for column in rows.T.tolist())
    assert count, "an evaluation without images"
    return {"count": int(count), "loss": loss / count}


def choose_thresholds(
    logits: Tensor, labels: Tensor, rule: ThresholdRule | float
) -> list[float | None]:
    """The threshold of each class: the lowest probability that counts as positive.

    youden: maximises sensitivity + specificity; f1: maximises F1; among ties the highest. None for
    a class that is present in all or none of the images. A number is used for every class.
    """
    if not isinstance(rule, str):
        return [rule] * logits.shape[1]
    chosen: list[float | None] = []
    for ranking in _rankings(logits, labels):
        counts = None if ranking is None else ranking.counts()
        if ranking is None or counts is None or not counts.positives or not counts.negatives:
            chosen.append(None)
            continue
        if rule == "youden":
            gains = counts.hits * counts.negatives - counts.alarms * counts.positives
        else:
            gains = 2 * counts.hits / (counts.hits + counts.alarms + counts.positives)
        logit = ranking.between(int(gains.argmax()) + 1)
        chosen.append(torch.tensor(logit, dtype=torch.float64).sigmoid().item())
    return chosen


def report(
    logits: Tensor,
    labels: Tensor,
    thresholds: Sequence[float | None],
    specificity: float = SPECIFICITY,
    resampling: Resampling | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """[n, K] both -> the means of the first MEANS NUMBERS over the classes; and per_class: each
    class' own, its positives, negatives and unknown (labels), its threshold, and precision,
    sensitivity and specificity at it.

    ece is the calibration error of the class' probability. With a `resampling`, the means and each
    row have `intervals`: [low, high] of each number that has one. A class with a NaN among its
    logits has counts of labels only.
    """
    statistics, sized = resampled(logits, labels, thresholds, specificity), range(labels.shape[1])
    found = statistics(None)
    calibration = [_calibration(logits[:, k], labels[:, k]) for k in sized]
    per_class: list[dict[str, Any]] = [
        {
            "positives": int((labels[:, k] == 1).sum()),
            "negatives": int((labels[:, k] == 0).sum()),
            "unknown": int((labels[:, k] < 0).sum()),
            "threshold": thresholds[k],
            **{name: known(found[name][k]) for name in NUMBERS},
            "ece": calibration[k],
        }
        for k in sized
    ]
    whole: dict[str, Any] = {name: known(found[name][-1]) for name in NUMBERS[:MEANS]}
    whole |= {"ece": known_mean(calibration), "specificity": specificity, "per_class": per_class}
    if resampling is not None:
        ends = resampling.intervals(statistics, strata_of(labels.numpy()), groups)
        for k, row in enumerate(per_class):
            row["intervals"] = {name: pair(ends[name][k]) for name in NUMBERS}
        whole["intervals"] = {name: pair(ends[name][-1]) for name in NUMBERS[:MEANS]}
    return whole


def resampled(
    logits: Tensor, labels: Tensor, thresholds: Sequence[float | None], specificity: float
) -> Callable[[np.ndarray | None], dict[str, np.ndarray]]:
    """NUMBERS, [..., K + 1], per class and then their mean: of the original images (None), or by
    how often each image was drawn in each of b resamples, int64 [b, n]."""
    rankings = _rankings(logits, labels)
    places = [
        None if ranking is None or threshold is None else ranking.place(_logit(threshold))
        for ranking, threshold in zip(rankings, thresholds, strict=True)
    ]

    def statistics(weights: np.ndarray | None) -> dict[str, np.ndarray]:
        counts = [None if ranking is None else ranking.counts(weights) for ranking in rankings]
        shape = () if weights is None else (len(weights),)
        rows = [_of_class(*pair, specificity, shape) for pair in zip(counts, places, strict=True)]
        return {name: with_mean(np.stack([row[name] for row in rows], -1)) for name in NUMBERS}

    return statistics


def _of_class(
    counts: Counts | None, place: int | None, specificity: float, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """A class' NUMBERS, of this shape; NaN if undefined."""
    nothing = np.full(shape, np.nan)
    if counts is None:
        return dict.fromkeys(NUMBERS, nothing)
    hits, alarms = (nothing, nothing) if place is None else counts.at(place)
    sensitivity = ratio(hits, counts.positives)
    correct = ratio(counts.negatives - alarms, counts.negatives)
    values = (
        counts.auroc(),
        counts.average_precision(),
        ratio(2 * hits, hits + alarms + counts.positives),
        (sensitivity + correct) / 2,
        counts.sensitivity_at(specificity),
        ratio(hits, hits + alarms),
        sensitivity,
        correct,
    )
    return dict(zip(NUMBERS, values, strict=True))


def _rankings(logits: Tensor, labels: Tensor) -> list[Ranking | None]:
    """Per class, over the images with a known label; None without any, or with a NaN."""
    scores, own = logits.double().numpy(), labels.numpy()
    rankings: list[Ranking | None] = []
    for k in range(own.shape[1]):
        images = np.flatnonzero(own[:, k] >= 0)
        sound = len(images) > 0 and not np.isnan(scores[:, k]).any()
        there = own[:, k] == 1
        rankings.append(Ranking.of(scores[:, k], there, images) if sound else None)
    return rankings


def _logit(probability: float) -> float:
    return torch.tensor(probability, dtype=torch.float64).logit().item()


def _calibration(logits: Tensor, labels: Tensor) -> float | None:
    """Of one class, [n] both."""
    images = labels >= 0
    there = logits[images].double().sigmoid()
    if not len(there) or there.isnan().any():
        return None
    return calibration_error(there, labels[images] == 1)
