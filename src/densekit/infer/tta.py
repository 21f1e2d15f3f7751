"""Test-time augmentation: the mean probability over several views of each image.

Probabilities are averaged, not logits, in float64, and turned back into logits, so that everything
downstream is unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torchvision.transforms.v2.functional import five_crop

from densekit.config import UserError, nearest
from densekit.data.config import Task
from densekit.infer.engines import Logits
from densekit.models.artifact import Preprocessing

VIEWS = {"none": 1, "flip": 2, "five-crop": 5}
"""Views per kind: the image; the image and its mirror image; its corners and centre."""


def squares_for(tta: str, preprocessing: Preprocessing) -> Preprocessing:
    """The preprocessing for these views: five-crop reads the whole square of evaluate's resize, and
    crops its corners and centre (Krizhevsky et al., 2012). Raises UserError if impossible.
    """
    if tta not in VIEWS:
        raise UserError(f"--tta {tta}: unknown{nearest(tta, VIEWS)}")
    if tta != "five-crop":
        return preprocessing
    resize, crop = preprocessing.resize, preprocessing.crop
    if resize is None or resize <= crop:
        raise UserError(
            f"--tta five-crop: the network sees the whole image ({crop} pixels of a resize to "
            f"{resize or 'none'}), so there is nothing to cut from; use --tta flip"
        )
    return preprocessing.model_copy(update={"crop": resize})


def averaged(logits: Logits, tta: str, task: Task, crop: int) -> Logits:
    """`logits` averaged over each square's views, float64 [n, K]."""
    if tta == "none":
        return logits

    def of_views(squares: Tensor) -> Tensor:
        return together([logits(view) for view in views(squares, tta, crop)], task)

    return of_views


def views(squares: Tensor, tta: str, crop: int) -> Sequence[Tensor]:
    """[n, C, S, S] -> the network's inputs, each [n, C, crop, crop]."""
    if tta == "flip":
        return squares, squares.flip(-1)
    return [view.contiguous() for view in five_crop(squares, [crop, crop])]


def together(logits: Sequence[Tensor], task: Task) -> Tensor:
    """The logits, float64 [n, K], whose probabilities are the mean of `logits`' probabilities."""
    stacked, count = torch.stack([each.double() for each in logits]), math.log(len(logits))
    if task == "multiclass":
        return stacked.log_softmax(2).logsumexp(0) - count
    return logsigmoid(stacked).logsumexp(0) - logsigmoid(-stacked).logsumexp(0)
