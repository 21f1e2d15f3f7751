"""The lean dense block is the reference's, to rounding; truth.py has the rule."""

from __future__ import annotations

from collections.abc import Callable

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
    TIMES,
    Kinds,
    Precision,
    channels_last,
    check,
    distances,
    draw_norms,
    images,
    ratios,
    steps,
)

from densekit.models.densenet import DenseBlock, DenseNet, DenseNetConfig
from densekit.ops import reference
from densekit.ops.lean import forward as lean

SHAPE = (4, 10, 6, 5)  # N, C, H, W
K = 4


def block(c: int = SHAPE[1], layers: int = 3, growth_rate: int = K, **config: float) -> DenseBlock:
    torch.manual_seed(0)
    made = DenseBlock(c, layers, DenseNetConfig(growth_rate=growth_rate, **config), nn.BatchNorm2d)
    draw_norms(made)
    return made


def computed(op: str) -> Callable[[nn.Module, Tensor], Tensor]:
    function = {"lean": lean, "reference": reference}[op].dense_block
    return lambda module, x: function(x, list(module.values()))


def compare(
    module: nn.Module,
    precision: Precision,
    device: str,
    draws: Callable[[int], list[Tensor]] = lambda draw: images(SHAPE, draw),
    layout: Callable[[Tensor], Tensor] = channels_last,
) -> None:
    check(computed("lean"), computed("reference"), module, draws, precision, device, layout)


# Sizes and layouts --------------------------------------------------------------------------

SIZES = {
    "plain": (SHAPE, {}),
    "batch 1": ((1, 10, 6, 5), {}),
    "odd sides": ((3, 10, 7, 5), {}),
    "one row": ((3, 10, 1, 9), {}),
    "one pixel": ((5, 10, 1, 1), {}),
    "one channel": ((3, 1, 5, 4), {}),
    "odd channels": ((3, 17, 5, 4), {"growth_rate": 3}),
    "growth 12": ((2, 24, 6, 6), {"growth_rate": 12}),  # K 48
    "no bottleneck": (SHAPE, {"bn_size": 0}),
    "no bottleneck, growth 12": ((2, 16, 5, 5), {"bn_size": 0, "growth_rate": 12}),
    "one layer": (SHAPE, {"layers": 1}),
    "large epsilon": (SHAPE, {"bn_eps": 0.1}),
}


@ON
@EVERY
@pytest.mark.parametrize(("shape", "config"), SIZES.values(), ids=SIZES)
def test_sizes(
    shape: tuple[int, ...], config: dict[str, int], precision: Precision, device: str
) -> None:
    compare(block(shape[1], **config), precision, device, lambda draw: images(shape, draw))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "NCHW": Tensor.contiguous,
    "every other column": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
    "channels of a wider map": lambda x: torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:1, :, :1].expand_as(x),
}


@ON
@EVERY
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout: Callable[[Tensor], Tensor], precision: Precision, device: str) -> None:
    assert layout(images(SHAPE)[0]).shape == SHAPE
    compare(block(), precision, device, layout=layout)


@ON
@EVERY
@pytest.mark.parametrize("shape", [(2, 10, 23, 61), (1, 10, 1, 300)])
def test_maps_of_several_tiles(shape: tuple[int, ...], precision: Precision, device: str) -> None:
    compare(block(), precision, device, lambda draw: images(shape, draw))


# Statistics ---------------------------------------------------------------------------------


@ON
@FULL
@pytest.mark.parametrize("bn_size", [0, 4])
def test_a_mean_of_1000_deviations(bn_size: int, precision: Precision, device: str) -> None:
    for mean, std in ((1000.0, 1.0), (-10.0, 0.01)):
        module = block(bn_size=bn_size)
        compare(module, precision, device, lambda draw, at=(mean, std): images(SHAPE, draw, *at))


def in_eval(*names: str) -> Callable[[DenseBlock], None]:
    return lambda module: [module.get_submodule(name).eval() for name in names] and None


def with_momentum(momentum: float | None, *names: str) -> Callable[[DenseBlock], None]:
    def change(module: DenseBlock) -> None:
        for name, part in module.named_modules():
            if isinstance(part, nn.BatchNorm2d) and (name in names or not names):
                part.momentum = momentum

    return change


CHANGES = {
    "eval mode": in_eval("", *(f"denselayer{i}" for i in (1, 2, 3))),
    "norm1 in eval mode": in_eval("denselayer2.norm1"),
    "norm2 in eval mode": in_eval("denselayer2.norm2"),
    "first norm1 in eval mode": in_eval("denselayer1.norm1"),
    "all norm1 in eval mode": in_eval(*(f"denselayer{i}.norm1" for i in (1, 2, 3))),
    "all norm2 in eval mode": in_eval(*(f"denselayer{i}.norm2" for i in (1, 2, 3))),
    "a layer in eval mode": in_eval("denselayer2"),
    "momentum None": with_momentum(None),
    "momentum 0.3": with_momentum(0.3),
    "momentum 0": with_momentum(0.0),
    "three momenta": lambda module: (
        [with_momentum(m, f"denselayer{i}.norm1")(module) for i, m in ((1, None), (3, 0.7))]
        and None
    ),
}


