"""torch.func, torch.jit, torch.fx, forward-mode: auto takes the reference; an op by name refuses.

In float64, against the reference under the same transform or the network without one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from seen import SMALL, images
from torch import Tensor, nn
from torch.autograd import forward_ad
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from densekit.config import UserError
from densekit.models.densenet import DenseNet

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{said}")
    for said in (r".*torch\.jit", "Converting a tensor to a Python", "The TorchScript type system")
]
Call = Callable[[DenseNet], Any]
LARGE = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(1)).double()
"""Of another size and number than those that are traced."""


@pytest.fixture(autouse=True)
def _auto_takes_lean(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64 too, and so where these tests are not of transforms they would be of lean."""
    monkeypatch.setattr("densekit.ops.choose.why_not_lean", lambda *_: None)


def network(op: str, training: bool = True, drop_rate: float = 0.0) -> DenseNet:
    torch.manual_seed(0)
    model = DenseNet(SMALL.model_copy(update={"drop_rate": drop_rate}), op=op).double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.3)  # type: ignore[arg-type]
    return model.train(training)


def loss(model: DenseNet, given: dict[str, Tensor], x: Tensor) -> Tensor:
    state = {**{name: b.clone() for name, b in model.named_buffers()}, **given}
    return torch.func.functional_call(model, state, (x,)).square().sum()


def parameters(model: DenseNet) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def gradients(model: DenseNet) -> Any:
    return torch.func.grad(lambda given: loss(model, given, X))(parameters(model))


def gradients_of_each_image(model: DenseNet) -> Any:
    def of_one(given: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, given, (x[None],)).square().sum()

    return torch.func.vmap(torch.func.grad(of_one), (None, 0))(parameters(model.eval()), X)


def tangent(model: DenseNet) -> Any:
    with forward_ad.dual_level():
        dual = model(forward_ad.make_dual(X, torch.ones_like(X)))
        return forward_ad.unpack_dual(dual).tangent


X = images().double()
CALLS: dict[str, tuple[Call, str]] = {
    "grad": (gradients, "torch.func"),
    "vmap of grad": (gradients_of_each_image, "torch.func"),
    "jacrev": (lambda model: torch.func.jacrev(model.eval())(X[:1]), "torch.func"),
    "hessian": (
        lambda m: torch.func.grad(lambda x: torch.func.grad(lambda x: m.eval()(x).square().sum())(
            x).square().sum())(X), "torch.func",
    ),
    "forward mode": (tangent, "forward-mode differentiation"),
    "jit.trace": (lambda model: torch.jit.trace(model, X, check_trace=False)(LARGE),
                  "torch.jit.trace"),
    "fx": (lambda model: torch.fx.symbolic_trace(model)(LARGE), "torch.fx"),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_auto_is_the_reference_and_lean_refuses(call: str) -> None:
    compute, named = CALLS[call]
    torch.testing.assert_close(compute(network("auto")), compute(network("reference")))
    for op in ("lean", "recompute"):
        if (op, call) == ("recompute", "jit.trace"):
            torch.testing.assert_close(compute(network(op)), compute(network("reference")))
            continue
        remedy = f"^model.op={op} cannot be taken under {named}; use model.op=reference$"
        with pytest.raises(UserError, match=remedy):
            compute(network(op))


def test_gradients_by_torch_func_are_autograds() -> None:
    model = network("auto")
    own = network("reference")
    wanted = torch.autograd.grad(own(X).square().sum(), list(own.parameters()))
    for found, gradient in zip(gradients(model).values(), wanted, strict=True):
        torch.testing.assert_close(found, gradient)


def test_vmap_in_training_is_of_norms_without_running_statistics() -> None:
    """torch's own remedy, which its error names."""
    model = network("auto")
    torch.func.replace_all_batch_norm_modules_(model)
    found = torch.func.vmap(lambda x: model(x[None])[0])(X)
    torch.testing.assert_close(found, torch.cat([model(x[None]) for x in X]))


# torch.jit.script ---------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["auto", "lean"])
def test_a_scripted_network_is_the_network(op: str) -> None:
    """In training and evaluation, of any size; parameters are shared, and the op is as it was."""
    model, reference = network(op), network("reference")
    scripted = torch.jit.script(model)
    for x in (X, LARGE):
        torch.testing.assert_close(scripted(x), reference(x))
    scripted.eval()
    torch.testing.assert_close(scripted(LARGE), reference.eval()(LARGE))
    with torch.no_grad():
        model.classifier.weight.zero_()  # type: ignore[union-attr, operator]
        assert torch.equal(scripted(X), model.classifier.bias.expand(len(X), -1))  # type: ignore[union-attr, operator]
    assert model.op == op


def test_dropout_is_not_scripted() -> None:
    with pytest.raises(UserError, match=r"dropout on and off; use torch\.jit\.trace or torch"):
        torch.jit.script(network("auto", drop_rate=0.5))


# torchvision's feature extraction -----------------------------------------------------------


def test_torchvision_extracts_features() -> None:
    """Of any module by its name, as of torchvision's DenseNet."""
    model, places = network("auto", training=False), ["denseblock1", "denseblock2.denselayer2"]
    extract = create_feature_extractor(model, [f"features.{place}" for place in places])
    seen: dict[str, Tensor] = {}
    for place in places:
        module = model.features.get_submodule(place)
        module.register_forward_hook(
            lambda _module, _inputs, y, place=place: seen.update({f"features.{place}": y})
        )
    found = extract(LARGE)
    model(LARGE)
    assert found.keys() == seen.keys()
    for name, y in found.items():
        torch.testing.assert_close(y, seen[name])
    names = get_graph_node_names(model)[0]
    assert "features.denseblock1.denselayer1.conv1" in names
