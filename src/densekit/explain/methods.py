"""Maps by methods other than class activation maps, each from a maintained library.

Grad-CAM++ (Chattopadhay et al., 2018, https://arxiv.org/abs/1710.11063) by pytorch-grad-cam;
occlusion (Zeiler & Fergus, 2014, https://arxiv.org/abs/1311.2901) by captum. Shapes as in cam.py.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.config import needs_extra
from densekit.explain.cam import densenet_of, features_and_logits
from densekit.infer.classifier import Classifier

CELLS = 14  # per side of an occlusion map


def gradcam_plus_plus(classifier: Classifier, squares: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM++ at the last map: float32 [n, k, h, w], each map from 0 to 1.

    The library scales each map separately, so the strengths of two maps cannot be compared.
    squares: [n, C, S, S]; classes: int64 [n, k]. Raises UserError without the library,
    and for a network without a linear classifier.
    """
    with needs_extra("explain", "Grad-CAM++"):
        from pytorch_grad_cam import GradCAMPlusPlus
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget as Target
    network = densenet_of(classifier)
    features, _ = features_and_logits(classifier, network, squares)
    with torch.inference_mode(False), torch.enable_grad():
        features = features.float().clone().requires_grad_()
        # All after the last map, with a copy of the classifier: the library clears gradients.
        alone = copy.deepcopy(network.classifier)
        tail = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), alone)
        method = GradCAMPlusPlus(tail, [tail[0]])
        columns = [method(features, [Target(place) for place in column]) for column in classes.T]
    return torch.stack([torch.from_numpy(column) for column in columns], 1)


def occlusion(
    classifier: Classifier, square: Tensor, classes: Tensor, batch_size: int = 32
) -> Tensor:
    """How much a logit drops when a window hides part of the image: float32 [k, 14, 14].

    The window has the preprocessing's mean colour and moves by half its side, a fourteenth of the
    image's. A pixel's value is the mean over all windows that hide it, a cell's the mean over its
    pixels. square: [C, S, S], see Classifier.read_square; classes: int64 [k]; `batch_size` images
    go in a pass. Needs only the logits, so it works with any engine. Raises UserError without the
    library.
    """
    with needs_extra("explain", "occlusion"):
        from captum.attr import Occlusion
    channels, side = square.shape[0], square.shape[-1]
    step = max(1, round(side / CELLS))
    mean = torch.tensor(classifier.preprocess.mean).view(1, -1, 1, 1)
    if not square.is_floating_point():
        mean = mean.mul(255).round()

    def logits(images: Tensor) -> Tensor:
        return classifier.logits(images.to(square.dtype))[:, classes]

    lost = Occlusion(logits).attribute(
        square[None].float(),
        sliding_window_shapes=(channels, 2 * step, 2 * step),
        strides=(channels, step, step),
        baselines=mean.expand(1, channels, side, side),
        perturbations_per_eval=batch_size,
    )  # [k, C, S, S]; channels are hidden together, so they are equal
    return F.adaptive_avg_pool2d(lost[:, 0].float(), min(side, CELLS))
