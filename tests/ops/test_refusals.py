"""What lean does not compute is refused by name, and computed by the reference under auto.

docs/concepts/ops.md lists the same. A wrong answer would be worse than either.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from seen import LEAN, SMALL, Seen, images
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrizations

from densekit.config import UserError
from densekit.models.densenet import DenseBlock, DenseLayer, DenseNet, Transition
from densekit.ops.refusals import refusal
from densekit.ops.sync_bn import SyncBatchNorm2d

Edit = Callable[[DenseNet], object]


def network(op: str, edit: Edit = lambda model: None) -> DenseNet:
    torch.manual_seed(0)
    model = DenseNet(SMALL, op=op)
    edit(model)
    return model


def layer(model: DenseNet, number: int = 1) -> Any:
    return getattr(model.features.denseblock1, f"denselayer{number}")


def replaced(place: str, make: Callable[..., nn.Module], *args: Any, **options: Any) -> Edit:
    """An edit that puts what it makes at features.`place`."""
    return lambda model: model.features.set_submodule(place, make(*args, **options))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """And the output first."""
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(model.parameters()))]


def lean_of(model: nn.Module, x: Tensor) -> dict[str, int]:
    with Seen() as seen:
        model(x)
    return seen.lean


def agrees_with_the_reference(edit: Edit, op: str = "lean") -> None:
    """In float64: output, gradients, buffers."""
    ours, reference = (network(name, edit).double() for name in (op, "reference"))
    x = images().double()
    for a, b in zip(gradients(ours, x), gradients(reference, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    for a, b in zip(ours.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# Replaced modules ---------------------------------------------------------------------------

LAYER = "denseblock1.denselayer1"


class LowRank(nn.Module):
    """LoRA (Hu et al., 2021) around a convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.base = conv.requires_grad_(False)
        self.down = nn.Conv2d(conv.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, conv.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class BlurPool(nn.Module):
    """Zhang (2019): max pooling without its stride, then a blur with it."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(x, 3, 1, 1)
        return nn.functional.avg_pool2d(x, 3, 2, 1)


class OwnLayer(DenseLayer):
    def forward(self, features: list[Tensor], *args: Any) -> Tensor:
        return -super().forward(features, *args)


def own_layer(model: DenseNet) -> None:
    layer(model).__class__ = OwnLayer


def low_rank(model: DenseNet) -> None:
    layer(model).conv1 = LowRank(layer(model).conv1)


def weight_norm(model: DenseNet) -> None:
    parametrizations.weight_norm(layer(model).conv1)


def spectral_norm(model: DenseNet) -> None:
    nn.utils.spectral_norm(layer(model).conv2)  # the older kind: a hook


def own_forward(model: DenseNet) -> None:
    conv = layer(model).conv1
    conv.forward = MethodType(lambda self, x: 2 * nn.Conv2d.forward(self, x), conv)


def other_dropout(model: DenseNet) -> None:
    layer(model).drop_rate = 0.5


def half_synchronised(model: DenseNet) -> None:
    layer(model).norm2 = SyncBatchNorm2d(8)


def torchs_sync_bn(model: DenseNet) -> None:
    layer(model).norm1 = nn.SyncBatchNorm(8)


def narrow_last_layer(model: DenseNet) -> None:
    """Pruned, with all behind it."""
    model.features.denseblock2.denselayer2.conv2 = nn.Conv2d(8, 2, 3, padding=1, bias=False)
    model.features.norm5 = nn.BatchNorm2d(model.features.norm5.num_features - 2)
    model.classifier = nn.Linear(model.classifier.in_features - 2, 3)


def narrow_bottleneck(number: int) -> Edit:
    def edit(model: DenseNet) -> None:
        pruned = layer(model, number)
        pruned.conv1 = nn.Conv2d(pruned.conv1.in_channels, 6, 1, bias=False)
        pruned.norm2 = nn.BatchNorm2d(6)
        pruned.conv2 = nn.Conv2d(6, 4, 3, padding=1, bias=False)

    return edit


Conv = nn.Conv2d
REFUSED: dict[str, tuple[Edit, str]] = {
    "GroupNorm": (
        replaced(f"{LAYER}.norm1", nn.GroupNorm, 2, 8),
        "denselayer1.norm1 is a GroupNorm",
    ),
    "torch's SyncBatchNorm": (torchs_sync_bn, "denselayer1.norm1 is a SyncBatchNorm"),
    "another relu": (
        replaced(f"{LAYER}.relu2", nn.LeakyReLU),
        "denselayer1.relu2 is a LeakyReLU",
    ),
    "LoRA": (low_rank, "denselayer1.conv1 is a LowRank"),
    "a layer of one's own": (own_layer, "denselayer1 is a OwnLayer"),
    "weight_norm": (weight_norm, "denselayer1.conv1 is a ParametrizedConv2d"),
    "older spectral_norm": (spectral_norm, "denselayer1.conv2 has a hook"),
    "own forward": (own_forward, "denselayer1.conv1 has a forward of its own"),
    "not affine": (
        replaced(f"{LAYER}.norm1", nn.BatchNorm2d, 8, affine=False),
        "denselayer1.norm1 has affine=False",
    ),
    "untracked": (
        replaced(f"{LAYER}.norm1", nn.BatchNorm2d, 8, track_running_stats=False),
        "denselayer1.norm1 has track_running_stats=False",
    ),
    "groups": (
        replaced(f"{LAYER}.conv1", Conv, 8, 8, 1, groups=2, bias=False),
        "denselayer1.conv1 has groups=2",
    ),
    "dilation": (
        replaced(f"{LAYER}.conv2", Conv, 8, 4, 3, padding=2, dilation=2, bias=False),
        r"denselayer1.conv2 has dilation=\(2, 2\)",
    ),
    "padding by name": (
        replaced(f"{LAYER}.conv2", Conv, 8, 4, 3, padding="same", bias=False),
        "denselayer1.conv2 has padding=same",
    ),
    "not square": (
        replaced(f"{LAYER}.conv2", Conv, 8, 4, (3, 5), padding=(1, 2), bias=False),
        r"denselayer1.conv2 has kernel_size=\(3, 5\)",
    ),
    "bias": (replaced(f"{LAYER}.conv1", Conv, 8, 8, 1), "denselayer1.conv1 has a bias; use"),
    "other dropout": (other_dropout, "its layers have different dropout"),
    "half synchronised": (half_synchronised, "only some of its norms are SyncBatchNorm2d"),
    "pruned layer": (narrow_last_layer, "denselayer2.conv2 has out_channels=2, where its block"),
    "pruned bottleneck": (narrow_bottleneck(1), "denselayer2.conv1 has out_channels=8, where"),
    "pruned later bottleneck": (narrow_bottleneck(2), "denselayer2.conv1 has out_channels=6"),
    "stem's norm": (replaced("norm0", nn.GroupNorm, 2, 8), "norm0 is a GroupNorm"),
    "stem's pool": (replaced("pool0", BlurPool), "pool0 is a BlurPool"),
    "stem's wider pool": (
        replaced("pool0", nn.MaxPool2d, 5, 2, 2),
        "pool0 has kernel_size=5",
    ),
    "transition's pool": (
        replaced("transition1.pool", nn.MaxPool2d, 2, 2),
        "pool has kernel_size=2",
    ),
    "transition's blur": (replaced("transition1.pool", BlurPool), "pool is a BlurPool"),
    "transition's convolution": (
        replaced("transition1.conv", Conv, 16, 8, 3, padding=1, bias=False),
        r"conv has kernel_size=\(3, 3\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_lean_refuses_by_name(case: str) -> None:
    edit, said = REFUSED[case]
    model = network("lean", edit)
    with pytest.raises(UserError, match=f"^model.op=lean cannot compute this network: {said}") as e:
        model(images())
    assert str(e.value).endswith("; use model.op=reference")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("case", REFUSED)
def test_auto_leaves_the_part_to_its_modules(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes lean for the rest; together they are the reference."""
    monkeypatch.setattr("densekit.ops.choose.why_not_lean", lambda *_: None)
    edit, _ = REFUSED[case]
    model = network("auto", edit)
    assert sum(lean_of(model, images()).values()) == sum(LEAN.values()) - 1
    if case not in ("other dropout", "LoRA"):  # one draws, the other has weights without gradients
        agrees_with_the_reference(edit, "auto")


# Served -------------------------------------------------------------------------------------


def without_stem_pool(model: DenseNet) -> None:
    del model.features.pool0


SERVED: dict[str, Edit] = {
    "momentum": replaced(f"{LAYER}.norm1", nn.BatchNorm2d, 8, momentum=0.5),
    "momentum None": replaced(f"{LAYER}.norm1", nn.BatchNorm2d, 8, momentum=None),
    "eps": replaced("transition1.norm", nn.BatchNorm2d, 16, eps=0.1),
    "one norm in eval mode": lambda model: layer(model).norm2.eval(),
    "a wider kernel": replaced(f"{LAYER}.conv2", Conv, 8, 4, 5, padding=2, bias=False),
    "relu not in place": replaced(f"{LAYER}.relu1", nn.ReLU),
}


@pytest.mark.parametrize("case", SERVED)
def test_lean_serves(case: str) -> None:
    assert lean_of(network("lean", SERVED[case]), images()) == LEAN
    agrees_with_the_reference(SERVED[case])


def test_a_stem_without_its_pool_is_its_modules() -> None:
    """As for small images."""
    assert lean_of(network("lean", without_stem_pool), images())["densekit::norm_relu"] == 1
    agrees_with_the_reference(without_stem_pool)


# Hooks --------------------------------------------------------------------------------------

WITHOUT_INPUT_GRADIENTS = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
HOOKS: dict[str, Callable[[nn.Module, Callable[..., None]], Any]] = {
    "forward hook": lambda module, hook: module.register_forward_hook(hook),
    "forward pre hook": lambda module, hook: module.register_forward_pre_hook(hook),
    "backward hook": lambda module, hook: module.register_full_backward_hook(hook),
    "backward pre hook": lambda module, hook: module.register_full_backward_pre_hook(hook),
}
INNER = [LAYER, f"{LAYER}.norm1", f"{LAYER}.conv2", "norm0", "pool0", "transition1.conv"]
OUTER = [
    (place, kind)
    for place in ("", "denseblock1", "transition1", "conv0", "norm5")
    for kind in HOOKS
]


def hooked(op: str, place: str, kind: str) -> tuple[DenseNet, list[nn.Module]]:
    """And where the modules that it was called for are noted."""
    model, seen = network(op), []
    module = model.features.get_submodule(place)
    HOOKS[kind](module, lambda module, *_: seen.append(module))
    return model, seen


@WITHOUT_INPUT_GRADIENTS
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("place", INNER)
def test_a_hook_on_an_inner_module_fires(
    place: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("densekit.ops.choose.why_not_lean", lambda *_: None)
    model, seen = hooked("auto", place, kind)
    gradients(model, images())
    assert seen == [model.features.get_submodule(place)]
    model, seen = hooked("lean", place, kind)
    named = place.removeprefix("denseblock1.").removeprefix("transition1.")
    with pytest.raises(UserError, match=f"network: {named} has a hook, which lean would not call"):
        model(images())


@WITHOUT_INPUT_GRADIENTS
@pytest.mark.parametrize(("place", "kind"), OUTER)
def test_a_hook_around_what_lean_computes_fires(place: str, kind: str) -> None:
    model, seen = hooked("lean", place, kind)
    assert lean_of(model, images()) == LEAN
    seen.clear()
    gradients(model, images())
    assert seen == [model.features.get_submodule(place)]


# Devices, dtypes ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["meta", "mps", "xpu"])
def test_other_devices_are_refused(device: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 8, 4, 4, device=device)
        said = refusal(x, dict(network("lean").features.denseblock1.named_children()), DenseLayer)
    assert said == f"lean has no kernels for {device}"


def test_on_meta_auto_gives_shapes() -> None:
    assert network("auto").to("meta")(images().to("meta")).shape == (4, 3)
    with pytest.raises(UserError, match=r"no kernels for meta; use model\.op=reference"):
        network("lean").to("meta")(images().to("meta"))


def test_complex_numbers_are_refused() -> None:
    parts = dict(network("lean").features.denseblock1.named_children())
    x = torch.zeros(2, 8, 4, 4, dtype=torch.complex64)
    assert refusal(x, parts, DenseLayer) == "lean has no kernels for torch.complex64"


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
def test_float16_on_a_cpu_runs_on_plain_kernels(autocast: bool) -> None:
    """As near to float64 as the reference is, at most twice as far."""
    truth = gradients(network("reference").double(), images().double())
    errors = []
    for op in ("lean", "reference"):
        model, x = network(op), images()
        if not autocast:
            model, x = model.half(), x.half()
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            found = gradients(model, x)
        assert found[0].dtype == torch.float16
        pairs = list(zip(found, truth, strict=True))
        errors.append(sum(float((a.double() - b).norm() / b.norm()) ** 2 for a, b in pairs))
    assert 0 < errors[0] <= 4 * errors[1]


# Autograd and torch.func --------------------------------------------------------------------


def test_a_second_derivative_is_refused() -> None:
    model, x = network("lean"), images().requires_grad_()
    (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative; use model\.op=reference"):
        grad.square().sum().backward()


def test_the_reference_has_the_second_derivative() -> None:
    model, x = network("reference"), images().requires_grad_()
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_functional_call_takes_the_weights_that_it_is_given() -> None:
    model, other = network("lean"), network("lean", lambda m: nn.init.ones_(m.classifier.weight))
    given = {
        name: (p.detach() * 1.5 + 0.1).requires_grad_() for name, p in other.named_parameters()
    }
    y = torch.func.functional_call(model, given, images())
    found = torch.autograd.grad(y.square().sum(), list(given.values()))
    other.load_state_dict(given, strict=False)
    for a, b in zip([y.detach(), *found], gradients(other, images()), strict=True):
        assert torch.equal(a, b)


def test_checkpointing_a_whole_network_is_served() -> None:
    """Two forward passes: running statistics move twice, as with any module under a checkpoint."""
    own, checked = network("lean"), network("lean")
    y = torch.utils.checkpoint.checkpoint(checked, images(), use_reentrant=False)
    found = torch.autograd.grad(y.square().sum(), list(checked.parameters()))
    for a, b in zip([y.detach(), *found], gradients(own, images()), strict=True):
        assert torch.equal(a, b)


# FSDP ---------------------------------------------------------------------------------------


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(model: DenseNet, *types: type[nn.Module]) -> DenseNet:
    """FSDP2, in a group for each module of `types` and one for the rest."""
    for module in list(model.modules()):
        if types and isinstance(module, types):
            fully_shard(module)
    fully_shard(model)
    return model


def shardable_parts() -> tuple[type[nn.Module], ...]:
    """Older torch refuses to shard a ModuleDict, and so a DenseBlock, as a group of its own."""
    try:
        fully_shard(network("lean").features.denseblock1)
    except ValueError:
        return (Transition,)
    return (DenseBlock, Transition)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("by_part", [False, True], ids=["whole", "by part"])
def test_fsdp_of_the_network_or_of_blocks_is_served(by_part: bool) -> None:
    own, model = network("lean"), network("lean")
    parts = shardable_parts() if by_part else ()
    model = sharded(copy.deepcopy(own), *parts)
    assert lean_of(model, images()) == LEAN
    own(images())
    model(images()).square().sum().backward()
    expected = gradients(own, images())[1:]
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.full_tensor(), gradient)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("one_rank")
def test_fsdp_of_single_layers_is_refused() -> None:
    model = sharded(network("lean"), DenseLayer)
    with pytest.raises(
        UserError, match=r"denselayer1 is a FSDPDenseLayer; use model\.op=reference"
    ):
        model(images())
    model = sharded(network("reference"), DenseLayer)
    model(images()).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_hook_on_all_modules_fires() -> None:
    seen: list[nn.Module] = []
    model = network("auto")
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        model(images())
        assert set(seen) == set(model.modules())
        with pytest.raises(UserError, match="a hook on all modules"):
            network("lean")(images())
    finally:
        hook.remove()
