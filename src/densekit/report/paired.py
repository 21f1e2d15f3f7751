"""Whether one network is better than another on the same images, beyond chance.

n images, K classes. Both are evaluated on the same images, so tests are paired: a difficult image
is difficult for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from densekit.data.listing import strata_of
from densekit.infer import metrics, multilabel_metrics
from densekit.infer.bootstrap import Resampling, Statistics, known, pair
from densekit.report.predictions import KeptAnswers


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p of McNemar's test (1947), whose null hypothesis is that images which
    only one network got right are equally likely to be either network's."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    term = tail = 1
    for k in range(1, fewer + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / 2**n)


def compare_pair(
    first: KeptAnswers, second: KeptAnswers, resampling: Resampling | None
) -> dict[str, Any]:
    """The second's metrics minus the first's, with 95 % intervals of the difference, and McNemar's
    test; if multilabel or binary, per class at its threshold. Raises UserError."""
    second = second.aligned(first)
    of_first, of_second = (_statistics(each) for each in (first, second))
    groups = second.groups if first.groups is None else first.groups
    ones = np.ones((1, len(first.files)), np.int64)

    def differences(weights: np.ndarray) -> Statistics:
        before, after = of_first(weights), of_second(weights)
        return {name: after[name] - before[name] for name in before}

    sound = not (np.isnan(first.logits).any() or np.isnan(second.logits).any())
    ends: Mapping[str, np.ndarray] = {}
    if resampling is not None and sound:
        ends = resampling.intervals(differences, strata_of(first.labels), groups)
    found = differences(ones) if sound else {}
    return {
        "first": first.name,
        "second": second.name,
        "images": len(first.files),
        "groups": None if groups is None else len(np.unique(groups)),
        "differences": {
            name: {"value": known(values[0]), "interval": pair(ends[name]) if ends else None}
            for name, values in found.items()
        },
        "mcnemar": _tests(first, second),
    }


def _statistics(of: KeptAnswers) -> Callable[[np.ndarray], Statistics]:
    """How often each image was drawn, [b, n] -> the compared metrics, [b] each."""
    logits, labels = torch.from_numpy(of.logits), torch.from_numpy(of.labels)
    if of.task == "multiclass":
        numbers = metrics.resampled(logits, labels)

        def of_one(weights: np.ndarray) -> Statistics:
            found = numbers(weights)
            means = {
                metrics.MEAN_NAMES[name]: values[:, -1]
                for name, values in found.items()
                if name in metrics.MEAN_NAMES
            }
            return {"top1": found["top1"], **means}

        return of_one
    thresholds = [None if np.isnan(each) else float(each) for each in of.thresholds]
    specificity = multilabel_metrics.SPECIFICITY
    several = multilabel_metrics.resampled(logits, labels, thresholds, specificity)
    names = multilabel_metrics.NUMBERS[: multilabel_metrics.MEANS]

    def of_several(weights: np.ndarray) -> Statistics:
        found = several(weights)
        return {name: found[name][:, -1] for name in names}

    return of_several


def _tests(first: KeptAnswers, second: KeptAnswers) -> list[dict[str, Any]]:
    """McNemar's test of the predictions, or one per class."""
    before, after = first.right(), second.right()
    if before.ndim == 1:
        return [{"label": None, **_test(before, after)}]
    return [
        {"label": name, **_test(before[has, k] == 1, after[has, k] == 1)}
        for k, name in enumerate(first.classes)
        if (has := ~np.isnan(before[:, k]) & ~np.isnan(after[:, k])).any()
    ]


def _test(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    only_first, only_second = int((before & ~after).sum()), int((after & ~before).sum())
    return {
        "only_first": only_first,
        "only_second": only_second,
        "p": mcnemar(only_first, only_second),
    }
