"""All images' predictions and labels, as a report uses them. n images, K classes."""

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
    """A network, the evaluated images, their logits, and the metrics."""

    opened: Opened
    judged: Judged
    found: dict[str, Any]
    """The output of `densekit evaluate --json`."""

    @property
    def examples(self) -> Examples:
        return self.judged.examples

    @property
    def several(self) -> bool:
        """Whether the task is multilabel or binary."""
        return self.opened.task != "multiclass"

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float64 [n, K]: a softmax over the classes, or a sigmoid per class."""
        logits = self.judged.logits.double()
        return (logits.sigmoid() if self.several else logits.softmax(1)).numpy()

    @cached_property
    def thresholds(self) -> np.ndarray:
        """float64 [K]; NaN for a class without one."""
        chosen = self.opened.thresholds or [DEFAULT_THRESHOLD] * len(self.opened.classes)
        return np.array([np.nan if each is None else each for each in chosen])

    @property
    def positives(self) -> np.ndarray:
        """Images in which each class is present, int64 [K]."""
        labels = self.examples.labels
        if self.several:
            return (labels == 1).sum(0)
        return np.bincount(labels, minlength=len(self.opened.classes))

    def of_class(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The indices of images whose label for the class is known, and a mask over all images of
        those in which it is present."""
        labels = self.examples.labels
        if self.several:
            return np.flatnonzero(labels[:, k] >= 0), labels[:, k] == 1
        return np.arange(len(labels)), labels == k

    def positive(self, k: int) -> np.ndarray:
        """Per image: whether the class' probability reaches its threshold; see `several`."""
        return self.probabilities[:, k] >= self.thresholds[k]

    def confusion_of(self, k: int) -> np.ndarray:
        """A multilabel or binary class' confusion matrix over the images whose label is known:
        int [2, 2], absent and present, a row for the label and a column for the prediction."""
        images, there = self.of_class(k)
        pairs = 2 * there[images] + self.positive(k)[images]
        return np.bincount(pairs, minlength=4).reshape(2, 2)

    def predictions(self, name: str) -> KeptAnswers:
        """What predictions.npz holds; `name` is shown to the user."""
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
        """Confidences and whether each was correct: of every image's top-1 class; or of each class
        of each image whose label is known. Without NaNs."""
        scores, labels = self.probabilities, self.examples.labels
        if self.several:
            known = (labels >= 0) & ~np.isnan(scores)
            return scores[known], labels[known] == 1
        sound = ~np.isnan(scores).any(1)
        return scores[sound].max(1), scores[sound].argmax(1) == labels[sound]
