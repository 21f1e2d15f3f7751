"""A network's predictions for all images, as a report stores them. n images, K classes."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densekit.config import UserError
from densekit.data.config import Task


@dataclass(frozen=True, eq=False)
class KeptAnswers:
    """A network's predictions, as in predictions.npz."""

    name: str
    """The run, artifact or report, as shown to the user."""
    task: Task
    classes: tuple[str, ...]
    files: np.ndarray
    """Text [n], which identifies the images."""
    labels: np.ndarray
    """int64 [n], or int8 [n, K]: 1 present, 0 absent, -1 unknown."""
    logits: np.ndarray
    """[n, K]."""
    thresholds: np.ndarray
    """float64 [K]; NaN for a class without one."""
    groups: np.ndarray | None = None
    """Each image's group, int64 [n]; None: every image is independent."""

    def aligned(self, other: KeptAnswers) -> KeptAnswers:
        """A copy with classes and images in `other`'s order. Raises UserError if classes, images or
        labels differ."""
        if self.task != other.task or sorted(self.classes) != sorted(other.classes):
            raise UserError(
                f"{self.name} and {other.name} do not answer the same question: "
                f"{self.task}, {_few(self.classes)}; {other.task}, {_few(other.classes)}"
            )
        ordered = self._with_files(other)._with_classes(other.classes)
        if not np.array_equal(ordered.labels, other.labels):
            raise UserError(f"{self.name} and {other.name}: the same images with other labels")
        return ordered

    def _with_files(self, other: KeptAnswers) -> KeptAnswers:
        if np.array_equal(self.files, other.files):
            return self
        unique = len(set(self.files.tolist())) == len(self.files)
        if not unique or sorted(self.files.tolist()) != sorted(other.files.tolist()):
            raise UserError(
                f"{self.name} and {other.name} were not asked about the same images "
                f"({len(self.files):,} and {len(other.files):,}, such as {self.files[0]} and "
                f"{other.files[0]}); give both the same with --data LIST|FOLDER"
            )
        place = {file: i for i, file in enumerate(self.files.tolist())}
        order = np.array([place[file] for file in other.files.tolist()])
        return replace(
            self, files=self.files[order], labels=self.labels[order], logits=self.logits[order],
            groups=None if self.groups is None else self.groups[order],
        )  # fmt: skip

    def _with_classes(self, classes: tuple[str, ...]) -> KeptAnswers:
        order = np.array([self.classes.index(name) for name in classes])
        several = self.labels.ndim == 2
        labels = self.labels[:, order] if several else np.argsort(order)[self.labels]
        return replace(
            self, classes=classes, logits=self.logits[:, order], labels=labels,
            thresholds=self.thresholds[order],
        )  # fmt: skip

    def right(self) -> np.ndarray:
        """Whether each prediction is correct: bool [n]; or float [n, K] at the thresholds, NaN if
        the label is unknown or the class has no threshold."""
        logits = torch.from_numpy(self.logits).double()
        if self.labels.ndim == 1:
            sound = ~logits.isnan().any(1).numpy()
            return sound & (logits.argmax(1).numpy() == self.labels)
        found = (logits.sigmoid().numpy() >= self.thresholds) == (self.labels == 1)
        unknown = (self.labels < 0) | np.isnan(self.thresholds)
        return np.where(unknown, np.nan, found)


def pack_answers(answers: KeptAnswers) -> bytes:
    """The content of predictions.npz."""
    out = io.BytesIO()
    arrays: dict[str, Any] = {
        "files": answers.files,
        "labels": answers.labels,
        "logits": answers.logits,
        "classes": np.array(answers.classes),
        "task": np.array(answers.task),
        "thresholds": answers.thresholds,
    }
    if answers.groups is not None:
        arrays["groups"] = answers.groups
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def read_answers(name: str, file: Path) -> KeptAnswers:
    """Reads a predictions.npz. Raises UserError."""
    try:
        with np.load(file, allow_pickle=False) as saved:
            return KeptAnswers(
                name,
                task=saved["task"].item(),
                classes=tuple(saved["classes"].tolist()),
                files=saved["files"],
                labels=saved["labels"],
                logits=saved["logits"],
                thresholds=saved["thresholds"],
                groups=saved.get("groups"),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: cannot be read: {error}; make the report again") from error


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
