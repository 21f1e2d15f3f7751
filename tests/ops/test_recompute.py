"""Checkpoints change nothing but the memory: bit for bit the reference, with its statistics."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from seen import SMALL, Seen, images
from torch import Tensor, nn

from densekit.models.densenet import DenseBlock, DenseNet, DenseNetConfig

CONFIGS = {
    "bottleneck": SMALL,
    "no bottleneck": SMALL.model_copy(update={"bn_size": 0}),
    "dropout": SMALL.model_copy(update={"drop_rate": 0.3}),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
CONVOLUTIONS = 1 + 2 * 2 * 2 + 1  # stem, blocks, transition


def network(op: str, config: DenseNetConfig = SMALL, sync_bn: bool = False) -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(config, op=op, sync_bn=sync_bn)


def two_steps(model: DenseNet, precision: str = "fp32") -> list[Tensor]:
    """Outputs, gradients, and in the end weights and buffers."""
    dtype = PRECISIONS[precision]
    model.to(torch.promote_types(dtype, torch.float32))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = []
    for step in range(2):
        torch.manual_seed(step)  # dropout's
        x = images(seed=step).to(next(model.parameters()).dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y = model(x)
        optimizer.zero_grad()
        y.float().square().sum().backward()
        optimizer.step()
        found.append(y.detach())
        for parameter in model.parameters():
            assert parameter.grad is not None
            found.append(parameter.grad.clone())
    return [*found, *model.state_dict().values()]


@pytest.mark.parametrize("sync_bn", [False, True], ids=["", "sync_bn"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", CONFIGS)
def test_it_is_the_reference_bit_for_bit(config: str, precision: str, sync_bn: bool) -> None:
    found, expected = (
        two_steps(network(op, CONFIGS[config], sync_bn), precision)
        for op in ("recompute", "reference")
    )
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_running_statistics_are_touched_once_by_forward_and_never_by_backward() -> None:
    model = network("recompute")
    before = copy.deepcopy(list(model.buffers()))
    y = model(images())
    after = copy.deepcopy(list(model.buffers()))
    y.sum().backward()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(after, model.buffers(), strict=True))
    counts = [m.num_batches_tracked for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {int(count) for count in counts} == {1}


def test_statistics_survive_an_error_in_backward() -> None:
    model = network("recompute")
    buffers = list(model.buffers())
    y = model(images())
    model.features.denseblock1.denselayer1.conv2.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the second pass"):
        y.sum().backward()
    assert all(a is b for a, b in zip(buffers, model.buffers(), strict=True))


def fail(*_: object) -> None:
    raise RuntimeError("in the second pass")


def test_no_convolution_runs_twice() -> None:
    model = network("recompute")
    with Seen() as seen:
        y = model(images())
        assert seen.counts["aten::convolution"] == CONVOLUTIONS
        norms = seen.counts["aten::native_batch_norm"]
        y.sum().backward()
    assert seen.counts["aten::convolution"] == CONVOLUTIONS
    assert seen.counts["aten::convolution_backward"] == CONVOLUTIONS
    assert seen.counts["aten::native_batch_norm"] == norms + 2 * 2 * 2  # the layers' own, again


def bytes_saved(op: str) -> int:
    """Of what the forward pass of a block of 12 layers keeps for backward, each memory once."""
    block = DenseBlock(8, 12, SMALL.model_copy(update={"bn_size": 4}), nn.BatchNorm2d)
    block.op = op
    storages: dict[int, int] = {}
    kept = []  # so that no address is used again

    def pack(x: Tensor) -> Tensor:
        kept.append(x)
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        block(torch.randn(4, 8, 16, 16, requires_grad=True))
    return sum(storages.values())


def test_less_is_kept_for_backward() -> None:
    """A checkpoint holds on to its inputs, which hooks on saved tensors do not see: they are the
    maps of all layers and the bottlenecks, kept once each."""
    maps = 4 * (4 * 16 * 16) * (8 + 12 * 4 + 12 * 16)
    assert bytes_saved("recompute") + maps < 0.5 * bytes_saved("reference")


def test_hooks_on_inner_modules_fire() -> None:
    """Before the convolutions a second time, in backward; behind them only once."""
    model, calls = network("recompute"), Counter[str]()
    layer = model.features.denseblock1.denselayer1
    for name in ("norm1", "conv1", "norm2", "conv2"):
        getattr(layer, name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    y = model(images())
    assert calls == {"norm1": 1, "conv1": 1, "norm2": 1, "conv2": 1}
    y.sum().backward()
    assert calls == {"norm1": 2, "conv1": 1, "norm2": 2, "conv2": 1}


def test_replaced_modules_are_used() -> None:
    found = []
    for op in ("recompute", "reference"):
        model = network(op)
        layer = model.features.denseblock1.denselayer1
        layer.norm1, layer.relu2 = nn.GroupNorm(2, 8), nn.GELU()
        found.append(two_steps(model))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_without_gradients_it_is_the_reference() -> None:
    models = [network(op).eval() for op in ("recompute", "reference")]
    with torch.no_grad():
        found, expected = (model(images()) for model in models)
    assert torch.equal(found, expected)


def test_a_graph_can_be_gone_through_twice() -> None:
    model = network("recompute")
    y = model(images()).square().sum()
    parameters = list(model.parameters())
    first = torch.autograd.grad(y, parameters, retain_graph=True)
    second = torch.autograd.grad(y, parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_it_has_the_second_derivative() -> None:
    found = []
    for op in ("recompute", "reference"):
        model, x = network(op).double(), images().double().requires_grad_()
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), x)[0])
    torch.testing.assert_close(*found)


def test_torch_compile_leaves_its_blocks_as_they_are() -> None:
    """Nor are they in one graph, which torch says; lean and reference are."""
    torch.compiler.reset()
    model = network("recompute")
    found = torch.compile(model, backend="eager")(images())
    torch.testing.assert_close(found, network("reference")(images()))
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match=r"use model\.op=reference"):
        torch.compile(model, backend="eager", fullgraph=True)(images())
