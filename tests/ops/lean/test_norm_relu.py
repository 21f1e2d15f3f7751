"""relu(BatchNorm(x)) and its pools are the modules', to rounding; truth.py has the rule."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from truth import (
    BF16,
    EVERY,
    EXACT,
    FP32,
    FP64,
    FULL,
    ON,
    ONE_DRAW,
    Kinds,
    Precision,
    channels_last,
    check,
    distance,
    distances,
    draw_norms,
    images,
    steps,
)

from densekit.ops.lean.norm_relu import norm_relu

POOLS: dict[Any, nn.Module] = {
    "none": nn.Identity(),
    "average": nn.AvgPool2d(2),
    "max": nn.MaxPool2d(3, stride=2, padding=1),
}
SHAPE = (3, 10, 6, 4)
POOLED = pytest.mark.parametrize("pool", POOLS)


class Norm(nn.Module):
    """A norm alone, as a part of a network is."""

    def __init__(self, channels: int, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, momentum=momentum)
        draw_norms(self)


def own(pool: Any) -> Callable[[Any, Tensor], Tensor]:
    return lambda module, x: norm_relu(x, module.norm, pool)


def modules(pool: Any) -> Callable[[Any, Tensor], Tensor]:
    return lambda module, x: POOLS[pool](torch.relu(module.norm(x)))


@ON
@EVERY
@POOLED
@pytest.mark.parametrize(
    "shape", [SHAPE, (2, 35, 7, 5), (1, 8, 9, 2), (2, 3, 2, 13), (5, 1, 3, 3)], ids=str
)
def test_sizes(shape: tuple[int, ...], pool: str, precision: Precision, device: str) -> None:
    draws = lambda draw: images(shape, draw)  # noqa: E731 (as short as it can be)
    check(own(pool), modules(pool), Norm(shape[1]), draws, precision, device)


@ON
@pytest.mark.parametrize("pool", ["none", "max"])
@pytest.mark.parametrize("shape", [(6, 8, 1, 1), (3, 8, 1, 6)], ids=str)
def test_maps_of_one_row(shape: tuple[int, ...], pool: str, device: str) -> None:
    check(own(pool), modules(pool), Norm(8), lambda draw: images(shape, draw), FP64, device)


@ON
@EVERY
@POOLED
@pytest.mark.parametrize("case", ["eval", "momentum None", "NCHW"])
def test_modes(case: str, pool: str, precision: Precision, device: str) -> None:
    module = Norm(SHAPE[1], None if case == "momentum None" else 0.1).train(case != "eval")
    layout = Tensor.contiguous if case == "NCHW" else channels_last
    draws = lambda draw: images(SHAPE, draw)  # noqa: E731
    check(own(pool), modules(pool), module, draws, precision, device, layout)


@ON
@POOLED
@FULL
def test_a_mean_of_1000_deviations(pool: str, precision: Precision, device: str) -> None:
    draws = lambda draw: images(SHAPE, draw, 1000.0)  # noqa: E731
    check(own(pool), modules(pool), Norm(SHAPE[1]), draws, precision, device)


@ON
@ONE_DRAW
@POOLED
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_pixel_spreads_as_far_as_by_the_modules(
    value: float, training: bool, pool: str, precision: Precision, device: str
) -> None:
    x = images(SHAPE)[0]
    x[1, 2, 3, 3] = value
    module = Norm(SHAPE[1]).train(training)
    found, expected = (steps(f(pool), module, [x], precision, device) for f in (own, modules))
    same_where_finite(found, expected, {FP64: EXACT, FP32: 1e-5, BF16: 0.02}[precision])


@ON
@ONE_DRAW
def test_of_several_nans_the_max_pool_takes_torchs(precision: Precision, device: str) -> None:
    x = images(SHAPE)[0]
    x[0, :, 1:4, 1:4] = float("nan")
    module = Norm(SHAPE[1]).eval()
    found, expected = (steps(f("max"), module, [x], precision, device) for f in (own, modules))
    same_where_finite(found, expected, {FP64: EXACT, FP32: 1e-5, BF16: 0.02}[precision])


def same_where_finite(found: Kinds, expected: Kinds, limit: float) -> None:
    """That the same values are finite, and near, and that the same gradients are NaN."""
    for kind, name in [(kind, name) for kind, part in expected.items() for name in part]:
        ours, theirs = found[kind][name], expected[kind][name]
        assert torch.equal(ours.isfinite(), theirs.isfinite()), (kind, name)
        if not kind.startswith("running"):
            assert torch.equal(ours.isnan(), theirs.isnan()), (kind, name)
        found[kind][name], expected[kind][name] = (t[theirs.isfinite()] for t in (ours, theirs))
    assert max(distances(found, expected).values()) <= limit


@pytest.mark.parametrize("tied", [0.0, 1.0], ids=["all closed", "all equal"])
def test_of_equal_pixels_the_max_pool_takes_torchs(tied: float) -> None:
    module = Norm(4).eval()
    nn.init.ones_(module.norm.weight)
    nn.init.constant_(module.norm.bias, 100 * tied - 50)
    draws = lambda _: [torch.full((1, 4, 7, 6), 0.5, dtype=torch.float64)]  # noqa: E731
    for precision in (FP64, FP32, BF16):
        check(own("max"), modules("max"), module, draws, precision, "cpu")


@ON
@POOLED
@pytest.mark.parametrize("asked", list(product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_gradients_of_any_subset(
    training: bool, asked: tuple[bool, bool, bool], pool: str, device: str
) -> None:
    def gradients(function: Callable[[Any, Tensor], Tensor]) -> dict[str, Tensor | None]:
        module = Norm(SHAPE[1]).double().to(device).train(training)
        x = channels_last(images(SHAPE)[0].to(device))
        leaves = {"x": x, "gamma": module.norm.weight, "beta": module.norm.bias}
        for leaf, wanted in zip(leaves.values(), asked, strict=True):
            leaf.requires_grad_(wanted)
        out = function(module, x)
        assert out.requires_grad == any(asked)
        if any(asked):
            out.square().sum().backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    found, expected = gradients(own(pool)), gradients(modules(pool))
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:
            assert distance({"": found[name]}, {"": gradient}) <= EXACT, name


@ON
@POOLED
def test_it_saves_the_map_and_vectors(pool: str, device: str) -> None:
    """And which pixels a max pool took, a byte for each."""
    module, x = Norm(8).to(device), channels_last(images((2, 8, 16, 16))[0].float().to(device))
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = norm_relu(x, module.norm, pool)
    found.pop(x.data_ptr())
    assert sum(found.values()) <= 8 * 8 * 8 + (out.numel() if pool == "max" else 0)


@ON
def test_forward_without_gradients_updates_running_statistics(device: str) -> None:
    found, expected = Norm(SHAPE[1]).double().to(device), Norm(SHAPE[1]).double().to(device)
    x = images(SHAPE)[0].to(device)
    with torch.no_grad():
        assert not norm_relu(x, found.norm).requires_grad
        expected.norm(x)
    assert distance(dict(found.named_buffers()), dict(expected.named_buffers())) <= EXACT


def test_one_value_per_channel_is_refused_as_by_torch() -> None:
    x = torch.ones(1, 10, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        norm_relu(x, Norm(10).norm)
    assert norm_relu(x, Norm(10).eval().norm).shape == x.shape