@ON
@EVERY
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_norms_of_all_kinds(
    change: Callable[[DenseBlock], None], precision: Precision, device: str
) -> None:
    module = block()
    change(module)
    compare(module, precision, device)


@ON
@ONE_DRAW
def test_forward_without_gradients_updates_running_statistics(
    precision: Precision, device: str
) -> None:
    def forward(op: str, precision: Precision) -> Kinds:
        """Both steps' outputs, and the buffers after them."""
        module = block().to(device, precision.parameters)
        with torch.no_grad(), precision.autocast(device):
            outs = [computed(op)(module, x.to(device, precision.dtype)) for x in images(SHAPE)]
        assert not any(out.requires_grad for out in outs)
        kinds: Kinds = {"output": dict(zip("12", outs, strict=True))}
        for name, buffer in module.named_buffers():
            kinds.setdefault(name.rpartition(".")[2], {})[name] = buffer
        return kinds

    truth = forward("reference", FP64)
    assert all(count == 2 for count in truth["num_batches_tracked"].values())
    own, theirs = forward("lean", precision), forward("reference", precision)
    if precision is FP64:
        assert max(distances(own, truth).values()) <= EXACT
    assert max(ratios(own, theirs, truth).values()) <= TIMES


# Dropout ------------------------------------------------------------------------------------


@ON
@FULL
@pytest.mark.parametrize("bn_size", [0, 4])
def test_dropout(bn_size: int, precision: Precision, device: str) -> None:
    compare(block(bn_size=bn_size, drop_rate=0.4), precision, device)


@ON
@ONE_DRAW
def test_a_seed_gives_the_masks_of_the_reference(precision: Precision, device: str) -> None:
    """For maps in channels_last. In NCHW the reference draws in another order, lean does not."""
    module = block(drop_rate=0.4).to(device, precision.parameters)
    x = channels_last(images(SHAPE)[0].to(device, precision.dtype))
    dropped = []
    for op in ("lean", "reference"):
        torch.manual_seed(3)
        with precision.autocast(device):
            dropped.append(computed(op)(module, x)[:, SHAPE[1] :] == 0)
    assert 0.3 < dropped[0].float().mean() < 0.5
    assert torch.equal(*dropped)


def test_dropout_is_off_in_eval_mode() -> None:
    module = block(drop_rate=0.4).double().eval()
    x = images(SHAPE)[0]
    assert torch.equal(computed("lean")(module, x), computed("lean")(module, x))


# NaN and Inf --------------------------------------------------------------------------------


@ON
@ONE_DRAW
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_pixel_spreads_as_far_as_in_the_reference(
    value: float, training: bool, precision: Precision, device: str
) -> None:
    module = block().train(training)
    x = images(SHAPE)[0]
    x[1, 2, 3, 3] = value
    own, theirs = (
        steps(computed(op), module, [x], precision, device) for op in ("lean", "reference")
    )
    for kind in theirs:
        for name, expected in theirs[kind].items():
            found = own[kind][name]
            assert torch.equal(found.isfinite(), expected.isfinite()), (kind, name)
            if kind in ("output", "input") or "gradient" in kind:
                assert torch.equal(found.isnan(), expected.isnan()), (kind, name)
    finite = ({kind: keep(part, theirs[kind]) for kind, part in x.items()} for x in (own, theirs))
    assert not theirs["output"][""].isfinite().all()
    limit = {FP64: EXACT, FP32: 1e-5, BF16: 0.05}[precision]
    assert max(distances(*finite).values()) <= limit


def keep(part: dict[str, Tensor], where: dict[str, Tensor]) -> dict[str, Tensor]:
    """The finite values alone."""
    return {name: x[where[name].isfinite()] for name, x in part.items()}


# Whole networks -----------------------------------------------------------------------------

NETWORKS = {
    "imagenet": ((2, 3, 45, 38), {"stem": "imagenet"}),
    "cifar": ((3, 3, 11, 9), {"stem": "cifar"}),
    "no bottleneck": ((3, 3, 10, 7), {"stem": "cifar", "bn_size": 0, "compression": 1.0}),
}


def network_of(op: str) -> Callable[[nn.Module, Tensor], Tensor]:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        model.set_op(op)
        return model(x)

    return forward


@ON
@EVERY
@pytest.mark.parametrize(("shape", "config"), NETWORKS.values(), ids=NETWORKS)
def test_networks(
    shape: tuple[int, ...], config: dict[str, str], precision: Precision, device: str
) -> None:
    torch.manual_seed(0)
    of = {"growth_rate": K, "block_config": (2, 3), "num_init_features": 8, "num_classes": 5}
    model = DenseNet(DenseNetConfig(**of, **config))
    draw_norms(model)
    own, theirs = network_of("lean"), network_of("reference")
    check(own, theirs, model, lambda draw: images(shape, draw), precision, device)
