"""Class activation maps (Zhou et al., 2016, https://arxiv.org/abs/1512.04150); exact here.

A DenseNet ends with a mean over the pixels of its last map and one linear layer. Both are linear,
so a class' logit is the mean of that class' map, plus its bias: nothing is approximated.

n images, k classes of each, K classes in all, C channels of the last map of h x w pixels.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from densekit.config import UserError
from densekit.infer.classifier import Classifier
from densekit.infer.engines import preparing
from densekit.infer.rows import Answer
from densekit.models.densenet import DenseNet

BYTE_STEPS = 127  # of a signed byte, on either side of 0


class CompactMap(TypedDict):
    """A map for JSON: value = byte * scale / 127, with an error of at most scale / 254."""

    height: int
    width: int
    scale: float
    """The largest |value|."""
    data: str
    """Signed bytes in row-major order, in base64."""


def class_maps(classifier: Classifier, squares: Tensor, classes: Tensor | Sequence[int]) -> Tensor:
    """What each part of an image adds to the logits of `classes`: float32 [n, k, h, w] on the CPU.

    squares: [n, C, S, S], see Classifier.read_square. classes: k classes for all images, or
    int64 [n, k]. A map's mean plus the class' bias is its logit. Raises UserError for a network
    without such maps and for an unknown class.
    """
    network, places = densenet_of(classifier), check_classes(classifier, squares, classes)
    features, _ = features_and_logits(classifier, network, squares)
    return maps_of(network, features, places)


def answers_and_maps(
    classifier: Classifier, squares: Tensor, topk: int, classes: Sequence[int] | None = None
) -> tuple[list[list[Answer]], Tensor]:
    """The classifier's answers, and maps [n, k, h, w] as by `class_maps`, in one pass.

    The maps are those of `classes`, or else of each image's own answers. An image whose logits are
    not finite has no answers, and maps of zeros. Raises UserError as `class_maps` does.
    """
    network = densenet_of(classifier)
    features, logits = features_and_logits(classifier, network, squares)
    answers = classifier.answers_of(logits, topk)
    if classes is None:
        places = answered(answers, min(topk, len(classifier.classes)))
    else:
        places = check_classes(classifier, squares, classes)
    there = torch.tensor([bool(row) for row in answers], dtype=torch.bool)
    maps = maps_of(network, features, places)
    return answers, torch.where(there[:, None, None, None], maps, 0.0)


def answered(answers: list[list[Answer]], k: int) -> Tensor:
    """The first k classes of each image's answers, int64 [n, k]; zeros if it has none."""
    places = [[answer["class"] for answer in row[:k]] or [0] * k for row in answers]
    return torch.tensor(places, dtype=torch.int64).view(-1, k)


def densenet_of(classifier: Classifier) -> DenseNet:
    """The network to make maps from. Raises UserError if its last layers were replaced."""
    network = classifier.model  # raises for an exported network
    if not isinstance(network.classifier, nn.Linear):
        raise UserError(
            f"class activation maps take a network that ends with one linear layer; this one's "
            f"classifier is a {type(network.classifier).__name__}"
        )
    return network


def compact(class_map: Tensor) -> CompactMap:
    """One map, float [h, w], in a few hundred characters. It must be finite."""
    height, width = class_map.shape
    scale = class_map.abs().max().item()
    steps = (class_map / (scale or 1.0) * BYTE_STEPS).round().to(torch.int8)
    data = base64.b64encode(steps.numpy().tobytes()).decode("ascii")
    return {"height": height, "width": width, "scale": scale, "data": data}


def features_and_logits(
    classifier: Classifier, network: DenseNet, squares: Tensor
) -> tuple[Tensor, Tensor]:
    """The last map [n, C, h, w] on the network's device, and float32 logits [n, K] on the CPU."""
    precision = classifier.precision
    if next(network.parameters()).device.type != precision.device.type:  # the engine uses a copy
        precision.place(network)
    prepare = preparing(classifier.preprocess.mean, classifier.preprocess.std, precision)
    with torch.inference_mode(), precision.autocast():
        features = network.forward_features(prepare(squares))
        return features, network.forward_head(features).float().cpu()


def maps_of(network: DenseNet, features: Tensor, places: Tensor) -> Tensor:
    """The last map [n, C, h, w] and classes [n, k] -> maps [n, k, h, w] on the CPU.

    In float32; in float64 if the network and the last map are.
    """
    assert isinstance(network.classifier, nn.Linear)
    weight = network.classifier.weight
    wide = torch.promote_types(torch.float32, torch.promote_types(weight.dtype, features.dtype))
    with torch.inference_mode():
        chosen = weight[places.to(features.device)].to(wide)  # [n, k, C]
        return torch.einsum("nkc,nchw->nkhw", chosen, features.to(wide)).cpu()


def check_classes(
    classifier: Classifier, squares: Tensor, classes: Tensor | Sequence[int]
) -> Tensor:
    """The classes of each image, int64 [n, k]. Raises UserError for a class that does not exist."""
    places = torch.as_tensor(classes, dtype=torch.int64)
    count = len(classifier.classes)
    wrong = places[(places < 0) | (places >= count)]
    if len(wrong):
        raise UserError(f"class {wrong[0]}: this network has classes 0 to {count - 1}")
    return places.expand(len(squares), -1)
