"""Single-label metrics from counts and float64 sums, exact for any world size.

n images, K classes, B batches. A row of logits with a NaN counts as wrong. Ties between logits go
to the class with the smaller index.

All of it is bincount and sort. Tests compare it with torchmetrics and scikit-learn. torchmetrics
itself is not used, since it returns float32 for any input, reports an AUROC of 0 for a class
without images, and puts a confidence of exactly 1, which a softmax often reaches, in a bin of its
own in the calibration error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.infer.bootstrap import Resampling, known, pair
from densekit.infer.ranking import Ranking, ratio, with_mean

COLUMNS = ("count", "top1", "top5", "loss")
RANKED = 100  # with more classes AUROC and average precision are not resampled: too slow
BINS = 15  # of the expected calibration error (Guo et al., 2017)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, K], [n] -> [2], on their device: the images that are top-1 and top-5 correct.

    With fewer than five classes, every image without a NaN is top-5 correct.
    """
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    place, sound = ahead.sum(1), ~logits.isnan().any(1)
    return torch.stack([(sound & (place < k)).sum() for k in (1, 5)])


def batch_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, K], [n] -> COLUMNS, float64 [4]; the loss is the sum of the images' cross entropy."""
    loss = F.cross_entropy(logits.double(), labels, reduction="sum")
    count = loss.new_tensor(len(labels))
    return torch.stack([count, *correct(logits, labels).double(), loss])


def summary(rows: Tensor) -> dict[str, Any]:
    """Each batch's sums, [B, 4] -> count, top1 and top5 from 0 to 1, and the mean loss.

    The loss column's sum is correctly rounded, so it does not depend on which rank had which batch.
    """
    count, top1, top5, loss = (math.fsum(column) for column in rows.T.tolist())
    assert count, "an evaluation without images"
    return {"count": int(count), "top1": top1 / count, "top5": top5 / count, "loss": loss / count}


