"""When auto computes a network in one call, and that this follows every change of the network."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from seen import SMALL, Seen, images
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from densekit.config import UserError
from densekit.models.densenet import DenseNet
from densekit.models.one_call import one_call
from densekit.ops.lean.kernels import inference

pytestmark = pytest.mark.skipif(inference.reason() is not None, reason=str(inference.reason()))


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def model() -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(SMALL).eval()


def taken(model: nn.Module, x: Tensor | None = None) -> bool:
    return one_call(model, images() if x is None else x, DenseNet) is not None


def exact(model: DenseNet, x: Tensor) -> Tensor:
    model = copy.deepcopy(model)
    model.set_op("reference")
    return model(x)


# When ---------------------------------------------------------------------------------------


def test_auto_takes_it_in_evaluation_without_gradients(model: DenseNet) -> None:
    assert taken(model)
    with torch.inference_mode():
        assert taken(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert taken(model)
        assert model(images()).dtype == torch.float32


def test_not_with_gradients(model: DenseNet) -> None:
    with torch.enable_grad():
        assert not taken(model)
        model(images()).sum().backward()
    assert model.features.conv0.weight.grad is not None


def test_lean_takes_it_too_and_where_it_is_not_measured(
    model: DenseNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    expected = model(images())
    model.set_op("lean")
    assert torch.equal(model(images()), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert taken(model)


@pytest.mark.parametrize("op", ["reference", "recompute", "lean"])
def test_an_op_by_name_is_that_op(model: DenseNet, op: str) -> None:
    x = images()
    model.set_op(op)
    twin = DenseNet(SMALL, op=op).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(x), twin(x))
    with torch.enable_grad(), Seen() as seen:
        model(x)
    assert seen.counts["densekit::dense_block" if op == "lean" else "aten::convolution"] > 0


def test_not_in_training_nor_with_a_part_in_training(model: DenseNet) -> None:
    model.train()
    assert not taken(model)
    model.eval()
    model.features.denseblock2.denselayer1.norm1.train()
    assert not taken(model)
    before = model.features.denseblock2.denselayer1.norm1.running_mean.clone()
    model(images())
    assert not torch.equal(before, model.features.denseblock2.denselayer1.norm1.running_mean)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_not_in_other_formats(model: DenseNet, dtype: torch.dtype) -> None:
    model = model.to(dtype)
    x = images().to(dtype)
    assert not taken(model, x)
    assert model(x).dtype == dtype


def test_not_without_kernels(model: DenseNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "reason", lambda: "no C++ compiler was found")
    assert not taken(model)


def test_not_in_bf16_with_amx(model: DenseNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert taken(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert not taken(model)


def test_images_that_do_not_fit_are_refused_as_ever(model: DenseNet) -> None:
    assert model(images(0)).shape == (0, 3)
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.zeros(1, 4, 32, 32))
    with pytest.raises(UserError, match="too small"):
        model(images(1, 4))


def test_hooks_fire(model: DenseNet) -> None:
    model(images())
    for name in ("", "features", "features.denseblock1", "features.denseblock1.denselayer1.conv2"):
        seen: list[nn.Module] = []
        module = model.get_submodule(name)
        handle = module.register_forward_hook(lambda m, *_, seen=seen: seen.append(m))
        model(images())
        handle.remove()
        assert seen == [module]
    assert taken(model)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not taken(model)
    handle.remove()


def test_those_who_look_at_operations_see_torchs(model: DenseNet) -> None:
    model(images())
    with FlopCounterMode(display=False) as counter:
        model(images())
    assert counter.get_total_flops() > 0
    one = torch.func.vmap(lambda x: model(x[None])[0])(images())
    torch.testing.assert_close(one, exact(model, images()))
    traced = torch.jit.trace(model, images())
    program = torch.export.export(model, (images(),)).module()
    for tool in (traced, program):
        torch.testing.assert_close(tool(images(seed=3)), exact(model, images(seed=3)))


# What is not as it was built ------------------------------------------------------------------


class Doubled(DenseNet):
    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(x) * 2


def other_norm(model: DenseNet) -> None:
    model.features.denseblock1.denselayer2.norm1 = nn.GroupNorm(2, 12)


def other_stem(model: DenseNet) -> None:
    model.features.conv0 = nn.Conv2d(3, 8, 5, 2, 2, bias=False)


def other_stride(model: DenseNet) -> None:
    model.features.conv0.stride = (1, 1)


def other_pool(model: DenseNet) -> None:
    model.features.transition1.pool = nn.MaxPool2d(2)


def own_forward(model: DenseNet) -> None:
    model.features.denseblock2.forward = lambda x: torch.cat([x, x * 2], 1)


def parametrized(model: DenseNet) -> None:
    nn.utils.parametrizations.weight_norm(model.features.conv0)


def one_more(model: DenseNet) -> None:
    model.features.add_module("noise", nn.Softplus())


@pytest.mark.parametrize("warm", [False, True], ids=["at first", "after a call"])
@pytest.mark.parametrize(
    "change",
    [other_norm, other_stem, other_stride, other_pool, own_forward, parametrized, one_more],
)
def test_other_modules_are_called(
    model: DenseNet, change: Callable[[DenseNet], None], warm: bool
) -> None:
    if warm:
        model(images())
    change(model.train())
    model.eval()
    assert not taken(model)
    reference = copy.deepcopy(model) if change is not own_forward else model
    found = model(images())
    reference.set_op("reference")
    assert torch.equal(found, reference(images()))


def test_a_subclass_is_called() -> None:
    assert not taken(Doubled(SMALL).eval())


def test_another_classifier_may_be_put_there(model: DenseNet) -> None:
    model(images())
    model.classifier = nn.Linear(model.classifier.in_features, 5, bias=False).eval()
    assert taken(model)
    torch.testing.assert_close(model(images()), exact(model, images()))
    model.classifier = nn.Sequential(nn.Dropout(0.5), model.classifier).eval()
    assert not taken(model)


# Weights ------------------------------------------------------------------------------------


def in_place(model: DenseNet) -> None:
    model.features.denseblock1.denselayer1.conv2.weight.mul_(2)


def statistics(model: DenseNet) -> None:
    model.features.norm5.running_mean.add_(1)


def loaded(model: DenseNet) -> None:
    model.load_state_dict(DenseNet(SMALL).state_dict())


def replaced(model: DenseNet) -> None:
    model.features.conv0.weight = nn.Parameter(torch.randn_like(model.features.conv0.weight))


def by_data(model: DenseNet) -> None:
    """Which no version counts: as some write a moving average, between train() and eval()."""
    model.train()
    model.features.transition1.conv.weight.data.mul_(3)
    model.eval()


def data_replaced(model: DenseNet) -> None:
    model.classifier.weight.data = torch.randn_like(model.classifier.weight)


def epsilon(model: DenseNet) -> None:
    model.features.denseblock1.denselayer1.norm2.eps = 1.0


def stepped(model: DenseNet) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with torch.enable_grad():
        model(images()).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "change",
    [in_place, statistics, loaded, replaced, by_data, data_replaced, epsilon, stepped],
)
def test_changed_weights_count_at_once(model: DenseNet, change: Callable[[DenseNet], None]) -> None:
    before = model(images())
    change(model)
    assert taken(model)
    found = model(images())
    torch.testing.assert_close(found, exact(model, images()))
    assert not torch.allclose(found, before, rtol=1e-4)


def test_nothing_of_it_is_stored_or_copied(model: DenseNet) -> None:
    keys, stored = list(model.state_dict()), len(pickle.dumps(model))
    expected = model(images())
    assert list(model.state_dict()) == keys
    assert len(pickle.dumps(model)) == stored
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert vars(twin).keys() == vars(model).keys()
        assert torch.equal(twin(images()), expected)
        twin.features.conv0.weight.mul_(2)
        assert torch.equal(model(images()), expected)


def test_a_network_that_nobody_holds_is_freed() -> None:
    model = DenseNet(SMALL).eval()
    model(images())
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_random_numbers_are_not_drawn(model: DenseNet) -> None:
    state = torch.get_rng_state()
    model(images())
    assert torch.equal(torch.get_rng_state(), state)
