"""cam.py: what a map says is what the network computes."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import TINY, tiny, tiny_artifact
from torch import Tensor, nn

from densekit.config import UserError
from densekit.explain.cam import answers_and_maps, class_maps, compact, maps_of
from densekit.infer.classifier import Classifier, load
from densekit.precision import resolve


@pytest.fixture(params=["multiclass", "multilabel"])
def of_either_task(tmp_path: Path, request: pytest.FixtureRequest) -> Classifier:
    return load(tiny_artifact(tmp_path, request.param), "cpu")


def test_a_maps_mean_plus_the_bias_is_the_logit() -> None:
    """In float64, where the two ways of adding up differ by rounding alone."""
    model = tiny().double()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        features = model.forward_features(x)
        maps = maps_of(model, features, torch.arange(5).expand(3, 5))
        logits = maps.mean((2, 3)) + model.classifier.bias
        assert logits.dtype == torch.float64
        assert torch.allclose(logits, model(x), rtol=1e-13, atol=1e-13)
        assert torch.equal(model.forward_head(features), model(x))


def test_the_identity_holds_of_what_is_returned(
    of_either_task: Classifier, squares: Tensor
) -> None:
    maps = class_maps(of_either_task, squares, range(5))
    assert maps.shape == (3, 5, 8, 8)
    assert maps.dtype == torch.float32
    normal = of_either_task.preprocess.normalize(squares).double()
    with torch.inference_mode():
        truth = tiny().double()(normal)
    found = maps.double().mean((2, 3)) + tiny().classifier.bias.double()
    assert torch.allclose(found, truth, rtol=1e-5, atol=1e-5)


def test_answers_and_their_maps_in_one_pass(of_either_task: Classifier, squares: Tensor) -> None:
    passes: list[int] = []
    of_either_task.model.features.register_forward_hook(lambda *_: passes.append(1))
    answers, maps = answers_and_maps(of_either_task, squares, topk=2)
    assert passes == [1]
    assert answers == of_either_task.answers(squares, 2)
    classes = torch.tensor([[a["class"] for a in row] for row in answers])
    assert torch.equal(maps, class_maps(of_either_task, squares, classes))
    _, everything = answers_and_maps(of_either_task, squares, topk=100)
    assert everything.shape == (3, 5, 8, 8)


def test_no_image(classifier: Classifier, squares: Tensor) -> None:
    assert class_maps(classifier, squares[:0], [4]).shape == (0, 1, 8, 8)
    answers, maps = answers_and_maps(classifier, squares[:0], topk=3)
    assert answers == []
    assert maps.shape == (0, 3, 8, 8)


def test_an_image_without_a_finite_answer_has_maps_of_zeros(
    classifier: Classifier, squares: Tensor
) -> None:
    classifier.model.classifier.bias.data[1] = float("inf")
    answers, maps = answers_and_maps(classifier, squares[:2], topk=2)
    assert answers == [[], []]
    assert not maps.any()


def test_a_class_that_there_is_not(classifier: Classifier, squares: Tensor) -> None:
    for wrong in ([5], [-1], torch.tensor([[0], [9]])):
        with pytest.raises(UserError, match=r"class -?\d: this network has classes 0 to 4"):
            class_maps(classifier, squares[:2], wrong)


def test_another_head_is_refused(classifier: Classifier, squares: Tensor) -> None:
    width = TINY.block_outputs[-1]
    classifier.model.classifier = nn.Sequential(nn.Dropout(), nn.Linear(width, 5))
    with pytest.raises(UserError, match="one linear layer; this one's classifier is a Sequential"):
        answers_and_maps(classifier, squares, 1)


def test_a_compact_map_is_the_map(classifier: Classifier, squares: Tensor) -> None:
    class_map = class_maps(classifier, squares[:1], [3])[0, 0]
    sent = compact(class_map)
    steps = np.frombuffer(base64.b64decode(sent["data"]), np.int8)
    values = steps.reshape(sent["height"], sent["width"]) * sent["scale"] / 127
    assert np.abs(values - class_map.numpy()).max() <= sent["scale"] / 254 * 1.001
    assert np.abs(steps).max() == 127
    assert len(sent["data"]) == 88
    nothing = compact(torch.zeros(2, 3))
    assert (nothing["scale"], nothing["height"], nothing["width"]) == (0.0, 2, 3)
    assert base64.b64decode(nothing["data"]) == bytes(6)


def test_in_bf16(classifier: Classifier, squares: Tensor) -> None:
    """The answers are those of the same precision; the maps differ as such logits do."""
    exact = class_maps(classifier, squares, range(5))
    classifier.precision = resolve("cpu", "bf16")
    rounded = class_maps(classifier, squares, range(5))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.gpu
def test_a_gpu_maps_alike(classifier: Classifier, tmp_path: Path, squares: Tensor) -> None:
    gpu = load(tmp_path / "best", device="cuda")
    maps, others = (class_maps(c, squares, [0, 3]) for c in (gpu, classifier))
    assert torch.allclose(maps, others, rtol=1e-3, atol=1e-3)
