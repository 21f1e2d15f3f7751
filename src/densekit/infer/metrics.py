"""Counts and float64 sums: what evaluation and training report, exact for any world size.

n images, K classes, B batches. A row of logits with a NaN in it is a wrong answer. Among equal
logits the class with the smaller index comes first.

All of it is bincount and sort. torchmetrics' functions, with which the tests compare these, return
float32 whatever they are given, call the AUROC of a class without images 0, and give a confidence
of exactly 1, which a softmax often reaches, a bin of its own in the calibration error.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = ("count", "top1", "top5", "loss")
BINS = 15  # of the expected calibration error (Guo et al., 2017)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, K], [n] -> [2], on their device: the images whose label is first, and among the first 5.

    With fewer than five classes, every answer without a NaN is among the first five.
    """
    own = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    place, sound = ahead.sum(1), ~logits.isnan().any(1)
    return torch.stack([(sound & (place < k)).sum() for k in (1, 5)])


def batch_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """[n, K], [n] -> COLUMNS, [4], in float64; the loss is the sum of the images' cross entropy."""
    loss = F.cross_entropy(logits.double(), labels, reduction="sum")
    count = loss.new_tensor(len(labels))
    return torch.stack([count, *correct(logits, labels).double(), loss])


def summary(rows: Tensor) -> dict[str, Any]:
    """[B, 4], a batch's sums each -> count, top1 and top5 from 0 to 1, and the mean loss.

    The loss is the correctly rounded sum of its column, whoever computed which batch.
    """
    count, top1, top5, loss = (math.fsum(column) for column in rows.T.tolist())
    assert count, "an evaluation without images"
    return {"count": int(count), "top1": top1 / count, "top5": top5 / count, "loss": loss / count}


def report(logits: Tensor, labels: Tensor, num_classes: int) -> dict[str, Any]:
    """[n, K], [n] -> what a table of counts cannot say, in float64.

    ece: expected calibration error of the first answer, in 15 bins of equal width.
    balanced_accuracy: mean recall. auroc: mean over the classes of one class against the rest.
    per_class: precision, recall and count (of labels) of each class. confusion: counts, a row for
    each label, a column for each answer.

    What is not defined is None: the recall of a class without images, the precision of a class
    that is never answered, the auroc of a class with no images or with all of them; means are over
    the other classes. An image with a NaN in its logits is a miss in recall and in no column of
    confusion; ece and auroc are then None.
    """
    sound = ~logits.isnan().any(1)
    answers, true = logits[sound].argmax(1), labels[sound]
    pairs = (true * num_classes + answers).bincount(minlength=num_classes**2)
    confusion = pairs.reshape(num_classes, num_classes)
    counts = labels.bincount(minlength=num_classes)
    hits, answered = confusion.diag(), confusion.sum(0)
    recalls = _ratios(hits, counts)
    per_class = [
        {"precision": precision, "recall": recall, "count": count}
        for precision, recall, count in zip(
            _ratios(hits, answered), recalls, counts.tolist(), strict=True
        )
    ]
    probabilities = logits.double().softmax(1)
    finite = not probabilities.isnan().any()
    return {
        "ece": _calibration_error(probabilities, labels) if finite else None,
        "balanced_accuracy": _mean(recalls),
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "auroc": _mean(_aurocs(probabilities, labels)) if finite else None,
    }


def _calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """The sum over bins of |correct answers - summed confidence|, over n."""
    confidence, answers = probabilities.max(1)
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=labels.device)[1:-1]
    gaps = torch.bucketize(confidence, edges).bincount((answers == labels).double() - confidence)
    return (gaps.abs().sum() / len(labels)).item()


def _aurocs(probabilities: Tensor, labels: Tensor) -> list[float | None]:
    """Each class' probability that one of its images scores higher than another's, ties as half.

    Counted from ranks (Mann and Whitney), exact.
    """
    areas: list[float | None] = []
    for index, scores in enumerate(probabilities.T):
        own = labels == index
        inside, outside = int(own.sum()), int((~own).sum())
        if not inside or not outside:
            areas.append(None)
            continue
        _, place, sizes = scores.unique(return_inverse=True, return_counts=True)
        twice_rank = 2 * sizes.cumsum(0) - sizes + 1  # of each distinct score, the mean over ties
        twice_wins = int(twice_rank[place[own]].sum()) - inside * (inside + 1)
        areas.append(twice_wins / (2 * inside * outside))
    return areas


def _ratios(parts: Tensor, wholes: Tensor) -> list[float | None]:
    pairs = zip(parts.tolist(), wholes.tolist(), strict=True)
    return [part / whole if whole else None for part, whole in pairs]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
