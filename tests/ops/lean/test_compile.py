"""lean under torch.compile: one graph, and bit for bit what it computes without."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from seen import SMALL, Seen, images
from torch import Tensor, nn

from densekit.models.densenet import DenseNet, DenseNetConfig

SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network(op: str = "lean", sync_bn: bool = False, **changed: Any) -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(SMALL.model_copy(update=changed), op=op, sync_bn=sync_bn)


def compiled(model: nn.Module, backend: str = "aot_eager") -> Any:
    """Raises where the graph would break."""
    return torch.compile(model, fullgraph=True, backend=backend)


def step(
    model: DenseNet, forward: Any, x: Tensor, autocast: bool = False
) -> dict[str, Tensor | None]:
    """Output, gradients and buffers of a forward and backward pass."""
    torch.manual_seed(1)  # dropout's
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = forward(x)
    y.float().square().sum().backward()
    gradients = {f"gradient {name}": p.grad for name, p in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return {"output": y.detach(), **gradients, **buffers}


def same(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    for name, value in expected.items():
        other = found[name]
        if value is None or other is None:
            assert value is other, name
        else:
            assert torch.equal(other, value), name


NETWORKS: dict[str, dict[str, Any]] = {
    "bottleneck": {},
    "no bottleneck, cifar": {"bn_size": 0, "stem": "cifar"},
    "dropout": {"drop_rate": 0.3},
    "sync-BN": {"sync_bn": True},
    "auto": {"op": "auto"},
}


@SLOW
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_one_graph_in_training_and_evaluation(name: str) -> None:
    """For batches of several sizes."""
    own = network(**NETWORKS[name])
    model = copy.deepcopy(own)
    forward = compiled(model)
    for n in (4, 6, 7):
        same(step(model, forward, images(n)), step(own, own, images(n)))
    own.eval()
    model.eval()
    same(step(model, forward, images()), step(own, own, images()))
    if own.op == "auto":
        own.set_op("reference")
    of_modules = own(images(3))  # with gradients, since without them it is the one call of C++,
    with torch.no_grad():  # which the compiler is not given
        assert torch.equal(forward(images(3)), of_modules)


def test_the_graph_has_the_ops() -> None:
    """A graph without them would be the reference's."""
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compile(network(), fullgraph=True, backend=backend)(images())
    assert sum("dense_block" in target for target in found) == 2
    assert sum("norm_relu" in target for target in found) == 2
    assert sum("batch_norm" in target for target in found) == 1  # norm5


def test_autocast() -> None:
    own = network()
    model = copy.deepcopy(own)
    found = step(model, compiled(model), images(), autocast=True)
    same(found, step(own, own, images(), autocast=True))
    assert found["output"] is not None
    assert found["output"].dtype == torch.bfloat16


@SLOW
def test_frozen_stages() -> None:
    own = network()
    own.freeze("block1")
    model = copy.deepcopy(own)
    same(step(model, compiled(model), images()), step(own, own, images()))


@SLOW
def test_a_batch_of_any_size_from_the_start() -> None:
    own = network()
    model = copy.deepcopy(own)
    forward = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (2, 5, 1):
        same(step(model, forward, images(n)), step(own, own, images(n)))


def test_what_is_refused_is_refused() -> None:
    """In eager mode by its name; without fullgraph that is where dynamo goes."""
    model = network()
    model.features.denseblock1.denselayer1.norm1 = nn.GroupNorm(2, 8)
    with pytest.raises(
        Exception, match=r"denselayer1\.norm1 is a GroupNorm; use model\.op=reference"
    ):
        torch.compile(model, backend="eager")(images())


@SLOW
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ for inductor")
def test_inductor() -> None:
    """It fuses what stands around the ops, in another order of rounding."""
    own = network()
    model = copy.deepcopy(own)
    found = step(model, compiled(model, "inductor"), images())
    for name, value in step(own, own, images()).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


# The ops themselves -------------------------------------------------------------------------

OPS = ("dense_block", "dense_block_backward", "norm_relu", "norm_relu_backward", "moments")


def arguments(config: DenseNetConfig) -> dict[str, tuple[Any, ...]]:
    """What a forward and backward pass called each op with last."""
    torch.manual_seed(0)
    model = DenseNet(config, op="lean")
    with Seen() as seen:
        model(images(2)).square().sum().backward()
    calls = {str(func): args for func, args in seen.arguments.items()}
    return {name: calls[f"densekit.{name}.default"] for name in OPS}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("bn_size", [2, 0], ids=["bottleneck", "no bottleneck"])
def test_an_op_keeps_torchs_rules(bn_size: int, name: str) -> None:
    """Schema, shapes for tracing, registered gradients, and tracing with sizes left open."""
    given = arguments(SMALL.model_copy(update={"bn_size": bn_size}))[name]
    checks = ["test_schema", "test_faketensor", "test_autograd_registration"]
    if not name.endswith("backward"):  # of which this would ask the second derivative
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(torch.ops.densekit, name).default, given, test_utils=checks)