def report(
    logits: Tensor,
    labels: Tensor,
    num_classes: int,
    resampling: Resampling | None = None,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """[n, K], [n] -> the metrics that need all logits, in float64.

    ece: expected calibration error of the top-1 class, in 15 bins of equal width.
    balanced_accuracy: mean recall. auroc and average_precision: one class against the rest, mean
    over the classes. f1: mean over the classes. per_class: precision, recall, f1, auroc,
    average_precision and count (of labels) of each class. confusion: counts, a row for each label,
    a column for each prediction. With a `resampling`, intervals: [low, high] of top1,
    balanced_accuracy, f1, and with up to RANKED classes auroc and average_precision; each class'
    own in its row.

    Undefined values are None: the recall of a class without images, the precision of a class that
    is never predicted, the auroc of a class with no images or with all of them; means are over the
    other classes. An image with a NaN in its logits is a miss in recall and in no column of
    confusion; ece, auroc and average_precision are then None.
    """
    sound = ~logits.isnan().any(1)
    answers, true = logits[sound].argmax(1), labels[sound]
    pairs = (true * num_classes + answers).bincount(minlength=num_classes**2)
    confusion = pairs.reshape(num_classes, num_classes)
    counts = labels.bincount(minlength=num_classes)
    hits, answered = confusion.diag(), confusion.sum(0)
    recalls, f1 = _ratios(hits, counts), _ratios(2 * hits, counts + answered)
    probabilities = logits.double().softmax(1)
    finite = not probabilities.isnan().any()
    ranked = _ranked(probabilities, labels) if finite else [(None, None)] * num_classes
    columns = (_ratios(hits, answered), recalls, f1, *zip(*ranked, strict=True), counts.tolist())
    per_class = [dict(zip(PER_CLASS, row, strict=True)) for row in zip(*columns, strict=True)]
    found: dict[str, Any] = {
        "ece": calibration_error(*_first_answers(probabilities, labels)) if finite else None,
        "balanced_accuracy": known_mean(recalls),
        "f1": known_mean(f1),
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "auroc": known_mean([row["auroc"] for row in per_class]),
        "average_precision": known_mean([row["average_precision"] for row in per_class]),
    }
    if resampling is not None and finite:
        ends = resampling.intervals(resampled(logits, labels), labels.numpy(), groups)
        top1 = pair(ends.pop("top1"))
        means = {name: pair(of_classes[-1]) for name, of_classes in ends.items()}
        found["intervals"] = {"top1": top1} | {
            MEAN_NAMES[name]: low_high for name, low_high in means.items() if name in MEAN_NAMES
        }
        for k, row in enumerate(per_class):
            row["intervals"] = {name: pair(of_classes[k]) for name, of_classes in ends.items()}
    return found


PER_CLASS = ("precision", "recall", "f1", "auroc", "average_precision", "count")
MEAN_NAMES = {
    "recall": "balanced_accuracy",
    "f1": "f1",
    "auroc": "auroc",
    "average_precision": "average_precision",
}
"""Per-class metric -> the name of its mean over the classes."""


def _first_answers(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The confidence of each top-1 class, and whether it is correct."""
    confidence, answers = probabilities.max(1)
    return confidence, answers == labels


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """The sum over bins of |correct - summed confidence|, over n; float64 and bool [n]."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=right.device)[1:-1]
    gaps = torch.bucketize(confidence, edges).bincount(right.double() - confidence)
    return (gaps.abs().sum() / len(right)).item()


def _ranked(probabilities: Tensor, labels: Tensor) -> list[tuple[float | None, float | None]]:
    """Each class' AUROC and average precision against the rest."""
    scores, own, images = probabilities.numpy(), labels.numpy(), np.arange(len(labels))
    found = []
    for k in range(scores.shape[1]):
        counts = Ranking.of(scores[:, k], own == k, images).counts()
        found.append((known(counts.auroc()), known(counts.average_precision())))
    return found


def resampled(logits: Tensor, labels: Tensor) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """[n, K], [n] -> the statistics that have an interval, as a function of how often each image
    was drawn in each of b resamples, int64 [b, n]: top1 [b]; the others [b, K + 1], per class and
    then their mean.

    auroc and average_precision are included up to RANKED classes. No logit may be NaN.
    """
    probabilities, own = logits.double().softmax(1).numpy(), labels.numpy()
    num_classes, images = probabilities.shape[1], np.arange(len(own))
    classes, first = np.arange(num_classes), probabilities.argmax(1)
    there = (own[:, None] == classes).astype(np.float64)
    answers = (first[:, None] == classes).astype(np.float64)
    right = (first == own).astype(np.float64)
    ranked = classes if num_classes <= RANKED else classes[:0]
    rankings = [Ranking.of(probabilities[:, k], own == k, images) for k in ranked]

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        hits = weights @ (there * right[:, None])
        counts, answered = weights @ there, weights @ answers
        found = {
            "precision": ratio(hits, answered),
            "recall": ratio(hits, counts),
            "f1": ratio(2 * hits, counts + answered),
        }
        if rankings:
            of_each = [ranking.counts(weights) for ranking in rankings]
            precisions = [each.average_precision() for each in of_each]
            found["auroc"] = np.stack([each.auroc() for each in of_each], -1)
            found["average_precision"] = np.stack(precisions, -1)
        top1 = ratio(hits.sum(1), counts.sum(1))
        return {"top1": top1} | {name: with_mean(values) for name, values in found.items()}

    return statistics


def _ratios(parts: Tensor, wholes: Tensor) -> list[float | None]:
    pairs = zip(parts.tolist(), wholes.tolist(), strict=True)
    return [part / whole if whole else None for part, whole in pairs]


def known_mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if all are."""
    numbers = [value for value in values if value is not None]
    return math.fsum(numbers) / len(numbers) if numbers else None
