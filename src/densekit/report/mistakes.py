"""The most confident mistakes, with class activation maps of prediction and label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from densekit.config import UserError
from densekit.data.dataset import ImageDataset, Sample
from densekit.data.listing import readable
from densekit.explain.cam import class_maps, densenet_of
from densekit.explain.overlay import enlarged, overlay, strongest_of
from densekit.infer.classifier import Classifier
from densekit.report.answers import Judgement

MISTAKES_SHOWN = 12


@dataclass(frozen=True)
class Mistake:
    """A misclassified image, and the classes to show maps of."""

    image: int
    """Its index in the examples."""
    said: str
    """The prediction, as text."""
    true: str
    """The label, as text."""
    classes: tuple[int, ...]
    """The predicted class, then the label; if multilabel or binary, the class in question."""
    confidence: float
    """The probability of the prediction."""
    missed: bool = False
    """A false negative."""


@dataclass(frozen=True)
class Picture:
    """The network's input, or a map over it."""

    image: Image.Image
    title: str
    number: str


@dataclass(frozen=True)
class Shown:
    """A mistake and its pictures."""

    mistake: Mistake
    file: str
    pictures: list[Picture]


def find_mistakes(answered: Judgement) -> list[Mistake]:
    """All of them, the most confident first."""
    found = _of_several(answered) if answered.several else _of_one(answered)
    return sorted(found, key=lambda each: -each.confidence)


def most_confident(mistakes: Sequence[Mistake], count: int = MISTAKES_SHOWN) -> list[Mistake]:
    """The first `count`; if multilabel or binary, half false positives and half false negatives, if
    there are enough of both."""
    alarms = [each for each in mistakes if not each.missed]
    misses = [each for each in mistakes if each.missed]
    half = count // 2
    kept = max(half, count - len(misses))
    return alarms[:kept] + misses[: count - min(kept, len(alarms))]


def _of_one(answered: Judgement) -> list[Mistake]:
    scores, labels, names = (
        answered.probabilities,
        answered.examples.labels,
        answered.opened.classes,
    )
    sound = ~np.isnan(scores).any(1)
    answers = np.where(sound[:, None], scores, 0).argmax(1)
    wrong = np.flatnonzero(sound & (answers != labels))
    return [
        Mistake(
            i,
            f"said {names[answers[i]]}",
            f"is {names[labels[i]]}",
            (int(answers[i]), int(labels[i])),
            float(scores[i, answers[i]]),
        )
        for i in wrong.tolist()
    ]


def _of_several(answered: Judgement) -> list[Mistake]:
    """Of all classes; a false negative's confidence is the probability of absence."""
    found = []
    for k, name in enumerate(answered.opened.classes):
        images, there = answered.of_class(k)
        scores, positive = answered.probabilities[:, k], answered.positive(k)
        sound = not np.isnan(answered.thresholds[k]) and not np.isnan(scores[images]).any()
        for i in images[positive[images] != there[images]].tolist() if sound else ():
            words = ("missed", "has") if there[i] else ("said", "has no")
            sure = float(1 - scores[i] if there[i] else scores[i])
            what = f"{words[0]} {name}", f"{words[1]} {name}"
            found.append(Mistake(i, *what, (k,), sure, missed=bool(there[i])))
    return found


def why_no_maps(classifier: Classifier) -> str | None:
    """Why the network has no class activation maps; None if it has them."""
    try:
        densenet_of(classifier)
    except UserError as error:
        return str(error)
    return None


def show_mistakes(
    answered: Judgement, classifier: Classifier, mistakes: Sequence[Mistake], maps: bool
) -> Iterator[Shown]:
    """Each with the network's input and, with `maps`, the maps of its classes.

    The maps cover the whole square, without test-time augmentation.
    """
    for mistake in mistakes:
        square = _square_of(answered, classifier, mistake.image)
        scores = answered.probabilities[mistake.image]
        names = answered.opened.classes
        pictures = [Picture(enlarged(square), "as the network sees it", "")]
        if maps:
            found = class_maps(classifier, square[None], mistake.classes)[0]
            strongest = strongest_of(found)
            for k, own in zip(mistake.classes, found, strict=True):
                over = overlay(square, own, strongest)
                pictures.append(Picture(over, names[k], f"{scores[k]:.1%}"))
        yield Shown(mistake, readable(answered.examples.relative(mistake.image)), pictures)


def _square_of(answered: Judgement, classifier: Classifier, image: int) -> Tensor:
    """As read for the evaluation, [C, crop, crop]."""
    seen = classifier.preprocess
    dataset = ImageDataset(
        answered.examples, seen.square, seen.channels, seen.crop,
        max_pixels=classifier.max_pixels, intensity=seen.scaling,
    )  # fmt: skip
    sample = dataset[(0, image)]
    if not isinstance(sample, Sample):
        raise UserError(f"{sample}: it was read before, and cannot be read now")
    return torch.as_tensor(sample.image)
