"""A network as one callable: uint8 images [n, C, H, W] -> float32 logits [n, K] on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from densekit.models.artifact import Preprocessing
from densekit.models.densenet import DenseNet
from densekit.precision import Precision

Logits = Callable[[Tensor], Tensor]


def logits_of(model: nn.Module, preprocessing: Preprocessing, precision: Precision) -> Logits:
    """torch's engine: `model` in eval mode by the reference op, normalisation on its device.

    A network in training is copied, so that its mode, op and memory format stay as they are.
    """
    other = isinstance(model, DenseNet) and model.op not in ("auto", "reference")
    if model.training or other:
        model = copy.deepcopy(model).eval()
    if isinstance(model, DenseNet) and other:
        model.set_op("reference")
    model = precision.place(model)

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode(), precision.autocast():
            return model(preprocessing.normalize(precision.send(images))).float().cpu()

    return logits
