"""Images in, their rows and maps out, by one of three methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from densekit.config import UserError, nearest
from densekit.data.decode import UnreadableImage
from densekit.explain import methods
from densekit.explain.cam import answered, answers_and_maps, densenet_of
from densekit.infer.classifier import Classifier, as_row, in_batches
from densekit.infer.rows import Answer, Row

MethodName = Literal["cam", "gradcam++", "occlusion"]
METHODS: dict[MethodName, str] = {
    "cam": "Class activation maps: what each place adds to the logit of the class, or takes from "
    "it. A map's mean over the picture plus the class' bias is the logit. Full colour is the "
    "strongest place of all maps of one picture, which can therefore be compared.",
    "gradcam++": "Grad-CAM++: which places the gradient says the logit of the class rests on. "
    "It keeps what speaks for the class alone, so nothing is blue. Each map has full colour at "
    "its own strongest place, so maps cannot be compared.",
    "occlusion": "Occlusion: by how much the logit of the class falls, or rises, where a window of "
    "the mean colour, a seventh of the picture wide, hides the place. Full colour is the "
    "strongest place of all maps of one picture, which can therefore be compared.",
}
"""With each one's description, for the page."""
ANSWERS = 5  # per row, at least
LISTED = 20  # classes that a message lists


@dataclass(frozen=True)
class Wanted:
    """What to compute for every image."""

    method: MethodName = "cam"
    topk: int = 3
    """Maps of this many answers, the most probable first."""
    classes: tuple[int, ...] = ()
    """Maps of these classes instead."""
    batch_size: int = 32
    """Images per pass."""


@dataclass(frozen=True)
class Explained:
    """An image's row; and if it has answers, its maps."""

    row: Row
    square: Tensor | None = None
    """The network's input, [C, S, S], see Classifier.read_square."""
    classes: tuple[int, ...] = ()
    """k of them."""
    maps: Tensor | None = None
    """float32 [k, h, w]."""


def explain_images(
    classifier: Classifier, files: Sequence[str], wanted: Wanted
) -> Iterator[Explained]:
    """Each file in order, lazily. Raises UserError if the network has no such maps."""
    if wanted.method != "occlusion":
        densenet_of(classifier)  # refused before an image is read
    at_once = 1 if wanted.method == "occlusion" else wanted.batch_size
    for chunk, squares in classifier.read_batches(in_batches(files, at_once)):
        there = [square for square in squares if isinstance(square, Tensor)]
        found = iter(_explain(classifier, torch.stack(there), wanted) if there else [])
        for file, square in zip(chunk, squares, strict=True):
            if isinstance(square, UnreadableImage):
                yield Explained(as_row(file, square))
                continue
            answers, classes, maps = next(found)
            row = as_row(file, answers)
            yield Explained(row, square, classes, maps) if answers else Explained(row)


def _explain(
    classifier: Classifier, squares: Tensor, wanted: Wanted
) -> Iterator[tuple[list[Answer], tuple[int, ...], Tensor]]:
    """Each image's answers, classes and maps."""
    count = len(classifier.classes)
    k = len(wanted.classes) or min(wanted.topk, count)
    shown = max(ANSWERS, wanted.topk)
    if wanted.method == "cam":
        answers, maps = answers_and_maps(classifier, squares, shown, wanted.classes or None)
    else:
        answers = classifier.answers(squares, shown)
    places = (
        torch.tensor(wanted.classes).expand(len(squares), k)
        if wanted.classes
        else answered(answers, k)
    )
    if wanted.method == "gradcam++":
        maps = methods.gradcam_plus_plus(classifier, squares, places)
    elif wanted.method == "occlusion":
        each = zip(squares, places, strict=True)
        maps = torch.stack([methods.occlusion(classifier, *e, wanted.batch_size) for e in each])
    for row, classes, own in zip(answers, places.tolist(), maps, strict=True):
        yield row, tuple(classes), own[:k]


def method_of(name: str) -> MethodName:
    """Raises UserError for an unknown one."""
    for method in METHODS:
        if name == method:
            return method
    raise UserError(f"--method {name}: unknown{nearest(name, METHODS)}")


def find_classes(classifier: Classifier, names: Sequence[str]) -> tuple[int, ...]:
    """The classes with these names; a number is a class index unless a class has that name.

    Raises UserError.
    """
    places = []
    for name in names:
        if name in classifier.classes:
            places.append(classifier.classes.index(name))
        elif name.isdecimal() and int(name) < len(classifier.classes):
            places.append(int(name))
        else:
            hint = nearest(name, classifier.classes)
            if "did you mean" not in hint and len(classifier.classes) > LISTED:
                hint = f"; it has {len(classifier.classes):,}, which its config.json names"
            raise UserError(f"--class {name}: this network has no such class{hint}")
    return tuple(dict.fromkeys(places))
