"""Whose names are whose: a table for each library, from its modules to ours.

{b} counts dense blocks from 1, {a} = b - 1, {c} = b + 1; {l} counts layers from 1, {k} = l - 1;
{n} is 1 or 2, {m} = n - 1. The axes say how a stored kernel becomes torch's [out, in, height,
width], a matrix torch's [out, in]. What checkpoints put before these names is found by layouts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

NORM = {name: name for name in ("weight", "bias", "running_mean", "running_var")}
PLAIN = {"weight": "weight", "bias": "bias"}
OURS = (
    "features.conv0",
    "features.norm0",
    "features.denseblock{b}.denselayer{l}.norm{n}",
    "features.denseblock{b}.denselayer{l}.conv{n}",
    "features.transition{b}.norm",
    "features.transition{b}.conv",
    "features.norm5",
    "classifier",
)


@dataclass(frozen=True, eq=False)
class KeyMap:
    """How a library names and stores what is in a DenseNet."""

    name: str
    modules: Mapping[str, str]
    """Ours -> theirs."""
    norm: Mapping[str, str] = field(default_factory=lambda: NORM)
    """Ours -> theirs, of a BatchNorm's tensors."""
    plain: Mapping[str, str] = field(default_factory=lambda: PLAIN)
    """Ours -> theirs, of a convolution's and the classifier's."""
    separator: str = "."
    """Between a module and its tensor."""
    kernel_axes: tuple[int, ...] = (0, 1, 2, 3)
    matrix_axes: tuple[int, ...] = (0, 1)
    bn_eps: float = 1e-5
    counters: bool = True
    """Whether num_batches_tracked is stored."""
    dropped: tuple[str, ...] = ()
    """Tensors that are no part of the network."""

    def ours(self, name: str) -> str | None:
        """Our name of their tensor; None where they have no such tensor."""
        module, _, tensor = name.rpartition(self.separator)
        for our, their in self.modules.items():
            fields = _fields(their, module)
            if fields is not None:
                leaf = {there: here for here, there in self._leaves(our).items()}.get(tensor)
                return leaf and f"{our.format(**fields)}.{leaf}"
        return None

    def theirs(self, name: str) -> str | None:
        """Their name of our tensor; None where they have no such tensor."""
        module, _, tensor = name.rpartition(".")
        for our, their in self.modules.items():
            fields = _fields(our, module)
            if fields is not None:
                leaf = self._leaves(our).get(tensor)
                return leaf and f"{their.format(**fields)}{self.separator}{leaf}"
        return None

    def _leaves(self, our: str) -> Mapping[str, str]:
        if "norm" not in our:
            return self.plain
        counter = {"num_batches_tracked": "num_batches_tracked"} if self.counters else {}
        return {**self.norm, **counter}


def layer_of(name: str) -> tuple[int, int] | None:
    """The numbers of the block and the layer that one of our tensors is of; None elsewhere."""
    match = re.match(r"features\.denseblock(\d{1,4})\.denselayer(\d{1,4})\.", name)
    return (int(match[1]), int(match[2])) if match else None


def _fields(template: str, module: str) -> dict[str, int] | None:
    """The numbers at the template's places; None where the module is not of its form."""
    match = _pattern(template).fullmatch(module)
    if match is None:
        return None
    found = {place: int(text) for place, text in match.groupdict().items()}
    b = found.get("b", found["a"] + 1 if "a" in found else found.get("c", 1) - 1)
    n = found.get("n", found.get("m", 0) + 1)
    layer = found.get("l", found.get("k", -1) + 1)
    return {"a": b - 1, "b": b, "c": b + 1, "k": layer - 1, "l": layer, "n": n, "m": n - 1}


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    pattern, seen = "", set()
    for i, part in enumerate(re.split(r"\{(\w)\}", template)):
        if i % 2 == 0:
            pattern += re.escape(part)
        else:
            pattern += f"(?P={part})" if part in seen else f"(?P<{part}>0|[1-9][0-9]{{0,3}})"
            seen.add(part)
    return re.compile(pattern)


