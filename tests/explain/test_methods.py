"""methods.py: the libraries' maps are what the papers' formulas give, worked out here by hand."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from densekit.config import UserError
from densekit.explain.cam import features_and_logits
from densekit.explain.methods import gradcam_plus_plus, occlusion
from densekit.infer.classifier import Classifier

CLASSES = torch.tensor([[0, 3], [1, 4], [2, 0]])


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradcam_plus_plus(classifier: Classifier, squares: Tensor, context: type) -> None:
    """Its equation 19, where the gradient at the last map is the weight over the pixels."""
    pytest.importorskip("pytorch_grad_cam")
    with context():
        maps = gradcam_plus_plus(classifier, squares, CLASSES)
    assert maps.shape == (3, 2, 8, 8)
    with torch.inference_mode():
        features, _ = features_and_logits(classifier, classifier.model, squares)
        gradient = classifier.model.classifier.weight[CLASSES] / 64  # [n, k, C]
        total = features.sum((2, 3))[:, None]
        alpha = gradient**2 / (2 * gradient**2 + total * gradient**3 + 1e-6)
        weights = 64 * alpha * gradient.relu()
        expected = torch.einsum("nkc,nchw->nkhw", weights, features)
        expected -= expected.amin((2, 3), keepdim=True)
        expected /= expected.amax((2, 3), keepdim=True)
    assert torch.allclose(maps, expected, atol=1e-4)


def test_gradients_of_the_network_are_left_alone(classifier: Classifier, squares: Tensor) -> None:
    pytest.importorskip("pytorch_grad_cam")
    weight = classifier.model.classifier.weight
    weight.grad = torch.ones_like(weight)
    gradcam_plus_plus(classifier, squares, CLASSES)
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert not any(module._forward_hooks for module in classifier.model.modules())


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_occlusion(classifier: Classifier, squares: Tensor, batch_size: int) -> None:
    pytest.importorskip("captum")
    square, classes = squares[0], CLASSES[0]
    maps = occlusion(classifier, square, classes, batch_size)
    whole = classifier.logits(square[None])[0, classes]
    lost, hidden = torch.zeros(2, 32, 32), torch.zeros(32, 32)
    mean = torch.tensor([round(255 * m) for m in classifier.preprocess.mean], dtype=torch.uint8)
    for top in range(0, 30, 2):
        for left in range(0, 30, 2):
            place = (slice(top, top + 4), slice(left, left + 4))
            image = square.clone()
            image[(slice(None), *place)] = mean[:, None, None]
            fall = whole - classifier.logits(image[None])[0, classes]
            lost[(slice(None), *place)] += fall[:, None, None]
            hidden[place] += 1
    expected = torch.nn.functional.adaptive_avg_pool2d(lost / hidden, 14)
    assert maps.shape == (2, 14, 14)
    assert torch.allclose(maps, expected, atol=1e-4)
    assert maps.abs().max() > 0.01


def test_occlusion_of_floats(classifier: Classifier, squares: Tensor) -> None:
    pytest.importorskip("captum")
    maps = occlusion(classifier, squares[0], CLASSES[0])
    floats = occlusion(classifier, squares[0] / 255, CLASSES[0])
    assert torch.allclose(floats, maps, atol=0.02 * maps.abs().max().item())


def test_a_library_that_is_not_there(
    classifier: Classifier, squares: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(
        UserError, match=r'needs pytorch_grad_cam: pip install "densekit\[explain\]"'
    ):
        gradcam_plus_plus(classifier, squares, CLASSES)
    with pytest.raises(UserError, match=r'needs captum: pip install "densekit\[explain\]"'):
        occlusion(classifier, squares[0], CLASSES[0])
