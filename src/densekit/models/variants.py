"""The published DenseNets, a table: name -> DenseNetConfig; and ModelConfig, which picks one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch.utils.flop_counter import FlopCounterMode

from densekit.config import (
    OFF,
    ConfigSource,
    PathKey,
    PathText,
    Section,
    UserError,
    build,
    nearest,
    when,
)
from densekit.data.config import Task
from densekit.models.densenet import DenseNet, DenseNetConfig


class ModelConfig(Section):
    """Which DenseNet, its classifier, and the weights to start from."""

    name: str = "densenet121"
    """A name that `densekit models` lists, or one by its pattern: densenet_bc_L_k, densenet_L_k."""
    task: Task = "multiclass"
    """multiclass: one class per image; multilabel: any number, each present, absent or unknown;
    binary: one class, present or absent, so one output. See docs/tasks.md."""
    num_classes: int | None = Field(None, ge=1)
    """Outputs of the classifier; null: the number of the data's classes."""
    in_channels: int = Field(3, ge=1)
    """Channels of the input image; equals data.channels."""
    drop_rate: float = Field(0.0, ge=0, lt=1)
    """Dropout after each layer's last convolution."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields of DenseNetConfig that differ from the named one's, e.g. {growth_rate: 16}."""
    pretrained: PathText | None = None
    """Weights to start from: an artifact's folder, a file of weights of any library that `densekit
    convert` reads (FILE#ema: their average), a URL, hf-hub:org/name, or torchvision, timm, ..."""
    op: Literal["auto", "reference", "recompute", "lean"] = "auto"
    """How dense blocks are computed: auto takes the fastest, see docs/concepts/dense-block.md."""
    sync_bn: Annotated[bool, when(**{"/optim.freeze_norm": OFF})] = False
    """BatchNorm statistics over all ranks' images instead of each rank's own."""


def _cifar(depth: int, growth_rate: int, bottleneck: bool) -> DenseNetConfig:
    """The paper's CIFAR network of `depth` layers with weights, in three equal blocks."""
    per_layer = 2 if bottleneck else 1
    layers = (depth - 4) // (3 * per_layer)
    assert depth == 3 * per_layer * layers + 4
    return DenseNetConfig(
        growth_rate=growth_rate,
        block_config=(layers, layers, layers),
        num_init_features=2 * growth_rate if bottleneck else 16,
        bn_size=4 if bottleneck else 0,
        compression=0.5 if bottleneck else 1.0,
        stem="cifar",
        init="fan_out",
        num_classes=10,
        image_size=32,
    )


VARIANTS: dict[str, DenseNetConfig] = {
    "densenet121": DenseNetConfig(block_config=(6, 12, 24, 16)),
    "densenet161": DenseNetConfig(
        block_config=(6, 12, 36, 24), growth_rate=48, num_init_features=96
    ),
    "densenet169": DenseNetConfig(block_config=(6, 12, 32, 32)),
    "densenet201": DenseNetConfig(block_config=(6, 12, 48, 32)),
    "densenet264": DenseNetConfig(block_config=(6, 12, 64, 48)),
    "densenet_40_12": _cifar(40, 12, bottleneck=False),
    "densenet_100_12": _cifar(100, 12, bottleneck=False),
    "densenet_100_24": _cifar(100, 24, bottleneck=False),
    "densenet_bc_100_12": _cifar(100, 12, bottleneck=True),
    "densenet_bc_250_24": _cifar(250, 24, bottleneck=True),
    "densenet_bc_190_40": _cifar(190, 40, bottleneck=True),
    "densenet_bc_40_36": _cifar(40, 36, bottleneck=True),
    "densenet_bc_40_48": _cifar(40, 48, bottleneck=True),
    "densenet_bc_40_60": _cifar(40, 60, bottleneck=True),
}
"""Huang et al. 2017: table 1 (264: of the extended version) and table 2, wide ones below it."""


def variant(name: str) -> DenseNetConfig:
    """The architecture that `name` stands for, in VARIANTS or by the CIFAR names' pattern.

    densenet_L_k and densenet_bc_L_k have L layers and growth rate k. Raises UserError for another
    name, for a depth that three equal blocks cannot have, and for a network that is too large.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    match = re.fullmatch(r"densenet(_bc)?_([0-9]{1,9})_([0-9]{1,9})", name)
    if match is None:
        raise UserError(
            f'model.name: unknown model "{name}"{nearest(name, VARIANTS)} '
            "(or by pattern: densenet_L_k, densenet_bc_L_k)"
        )
    bottleneck, depth, growth_rate = match[1] is not None, int(match[2]), int(match[3])
    if growth_rate < 1:
        raise UserError(f'model.name: "{name}" has growth rate 0; the last number must be >= 1')
    step = 6 if bottleneck else 3
    below = max(4 + step, depth - (depth - 4) % step)
    if below != depth:
        raise UserError(
            f'model.name: "{name}" has {depth} layers, which three equal blocks cannot have; '
            f"the nearest depths are {below} and {below + step}"
        )
    try:
        return _cifar(depth, growth_rate, bottleneck)
    except ValidationError as invalid:
        raise UserError(f'model.name: "{name}": {invalid.errors()[0]["ctx"]["error"]}') from invalid


def architecture(config: ModelConfig) -> DenseNetConfig:
    """The named architecture with the config's own fields and overrides. Raises UserError."""
    named = variant(config.name)
    own = {
        "num_classes": config.num_classes or named.num_classes,
        "in_channels": config.in_channels,
        "drop_rate": config.drop_rate,
    }
    twice = [key for key in own if key in config.overrides]
    if twice:
        raise UserError(f"model.overrides: {twice[0]} has its own option, model.{twice[0]}")
    tree = {**named.model_dump(), **config.overrides, **own}
    places: dict[tuple[PathKey, ...], str] = {(key,): "model.overrides" for key in config.overrides}
    return build(DenseNetConfig, ConfigSource(tree, places))


def create(config: ModelConfig, with_head: bool = True) -> DenseNet:
    """The network with new weights, drawn from torch's generator; model.pretrained is not read.

    Without a head it gives pooled features.
    """
    network = architecture(config)
    if not with_head:
        network = network.model_copy(update={"num_classes": 0})
    return DenseNet(network, op=config.op, sync_bn=config.sync_bn)


@dataclass(frozen=True)
class Description:
    """A row of `densekit models`."""

    name: str
    parameters: int
    multiply_adds: int
    image_size: int
    num_classes: int


def describe_variant(name: str, config: DenseNetConfig) -> Description:
    """The network's size, found without making it."""
    return Description(
        name,
        config.parameter_count,
        multiply_adds(config),
        config.image_size,
        config.num_classes,
    )


def label(config: ModelConfig) -> str:
    """What a results line calls the network."""
    return f"{config.name} (modified)" if config.overrides else config.name


def multiply_adds(config: DenseNetConfig) -> int:
    """Multiply-adds of one image's forward pass at its own size; convolutions and classifier."""
    with torch.device("meta"):
        model = DenseNet(config).eval()
        image = torch.empty(1, config.in_channels, config.image_size, config.image_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
    return counter.get_total_flops() // 2


def last_map(config: DenseNetConfig, side: int) -> int:
    """Pixels of the last map for images of side x side. Raises UserError if none are left."""
    with torch.device("meta"), torch.no_grad():
        image = torch.empty(1, config.in_channels, side, side)
        return DenseNet(config).eval().forward_features(image)[0, 0].numel()
