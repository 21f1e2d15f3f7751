"""The losses: of what an image is, and of what is there in it. Sums over images.

n images, K classes. Targets of one class an image are int64 [n] or soft float [n, K]; of classes
that are there or not, float [n, K] from 0 to 1, NaN where it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.config import UserError
from densekit.data.balance import describe_balance
from densekit.data.classes import listed
from densekit.data.config import Task
from densekit.data.listing import Examples
from densekit.training.recipe import LoopConfig, Recipe

Loss = Callable[[Tensor, Tensor], Tensor]
"""logits [n, K] and targets -> the sum of the images' losses."""


def make_loss(config: LoopConfig, task: Task, device: torch.device) -> Loss:
    """The task's loss with the recipe's weights, which are numbers here."""
    of_task = multiclass_loss if task == "multiclass" else multilabel_loss
    weights = None
    if config.class_weights is not None:
        assert config.class_weights != "balanced"
        weights = torch.tensor(config.class_weights, device=device)
    return partial(
        of_task, weights=weights, smoothing=config.label_smoothing, gamma=config.focal_gamma
    )


def balanced_weights(examples: Examples) -> tuple[float, ...]:
    """What loop.class_weights=balanced means for these images. Raises UserError for a class that
    none of them has."""
    labels, num_classes = examples.labels, examples.num_classes
    if labels.ndim == 2:
        there, others = (labels == 1).sum(0), (labels == 0).sum(0)
    else:
        there = np.bincount(labels, minlength=num_classes)
        others = np.full(num_classes, len(labels) / num_classes)
    if not there.all() or not others.all():
        place = int(np.argmin(there * others))
        raise UserError(
            f"loop.class_weights=balanced: {examples.origin} has images of one kind alone for the "
            f"class {examples.classes.get(place, place)}; give a number for each class"
        )
    return tuple((others / there).tolist())


def imbalance_notes(recipe: Recipe, train: Examples) -> list[str]:
    """What is done about uneven classes, a sentence each; the recipe is resolved."""
    notes = []
    if recipe.data.balance:
        notes.append(describe_balance(train, recipe.data.balance))
    weights = recipe.loop.class_weights
    if weights is not None:
        names = [train.classes.get(k, str(k)) for k in range(len(weights))]
        shown = [f"{name} {weight:.4g}" for name, weight in zip(names, weights, strict=True)]
        notes.append(f"loop.class_weights: the loss counts {listed(shown)} times")
    return notes


def multiclass_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    gamma: float = 0.0,
) -> Tensor:
    """Cross entropy; with `gamma` focal: each class' term times (1 - its probability) ** gamma.

    `weights` [K] are factors of the classes' terms; their sum does not divide the loss, as torch's
    mean does, so that an image counts alike in every batch.
    """
    if not gamma:
        return F.cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="sum")
    num_classes = logits.shape[1]
    soft = targets if targets.ndim == 2 else F.one_hot(targets, num_classes).to(logits.dtype)
    soft = soft * (1 - smoothing) + smoothing / num_classes
    logs = logits.log_softmax(1)
    terms = -soft * (1 - logs.exp()) ** gamma * logs
    return (terms if weights is None else terms * weights).sum()


def multilabel_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    gamma: float = 0.0,
) -> Tensor:
    """Binary cross entropy, of each image the mean over the K classes, unknown ones counted as 0;
    with `gamma` focal, as torchvision's sigmoid_focal_loss without alpha.

    `weights` [K] are factors where a class is there (torch's pos_weight).
    """
    unknown = targets.isnan()
    targets = targets.masked_fill(unknown, 0) * (1 - smoothing) + smoothing / 2
    terms = F.binary_cross_entropy_with_logits(
        logits, targets, pos_weight=weights, reduction="none"
    )
    if gamma:
        there = logits.sigmoid()
        right = there * targets + (1 - there) * (1 - targets)
        terms = terms * (1 - right) ** gamma
    return terms.masked_fill(unknown, 0).sum() / logits.shape[1]
