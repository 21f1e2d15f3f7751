"""What lean computes for whom: gradients that are asked for, no others; and what it saves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_forward import SHAPE, block, computed
from torch import Tensor, nn
from truth import EXACT, ON, Kinds, channels_last, distance, images

from densekit.ops.lean.kernels import plain

# Frozen parts -------------------------------------------------------------------------------


@contextmanager
def convolutions_backward() -> Iterator[list[tuple[bool, bool]]]:
    """Whether lean computes the gradients of the input and of the weight, of each meanwhile."""
    masks = []
    compute = plain.norm_relu_conv_backward

    def counted(*arguments: Any) -> None:
        sums, grad = arguments[5:7]
        masks.append((sums is not None, grad is not None))
        compute(*arguments)

    with mock.patch.object(plain, "norm_relu_conv_backward", counted):
        yield masks


def gradients(op: str, module: nn.Module, x: Tensor, asked: dict[str, bool]) -> dict[str, Tensor]:
    """Of those that were asked for and of the input, named x; None where there is none."""
    x = x.detach().requires_grad_(asked["x"])
    module.zero_grad()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(asked[name])
    out = computed(op)(module, x)
    assert out.requires_grad == any(asked.values())
    if out.requires_grad:
        out.backward(images(tuple(out.shape))[0].to(out))
    return {"x": x.grad, **{name: p.grad for name, p in module.named_parameters()}}


def names(module: nn.Module) -> list[str]:
    """x, and the parameters in the order in which they are used."""
    return ["x", *(name for name, _ in module.named_parameters())]


def expected_convolutions(module: nn.Module, asked: dict[str, bool]) -> tuple[int, int]:
    """Gradients of inputs, since something before the convolution asks, and of weights."""
    order = names(module)
    convolutions = [name for name in order if "conv" in name]
    before = [any(asked[n] for n in order[: order.index(name)]) for name in convolutions]
    return sum(before), sum(asked[name] for name in convolutions)


@pytest.mark.parametrize("bn_size", [0, 4])
@given(data=st.data())
def test_gradients_of_any_subset(bn_size: int, data: st.DataObject) -> None:
    module = block(layers=2, bn_size=bn_size).double()
    x = channels_last(images((2, 10, 3, 2))[0])
    training = st.booleans()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.train(data.draw(training))
    asked = {name: data.draw(st.booleans(), label=name) for name in names(module)}
    everything = dict.fromkeys(asked, True)
    truth = gradients("reference", module, x, everything)
    with convolutions_backward() as masks:
        found = gradients("lean", module, x, asked)
    assert {name for name, grad in found.items() if grad is not None} == {
        name for name in asked if asked[name]
    }
    for name, grad in found.items():
        if grad is not None:
            assert distance({name: grad}, {name: truth[name]}) <= 10 * EXACT, name
    counts = tuple(sum(mask[i] for mask in masks) for i in (0, 1))
    assert counts == expected_convolutions(module, asked)


@ON
@pytest.mark.parametrize("asked_of", ["x", "denselayer2.conv1.weight", "denselayer1.norm1.weight"])
def test_one_gradient_alone(asked_of: str, device: str) -> None:
    module = block(layers=2).double().to(device)
    x = channels_last(images(SHAPE)[0].to(device))
    asked = {name: name == asked_of for name in names(module)}
    truth = gradients("reference", module, x, asked)[asked_of]
    found = gradients("lean", module, x, asked)
    assert [name for name, grad in found.items() if grad is not None] == [asked_of]
    assert distance({"": found[asked_of]}, {"": truth}) <= EXACT


@ON
def test_a_frozen_block_needs_no_backward(device: str) -> None:
    module, x = block().to(device).requires_grad_(False), images(SHAPE)[0].float().to(device)
    assert not computed("lean")(module, x).requires_grad


# Graphs -------------------------------------------------------------------------------------


@ON
@pytest.mark.parametrize("bn_size", [0, 4])
def test_one_block_twice_in_a_graph(bn_size: int, device: str) -> None:
    def twice(op: str) -> Kinds:
        module = block(bn_size=bn_size).double().to(device)
        x = channels_last(images(SHAPE)[0].to(device)).requires_grad_()
        first = computed(op)(module, x)
        second = computed(op)(module, first[:, -SHAPE[1] :] + x)
        (second.square().sum() + first.sum()).backward()
        return {
            "x": {"": x.grad, "first": first.detach(), "second": second.detach()},
            "parameters": {name: p.grad for name, p in module.named_parameters()},
            "buffers": dict(module.named_buffers()),
        }

    own, theirs = twice("lean"), twice("reference")
    assert own["buffers"]["denselayer1.norm1.num_batches_tracked"] == 2
    for kind in theirs:
        assert distance(own[kind], theirs[kind]) <= EXACT, kind


@ON
def test_gradients_add_up_over_backwards(device: str) -> None:
    """From one graph that is kept: nothing that is saved is written to."""
    module = block().double().to(device)
    x = channels_last(images(SHAPE)[0].to(device)).requires_grad_()
    out = computed("lean")(module, x)
    out.sum().backward(retain_graph=True)
    once = {"x": x.grad.clone(), **{n: p.grad.clone() for n, p in module.named_parameters()}}
    out.sum().backward()
    assert torch.equal(x.grad, 2 * once["x"])
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, 2 * once[name]), name


@ON
@pytest.mark.parametrize("layout", [channels_last, Tensor.contiguous], ids=["NHWC", "NCHW"])
def test_the_gradient_that_comes_in_is_left_alone(layout: Any, device: str) -> None:
    module, x = block().to(device), images(SHAPE)[0].float().to(device).requires_grad_()
    out = computed("lean")(module, x)
    towards = layout(torch.ones_like(out))
    out.backward(towards)
    assert (towards == 1).all()
    assert x.grad.data_ptr() != towards.data_ptr()


def test_the_input_is_left_alone() -> None:
    x = channels_last(images(SHAPE)[0].float())
    kept = x.clone()
    computed("lean")(block(), x.requires_grad_()).sum().backward()
    assert torch.equal(x, kept)


# Memory -------------------------------------------------------------------------------------


def saved(op: str, module: nn.Module, x: Tensor, precision: torch.dtype) -> int:
    """Bytes that a forward pass saves for backward, parameters and input apart."""
    known = {t.untyped_storage().data_ptr() for t in (x, *module.parameters(), *module.buffers())}
    found: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in known:
            found[t.untyped_storage().data_ptr()] = t
        return t

    autocast = torch.autocast(x.device.type, precision, enabled=precision == torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast:
        out = computed(op)(module, x)
    assert out.requires_grad
    return sum(t.untyped_storage().nbytes() for t in found.values())


@ON
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bn_size", "times"), [(4, 3.5), (0, 6.0)])
def test_it_saves_the_buffer_and_the_bottlenecks(
    bn_size: int, times: float, precision: torch.dtype, device: str
) -> None:
    n, c, h, w, layers, k = 2, 16, 16, 16, 6, 4
    module = block(c, layers, k, bn_size=bn_size).to(device)
    x = channels_last(images((n, c, h, w))[0].to(device, precision)).requires_grad_()
    maps = (c + layers * k + layers * bn_size * k) * n * h * w * precision.itemsize
    widths = [norm.num_features for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    norms, moments = 4 * sum(widths) * 4, (2 * (c + layers * k) + 1) * 8
    own = saved("lean", module, x, precision)
    assert maps <= own <= maps + norms + moments
    assert saved("reference", module, x, precision) >= times * own


def test_backward_with_another_number_of_threads() -> None:
    """As another thread may have."""
    threads, module = torch.get_num_threads(), block()
    x = torch.randn(6, *SHAPE[1:])

    def gradients_of(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out.square().sum(), [*module.parameters()])

    expected = gradients_of(computed("reference")(module, x))
    out = computed("lean")(module, x)
    torch.set_num_threads(threads + 2)
    try:
        found = gradients_of(out)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