def _table(*theirs: str) -> dict[str, str]:
    return dict(zip(OURS, theirs, strict=True))


TORCHVISION = KeyMap("torchvision", _table(*OURS))  # timm's names, and ours, are the same
TORCHVISION_2017 = KeyMap(
    "torchvision (2017)",
    _table(
        *OURS[:2],
        "features.denseblock{b}.denselayer{l}.norm.{n}",
        "features.denseblock{b}.denselayer{l}.conv.{n}",
        *OURS[4:],
    ),
)
OP_THRESHS = "op_threshs"  # a threshold for each output
TORCHXRAYVISION = KeyMap("torchxrayvision", _table(*OURS), dropped=(OP_THRESHS,))
MONAI = KeyMap(
    "monai",
    _table(
        *OURS[:2],
        "features.denseblock{b}.denselayer{l}.layers.norm{n}",
        "features.denseblock{b}.denselayer{l}.layers.conv{n}",
        *OURS[4:7],
        "class_layers.out",
    ),
)
PADDLE = KeyMap(
    "paddle",
    _table(
        "conv1_func._conv",
        "conv1_func._batch_norm",
        "db_conv_{c}.conv{c}_{l}.bn_ac_func{n}._batch_norm",
        "db_conv_{c}.conv{c}_{l}.bn_ac_func{n}._conv",
        "tr_conv{c}_blk.conv_ac_func._batch_norm",
        "tr_conv{c}_blk.conv_ac_func._conv",
        "batch_norm",
        "out",
    ),
    norm={**NORM, "running_mean": "_mean", "running_var": "_variance"},
    matrix_axes=(1, 0),
    counters=False,
)


FEATURES_ALONE = KeyMap(
    "torchvision's features alone",  # as fastai and RadImageNet cut the network
    {ours: theirs.removeprefix("features.") for ours, theirs in TORCHVISION.modules.items()},
)
FEATURES_ALONE_2017 = KeyMap(
    "torchvision's (2017) features alone",
    {ours: theirs.removeprefix("features.") for ours, theirs in TORCHVISION_2017.modules.items()},
)
MMPRETRAIN = KeyMap(
    "mmpretrain",
    _table(
        "stem.0",
        "stem.1",
        "stages.{a}.block.{k}.norm{n}",
        "stages.{a}.block.{k}.conv{n}",
        "transitions.{a}.norm",
        "transitions.{a}.conv",
        "transitions.3.0",  # after the last of four blocks
        "head.fc",
    ),
)


def _keras(name: str, conv: str, norm: str, head: str) -> KeyMap:
    return KeyMap(
        name,
        {
            "features.conv0": conv,
            "features.norm0": norm,
            "features.denseblock{b}.denselayer{l}.norm{n}": "conv{c}_block{l}_{m}_bn",
            "features.denseblock{b}.denselayer{l}.conv{n}": "conv{c}_block{l}_{n}_conv",
            "features.transition{b}.norm": "pool{c}_bn",
            "features.transition{b}.conv": "pool{c}_conv",
            "features.norm5": "bn",
            "classifier": head,
        },
        norm={
            "weight": "gamma",
            "bias": "beta",
            "running_mean": "moving_mean",
            "running_var": "moving_variance",
        },
        plain={"weight": "kernel", "bias": "bias"},
        separator="/",
        kernel_axes=(3, 2, 0, 1),
        matrix_axes=(1, 0),
        bn_eps=1.001e-5,
        counters=False,
    )


KERAS = _keras("keras", "conv1_conv", "conv1_bn", "predictions")
KERAS_2017 = _keras("keras (2017)", "conv1/conv", "conv1/bn", "fc1000")
KEYMAPS = (
    TORCHVISION, TORCHVISION_2017, MONAI, TORCHXRAYVISION, MMPRETRAIN, PADDLE, KERAS, KERAS_2017,
    FEATURES_ALONE, FEATURES_ALONE_2017,
)  # fmt: skip
