"""Every image's answer and what is true of it, as a report looks at them. n images, K classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from densekit.data.groups import numbered
from densekit.data.listing import Examples
from densekit.infer.evaluate import DEFAULT_THRESHOLD, Judged
from densekit.infer.model import Opened
from densekit.report.predictions import KeptAnswers


@dataclass(frozen=True)
class Judgement:
    """A network, the images that it was asked about, its answers, and what they came to."""

    opened: Opened
    judged: Judged
    found: dict[str, Any]
    """What `densekit evaluate --json` prints."""

    @property
    def examples(self) -> Examples:
        return self.judged.examples

    @property
    def several(self) -> bool:
        """Whether classes are there or not, each for itself."""
        return self.opened.task != "multiclass"

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float64 [n, K]: a softmax over the classes, or each class' own sigmoid."""
        logits = self.judged.logits.double()
        return (logits.sigmoid() if self.several else logits.softmax(1)).numpy()

    @cached_property
    def thresholds(self) -> np.ndarray:
        """float64 [K]; NaN where a class has none."""
        chosen = self.opened.thresholds or [DEFAULT_THRESHOLD] * len(self.opened.classes)
        return np.array([np.nan if each is None else each for each in chosen])

    @property
    def positives(self) -> np.ndarray:
        """Images in which each class is there, int64 [K]."""
        labels = self.examples.labels
        if self.several:
            return (labels == 1).sum(0)
        return np.bincount(labels, minlength=len(self.opened.classes))

    def of_class(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The images whose label of a class is known, and of every image whether it is there."""
        labels = self.examples.labels
        if self.several:
            return np.flatnonzero(labels[:, k] >= 0), labels[:, k] == 1
        return np.arange(len(labels)), labels == k

    def positive(self, k: int) -> np.ndarray:
        """Of every image whether a class' probability reaches its threshold; see `several`."""
        return self.probabilities[:, k] >= self.thresholds[k]

    def confusion_of(self, k: int) -> np.ndarray:
        """Of a class that is there or not, over the images whose label is known: int [2, 2], no and
        yes, a row for the label and a column for the answer."""
        images, there = self.of_class(k)
        pairs = 2 * there[images] + self.positive(k)[images]
        return np.bincount(pairs, minlength=4).reshape(2, 2)

    def predictions(self, name: str) -> KeptAnswers:
        """The answers alone; `name` says whose, for people."""
        examples = self.examples
        return KeptAnswers(
            name,
            self.opened.task,
            tuple(self.opened.classes),
            files=np.array([examples.relative(i) for i in range(len(examples))]),
            labels=examples.labels,
            logits=self.judged.logits.numpy(),
            thresholds=self.thresholds,
            groups=None if examples.groups is None else numbered(examples.groups),
        )

    def claims(self) -> tuple[np.ndarray, np.ndarray]:
        """The probabilities of what the network says, and whether it was so: of every image's
        first answer; or of each class of each image whose label is known. Without NaNs."""
        scores, labels = self.probabilities, self.examples.labels
        if self.several:
            known = (labels >= 0) & ~np.isnan(scores)
            return scores[known], labels[known] == 1
        sound = ~np.isnan(scores).any(1)
        return scores[sound].max(1), scores[sound].argmax(1) == labels[sound]
