"""A network's evaluation in one call: numbers, against the reference in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.one_call import one_call
from densekit.ops.lean.kernels import inference

pytestmark = pytest.mark.skipif(inference.reason() is not None, reason=str(inference.reason()))

FORMATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
AT_MOST = 2.5  # times the error of torch's modules in the same format; 0.5 to 1.7 were seen

NETWORKS = {
    "imagenet": (DenseNetConfig(block_config=(3, 4, 3), num_classes=50), (3, 65, 96)),
    "odd": (
        DenseNetConfig(
            growth_rate=13, block_config=(4, 3), num_init_features=17, bn_size=3, in_channels=1
        ),
        (5, 61, 45),
    ),
    "cifar": (
        DenseNetConfig(
            growth_rate=12, block_config=(4, 4), num_init_features=24, stem="cifar", num_classes=10
        ),
        (3, 32, 32),
    ),
    "no bottleneck": (
        DenseNetConfig(
            growth_rate=12, block_config=(5, 5), num_init_features=16, bn_size=0, compression=1,
            stem="cifar", num_classes=0, in_channels=2,
        ),
        (4, 31, 18),
    ),
    "one pixel": (DenseNetConfig(block_config=(2,), num_classes=7), (2, 1, 4)),
    "wide": (
        DenseNetConfig(growth_rate=48, block_config=(2, 2), num_init_features=96, num_classes=5),
        (1, 40, 40),
    ),
}  # fmt: skip


def network(config: DenseNetConfig) -> DenseNet:
    """In evaluation, with statistics, scales and shifts unlike those of a new one."""
    torch.manual_seed(0)
    model = DenseNet(config).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    return model


def batch(config: DenseNetConfig, n: int, h: int, w: int) -> Tensor:
    return torch.randn(n, config.in_channels, h, w, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: DenseNet, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert one_call(model, x, DenseNet) is not None
        return model(x)


@torch.no_grad()
def reference(model: DenseNet, x: Tensor, dtype: torch.dtype) -> Tensor:
    model = copy.deepcopy(model)
    model.set_op("reference")
    if dtype == torch.float64:
        return model.double()(x.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(x)


def error(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


@FORMATS
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_as_near_to_the_truth_as_the_modules(name: str, dtype: torch.dtype) -> None:
    config, (n, h, w) = NETWORKS[name]
    model, x = network(config), batch(config, n, h, w)
    true, theirs = reference(model, x, torch.float64), reference(model, x, dtype)
    ours = logits(model, x, dtype)
    assert ours.dtype == torch.float32
    assert error(ours, true) <= AT_MOST * error(theirs, true)


def test_where_means_are_a_thousand_deviations() -> None:
    config, (n, h, w) = NETWORKS["imagenet"]
    model, x = network(config), batch(config, n, h, w)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            with torch.no_grad():
                norm.running_mean += 1000
                norm.bias += 1000 * norm.weight / (norm.running_var + norm.eps).sqrt()
    true = reference(model, x, torch.float64)
    theirs = reference(model, x, torch.float32)
    assert error(logits(model, x), true) <= AT_MOST * error(theirs, true)


@FORMATS
@pytest.mark.parametrize("name", ["imagenet", "cifar", "no bottleneck"])
def test_an_image_has_the_same_logits_in_any_batch_and_number_of_threads(
    name: str, dtype: torch.dtype
) -> None:
    config, (_, h, w) = NETWORKS[name]
    model, x = network(config), batch(config, 7, h, w)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([logits(model, image[None], dtype) for image in x])
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            for n in (1, 2, 5, 7):
                assert torch.equal(logits(model, x[:n], dtype), alone[:n]), (count, n)
    finally:
        torch.set_num_threads(threads)


@FORMATS
def test_images_in_any_layout(dtype: torch.dtype) -> None:
    config, (n, h, w) = NETWORKS["imagenet"]
    model, x = network(config), batch(config, n, h, w)
    expected = logits(model, x, dtype)
    large = torch.zeros(2 * n, 3, h + 3, 2 * w)
    large[::2, :, 3:, ::2] = x
    for same in (x.contiguous(memory_format=torch.channels_last), large[::2, :, 3:, ::2]):
        assert torch.equal(logits(model, same, dtype), expected)
    one = x[:1].expand(2, -1, -1, -1)
    assert torch.equal(logits(model, one, dtype), expected[:1].expand(2, -1))


@FORMATS
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_pixel_that_is_not_finite_spoils_its_own_image_alone(
    value: float, dtype: torch.dtype
) -> None:
    config, (n, h, w) = NETWORKS["imagenet"]
    model, x = network(config), batch(config, n, h, w)
    expected = logits(model, x, dtype)
    x[1, 0, 30, 40] = value
    found = logits(model, x, dtype)
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_a_weight_that_is_nan_reaches_the_logits() -> None:
    config, (n, h, w) = NETWORKS["odd"]
    for name in ("conv0", "denseblock1.denselayer2.conv1", "denseblock2.denselayer1.norm2"):
        model = network(config)
        with torch.no_grad():
            model.features.get_submodule(name).weight.flatten()[0] = float("nan")
        assert logits(model, batch(config, n, h, w)).isnan().all(), name
