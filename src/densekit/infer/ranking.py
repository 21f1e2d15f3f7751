"""Ranking metrics of one class against the rest, of the original images or of resamples.

n images, m distinct scores, highest first. Images of equal score share a rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """Images sorted by score."""

    order: np.ndarray
    """int64 [n], indices among all N images, the highest score first."""
    there: np.ndarray
    """bool [n], in that order: whether the class is present."""
    ends: np.ndarray
    """int64 [m], the last position of each distinct score in that order."""
    scores: np.ndarray
    """float64 [m], the distinct scores."""

    @classmethod
    def of(cls, scores: np.ndarray, there: np.ndarray, images: np.ndarray) -> Ranking:
        """Of the n > 0 `images`; scores are float64 [N] without NaN, `there` is bool [N]."""
        order = images[np.argsort(-scores[images], kind="stable")]
        ranked = scores[order]
        ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
        return cls(order, there[order], ends, ranked[ends])

    def counts(self, weights: np.ndarray | None = None) -> Counts:
        """Each image once, or int64 [b, N] times in each of b resamples."""
        ranked = np.ones(len(self.order), np.int64) if weights is None else weights[:, self.order]
        hits = (ranked * self.there).cumsum(-1)[..., self.ends]
        return Counts(hits, ranked.cumsum(-1)[..., self.ends] - hits)

    def place(self, threshold: float) -> int:
        """How many of the distinct scores are `threshold` or more."""
        return int(np.searchsorted(-self.scores, -threshold, side="right"))

    def between(self, place: int) -> float:
        """A threshold that `place` distinct scores reach, halfway to the next one, so that rounding
        on another machine changes no prediction."""
        if place == len(self.scores):
            return -np.inf
        return float(self.scores[place - 1] + self.scores[place]) / 2


@dataclass(frozen=True)
class Counts:
    """For each distinct score, the images that score at least that, [..., m]. Undefined values,
    such as the AUROC of a class that is never present, are NaN."""

    hits: np.ndarray
    """True positives: images in which the class is present."""
    alarms: np.ndarray
    """False positives: images in which it is absent."""

    @cached_property
    def positives(self) -> np.ndarray:
        return self.hits[..., -1]

    @cached_property
    def negatives(self) -> np.ndarray:
        return self.alarms[..., -1]

    def auroc(self) -> np.ndarray:
        """Probability that a positive image scores higher than a negative one, ties counting half:
        the area under the ROC curve by the trapezoidal rule, exact."""
        before = np.concatenate([np.zeros_like(self.hits[..., :1]), self.hits[..., :-1]], -1)
        steps = np.diff(self.alarms, prepend=0)
        twice = (steps * (before + self.hits)).sum(-1)
        return ratio(twice, 2 * self.positives * self.negatives)

    def average_precision(self) -> np.ndarray:
        """Precision at each distinct score, weighted by the recall that it adds."""
        precision = ratio(self.hits, self.hits + self.alarms)
        gained = np.diff(self.hits, prepend=0)
        return ratio(np.where(gained > 0, gained * precision, 0.0).sum(-1), self.positives)

    def sensitivity_at(self, specificity: float) -> np.ndarray:
        """The highest sensitivity at which the specificity is at least this."""
        correct = ratio(self.negatives[..., None] - self.alarms, self.negatives[..., None])
        return ratio(np.where(correct >= specificity, self.hits, 0).max(-1), self.positives)

    def at(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """hits and alarms if the first `place` distinct scores count as positive."""
        if place == 0:
            return np.zeros_like(self.positives), np.zeros_like(self.negatives)
        return self.hits[..., place - 1], self.alarms[..., place - 1]


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """[..., K] -> [...], over the values that are not NaN."""
    has = ~np.isnan(values)
    return ratio(np.where(has, values, 0).sum(-1), has.sum(-1))


def with_mean(values: np.ndarray) -> np.ndarray:
    """[..., K] -> [..., K + 1]: appends the mean of the values that are not NaN."""
    return np.concatenate([values, mean_of_known(values)[..., None]], -1)


def ratio(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """parts / wholes; NaN where the denominator is 0."""
    parts, wholes = np.broadcast_arrays(parts, wholes)
    out = np.full(parts.shape, np.nan)
    return np.divide(parts, wholes, out=out, where=wholes != 0)
