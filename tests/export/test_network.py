"""network.py: what is rewritten for export computes the same."""

from __future__ import annotations

import pytest
import torch

from densekit.data.transforms import Preprocessing
from densekit.export.network import ExportedNetwork, PooledTransition, pooled, traced
from densekit.models.densenet import DenseNet, DenseNetConfig

CONFIG = DenseNetConfig(
    growth_rate=12, block_config=(2, 3, 2), num_init_features=16, num_classes=7, image_size=64
)


def network(**changes: object) -> DenseNet:
    torch.manual_seed(0)
    made = DenseNet(CONFIG.model_copy(update=changes)).eval()
    for name, buffer in made.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return made


@pytest.mark.parametrize(("height", "width"), [(64, 64), (71, 93)])
def test_pooling_before_the_convolution_is_the_same_algebra(height: int, width: int) -> None:
    before = network().double()
    after = pooled(before)
    assert sum(isinstance(m, PooledTransition) for m in after.modules()) == 2
    assert not any(isinstance(m, PooledTransition) for m in before.modules())
    images = torch.randn(3, 3, height, width, dtype=torch.float64)
    with torch.inference_mode():
        wanted, got = before(images), after(images)
    assert (got - wanted).abs().max() <= 1e-12 * wanted.abs().max()


def test_in_float32_it_differs_by_rounding_alone() -> None:
    before = network()
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        truth = pooled(before.double())(images.double())
        ours = (pooled(before.float())(images) - truth).abs().max()
        theirs = (before.float()(images) - truth).abs().max()
    assert ours <= 2 * theirs


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_the_preprocessing_inside_is_that_outside(task: str) -> None:
    model = network()
    preprocessing = Preprocessing(resize=None, crop=64)
    whole = ExportedNetwork(model, task, preprocessing)  # type: ignore[arg-type]
    images = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        probabilities, logits = whole(images)
        wanted = model(preprocessing.normalize(images.permute(0, 3, 1, 2)))
    torch.testing.assert_close(logits, wanted)
    answers = wanted.softmax(1) if task == "multiclass" else wanted.sigmoid()
    torch.testing.assert_close(probabilities, answers)


def test_pixels_of_more_than_8_bits_come_in_as_fractions() -> None:
    preprocessing = Preprocessing(resize=None, crop=64, intensity="full")
    whole = ExportedNetwork(network(), "multiclass", preprocessing)
    images = torch.rand(2, 64, 64, 3)
    with torch.inference_mode():
        wanted = network()(preprocessing.normalize(images.permute(0, 3, 1, 2)))
        torch.testing.assert_close(whole(images)[1], wanted)
    assert traced(whole, 3, 64, any_size=False).module()(images)[1].shape == (2, 7)


@pytest.mark.parametrize("inside", [True, False])
def test_any_batch_and_size(inside: bool) -> None:
    whole = ExportedNetwork(network(), "multiclass", Preprocessing() if inside else None)
    program = traced(whole, 3, 64, any_size=True).module()
    for count, height, width in ((1, 64, 64), (5, 48, 97)):
        shape = (count, height, width, 3) if inside else (count, 3, height, width)
        images = torch.randint(256, shape, dtype=torch.uint8)
        images = images if inside else images.float()
        with torch.inference_mode():
            torch.testing.assert_close(program(images), whole(images))


def test_a_fixed_size_takes_any_batch_and_no_other_size() -> None:
    program = traced(ExportedNetwork(network(), "multiclass"), 3, 64, any_size=False).module()
    assert program(torch.zeros(5, 3, 64, 64))[0].shape == (5, 7)
    with pytest.raises(Exception, match="64"):
        program(torch.zeros(1, 3, 65, 64))


def test_a_network_placed_in_channels_last_is_traced_as_a_fresh_one() -> None:
    """NNCF's int8 of the other trace answered something else."""
    fresh, placed = network(), network().to(memory_format=torch.channels_last)
    programs = [
        traced(ExportedNetwork(each, "multiclass"), 3, 64, False) for each in (fresh, placed)
    ]
    one, other = (str(program.graph) for program in programs)
    assert one == other
    for tensor in programs[1].state_dict.values():
        assert tensor.is_contiguous()
