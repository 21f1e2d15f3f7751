"""DenseNet (Huang et al., 2017, https://arxiv.org/abs/1608.06993), for any input size and depth.

N images, C channels, H rows, W columns; k growth rate, K = bn_size * k bottleneck width.
Module names, and so state_dict keys, are torchvision's; so are the draws of the initial weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.fx
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from densekit.config import Section, UserError, nearest
from densekit.models.one_call import forget_one_call, one_call
from densekit.ops.choose import DENSE_BLOCKS, check_name, choose
from densekit.ops.lean.norm_relu import norm_relu
from densekit.ops.relu import ReLU
from densekit.ops.sync_bn import SyncBatchNorm2d
from densekit.ops.transforms import TRACERS, transform_of

Norm = Callable[[int], nn.BatchNorm2d]
"""Makes the BatchNorm of that many channels."""

STEM_MODULES = ("conv0", "norm0", "relu0", "pool0")
MAX_LAYERS, MAX_PARAMETERS = 1000, 10**10
"""More is taken for a typing error, since building it would fill the memory or take minutes. The
published networks have at most 132 dense layers and 33 million parameters."""


class DenseNetConfig(Section):
    """An architecture, whole: `models.variants` is a table of these."""

    growth_rate: int = Field(32, ge=1)
    """k: the channels that each layer adds."""
    block_config: tuple[Annotated[int, Field(ge=1)], ...] = Field((6, 12, 24, 16), min_length=1)
    """The number of layers of each dense block."""
    num_init_features: int = Field(64, ge=1)
    """Channels after the stem's convolution."""
    bn_size: int = Field(4, ge=0)
    """Bottleneck width over growth rate, K / k; 0 leaves the bottleneck out."""
    compression: float = Field(0.5, gt=0, le=1)
    """theta: the share of channels that a transition keeps."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: 7x7 stride 2, norm, relu, 3x3 max pool stride 2. cifar: one 3x3 convolution."""
    drop_rate: float = Field(0.0, ge=0, lt=1)
    """Dropout after each layer's last convolution."""
    bn_eps: float = Field(1e-5, gt=0)
    """BatchNorm's epsilon, in every norm (Keras' weights need 1.001e-5)."""
    init: Literal["fan_in", "fan_out"] = "fan_in"
    """He initialisation of convolutions: torchvision's fan_in, or the paper's fan_out."""
    in_channels: int = Field(3, ge=1)
    """Channels of the input image."""
    num_classes: int = Field(1000, ge=0)
    """Rows of the classifier; 0 leaves it out, so that the network gives pooled features."""
    image_size: int = Field(224, ge=1)
    """The side of the images this architecture was published for; any other size works too."""

    @model_validator(mode="after")
    def _can_be_built(self) -> DenseNetConfig:
        layers = sum(self.block_config)
        if layers > MAX_LAYERS:
            raise ValueError(
                f"the network has {layers:,} dense layers; more than {MAX_LAYERS:,} are refused"
            )
        if min(self.block_inputs) < 1:
            raise ValueError(f"compression={self.compression} leaves a block without channels")
        if self.parameter_count > MAX_PARAMETERS:
            raise ValueError(
                f"the network has {self.parameter_count:,} parameters; more than "
                f"{MAX_PARAMETERS:,} are refused"
            )
        return self

    @property
    def block_inputs(self) -> tuple[int, ...]:
        """Channels that enter each dense block."""
        widths = [self.num_init_features]
        for layers in self.block_config[:-1]:
            widths.append(int((widths[-1] + layers * self.growth_rate) * self.compression))
        return tuple(widths)

    @property
    def block_outputs(self) -> tuple[int, ...]:
        """Channels that leave each dense block."""
        pairs = zip(self.block_inputs, self.block_config, strict=True)
        return tuple(width + layers * self.growth_rate for width, layers in pairs)

    @property
    def parameter_count(self) -> int:
        """Trainable parameters of the network, by arithmetic."""
        k, width, outputs = self.growth_rate, self.bn_size * self.growth_rate, self.block_outputs
        imagenet = self.stem == "imagenet"
        count = (49 if imagenet else 9) * self.in_channels * self.num_init_features
        count += 2 * self.num_init_features if imagenet else 0
        for b in range(len(outputs)):
            for c in range(self.block_inputs[b], outputs[b], k):  # what each layer reads
                count += 2 * c + (c * width + 2 * width + 9 * width * k if width else 9 * c * k)
            if b + 1 < len(outputs):
                count += 2 * outputs[b] + outputs[b] * self.block_inputs[b + 1]
        return count + 2 * outputs[-1] + (outputs[-1] + 1) * self.num_classes


@dataclass(frozen=True)
class FeatureInfo:
    """One map of `DenseNet.forward_pyramid`."""

    name: str
    """The module that it comes from."""
    channels: int
    stride: int
    """Pixels of the image per pixel of the map."""


class DenseLayer(nn.Module):
    """norm, relu, 1x1 convolution to K; norm, relu, 3x3 convolution to k; or the latter alone."""

    def __init__(self, channels: int, config: DenseNetConfig, norm: Norm) -> None:
        super().__init__()
        k, width = config.growth_rate, config.bn_size * config.growth_rate
        self.drop_rate = config.drop_rate
        self.bottleneck = width > 0
        self.norm1 = norm(channels)
        self.relu1 = ReLU()
        if not self.bottleneck:
            self.conv1 = nn.Conv2d(channels, k, 3, padding=1, bias=False)
            return
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm2 = norm(width)
        self.relu2 = ReLU()
        self.conv2 = nn.Conv2d(width, k, 3, padding=1, bias=False)

    def forward(
        self, features: list[Tensor], call: Callable[..., Tensor] = lambda half, *x: half(*x)
    ) -> Tensor:
        """All maps before this layer, each [N, c, H, W] -> its own [N, k, H, W].

        `call` computes each half, which ends with a convolution, of its inputs.
        """
        x = call(self._first, *features)
        if self.bottleneck:
            x = call(self._second, x)
        if self.drop_rate > 0:
            x = F.dropout(x, self.drop_rate, self.training)
        return x

    def _first(self, *features: Tensor) -> Tensor:
        return self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))

    def _second(self, x: Tensor) -> Tensor:
        return self.conv2(self.relu2(self.norm2(x)))


class DenseBlock(nn.ModuleDict):
    """denselayer1, denselayer2, ...: each reads the block's input and all layers before it."""

    def __init__(self, channels: int, layers: int, config: DenseNetConfig, norm: Norm) -> None:
        super().__init__()
        self.op = "auto"
        for i in range(layers):
            layer = DenseLayer(channels + i * config.growth_rate, config, norm)
            self.add_module(f"denselayer{i + 1}", layer)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + layers * k, H, W]."""
        op = choose(self.op, x, dict(self.named_children()), DenseLayer)
        return DENSE_BLOCKS[op](x, list(self.values()))


class Transition(nn.Module):
    """norm, relu, 1x1 convolution, 2x2 average pool: fewer channels, half the size.

    Both of the last two are linear, one over channels and one over pixels, so they commute: lean
    pools first, which leaves the convolution a quarter of the work.
    """

    def __init__(self, channels: int, kept: int, norm: Norm) -> None:
        super().__init__()
        self.op = "auto"
        self.norm = norm(channels)
        self.relu = ReLU()
        self.conv = nn.Conv2d(channels, kept, 1, bias=False)
        self.pool = nn.AvgPool2d(2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, kept, H // 2, W // 2]."""
        if transform_of(x) not in TRACERS:  # to them a size is no number
            _check_size(*x.shape[-2:])
        if choose(self.op, x, dict(self.named_children())) == "lean":
            return self.conv(norm_relu(x, self.norm, "average"))
        return self.pool(self.conv(self.relu(self.norm(x))))


def _check_size(height: int, width: int) -> None:
    """Of a map that a transition halves. Raises UserError."""
    if min(height, width) < 2:
        raise UserError(
            f"the images are too small for this network: {height}x{width} pixels are left where a "
            "transition halves the map; use larger images (data.image_size), fewer blocks or "
            "stem: cifar"
        )


class Features(nn.Sequential):
    """Stem, blocks, transitions and norm5; lean computes the stem's norm, relu and pool at once."""

    op = "auto"

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, C, h, w], before the last relu."""
        modules = dict(self.named_children())
        stem = {name: module for name, module in modules.items() if name in STEM_MODULES[1:]}
        done: Collection[str] = ()
        for name, module in modules.items():
            whole = name == "norm0" and tuple(stem) == STEM_MODULES[1:]
            if whole and choose(self.op, x, stem) == "lean":
                x, done = norm_relu(x, module, "max"), stem
            if name not in done:
                x = module(x)
        return x


class DenseNet(nn.Module):
    """[N, in_channels, H, W] -> logits [N, num_classes]; H and W of any size, N of 0 too.

    With num_classes=0 there is no classifier, and the result is the pooled features [N, C].
    `op` is how dense blocks are computed (see `ops.choose`); `sync_bn` takes BatchNorm's training
    statistics over all ranks.
    """

    def __init__(self, config: DenseNetConfig, op: str = "auto", sync_bn: bool = False) -> None:
        super().__init__()
        self.config = config
        self._frozen_stages, self._frozen_norms = 0, False
        norm = partial(SyncBatchNorm2d if sync_bn else nn.BatchNorm2d, eps=config.bn_eps)
        self.features = Features()
        self._add_stem(norm)
        self._add_blocks(norm)
        self.classifier = (
            nn.Linear(config.block_outputs[-1], config.num_classes)
            if config.num_classes
            else nn.Identity()
        )
        self._initialise()
        self.set_op(op)

    def _add_stem(self, norm: Norm) -> None:
        c_in, c_out = self.config.in_channels, self.config.num_init_features
        if self.config.stem == "cifar":
            self.features.add_module("conv0", nn.Conv2d(c_in, c_out, 3, padding=1, bias=False))
            return
        conv = nn.Conv2d(c_in, c_out, 7, stride=2, padding=3, bias=False)
        self.features.add_module("conv0", conv)
        self.features.add_module("norm0", norm(c_out))
        self.features.add_module("relu0", ReLU())
        self.features.add_module("pool0", nn.MaxPool2d(3, stride=2, padding=1))

    def _add_blocks(self, norm: Norm) -> None:
        config, widths = self.config, self.config.block_outputs
        for b, layers in enumerate(config.block_config, start=1):
            block = DenseBlock(config.block_inputs[b - 1], layers, config, norm)
            self.features.add_module(f"denseblock{b}", block)
            if b < len(widths):
                transition = Transition(widths[b - 1], config.block_inputs[b], norm)
                self.features.add_module(f"transition{b}", transition)
        self.features.add_module("norm5", norm(widths[-1]))

    def _initialise(self) -> None:
        """He et al. for convolutions; norms start as torch has them, the classifier's bias at 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=self.config.init)
        if isinstance(self.classifier, nn.Linear):
            nn.init.zeros_(self.classifier.bias)

    # Forward --------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, num_classes], or [N, C] without a classifier.

        In evaluation without gradients `auto` and `lean` may compute all of it at once; the result
        is then float32, under autocast too.
        """
        if self._op in ("auto", "lean"):
            network = one_call(self, x, DenseNet)
            if network is not None:
                return network(x)
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, after norm5 and relu: [N, in_channels, H, W] -> [N, C, h, w]."""
        return F.relu(self.features(x))  # not in place: `features` and norm5 may have hooks

    def forward_head(self, features: Tensor) -> Tensor:
        """The map that `forward_features` gives, [N, C, h, w] -> what `forward` gives."""
        return self.classifier(F.adaptive_avg_pool2d(features, 1).flatten(1))

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """The maps that `feature_info` describes, each [N, channels, h, w], norms after relu."""
        taken = {info.name.replace("norm0", "relu0") for info in self.feature_info}
        maps = []
        for name, module in self.features.named_children():
            x = module(x)
            if name == "norm5":
                x = F.relu(x)
            if name in taken:
                maps.append(x)
        return maps

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """What `forward_pyramid` returns: the last map of each size."""
        widths, infos, stride = self.config.block_outputs, [], 1
        if self.config.stem == "imagenet":
            infos.append(FeatureInfo("norm0", self.config.num_init_features, 2))
            stride = 4
        for b, width in enumerate(widths, start=1):
            name = f"denseblock{b}" if b < len(widths) else "norm5"
            infos.append(FeatureInfo(name, width, stride))
            stride *= 2
        return infos

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script compiles in place of this: its graph, with the same parameters.

        Raises UserError for a network with dropout, which the graph would have forever on or off.
        """
        if self.config.drop_rate > 0:
            raise UserError(
                "torch.jit.script cannot switch this network's dropout on and off; use "
                "torch.jit.trace or torch.export"
            )
        own = self._op
        self.set_op("reference")
        try:
            module = torch.fx.symbolic_trace(self)
        finally:
            self.set_op(own)
        for node in module.graph.nodes:
            node.type = None  # TorchScript knows no annotation of a name that is imported
        module.recompile()
        return module

    # Choices --------------------------------------------------------------------------------

    @property
    def op(self) -> str:
        """How dense blocks are computed; `set_op` changes it."""
        return self._op

    def set_op(self, name: str) -> None:
        """Raises UserError for a name that `ops.choose` does not know."""
        check_name(name)
        self._op = name
        for module in (self.features, *self.features):
            if isinstance(module, Features | DenseBlock | Transition):
                module.op = name

    def stages(self) -> dict[str, list[nn.Module]]:
        """The network in order, without the classifier: stem, block1, transition1, ..., norm5."""
        stages: dict[str, list[nn.Module]] = {}
        for name, module in self.features.named_children():
            stage = "stem" if name in STEM_MODULES else name.replace("denseblock", "block")
            stages.setdefault(stage, []).append(module)
        return stages

    def freeze(self, stage: str | None, norms: bool = False) -> None:
        """Fine-tuning: all from the input to the end of `stage` keeps its weights.

        Its parameters ask for no gradient, and its modules stay in evaluation mode, also after
        `train()`: BatchNorm keeps its running statistics and dropout is off. With `norms` all
        BatchNorms stay in evaluation mode, and only their scales and shifts are trained. Raises
        UserError for an unknown stage.
        """
        names = list(self.stages())
        if stage is not None and stage not in names:
            raise UserError(f'optim.freeze: unknown stage "{stage}"{nearest(stage, names)}')
        count = 0 if stage is None else names.index(stage) + 1
        self._frozen_stages = max(self._frozen_stages, count)
        self._frozen_norms |= norms
        for module in self._frozen():
            module.requires_grad_(False)
        self.train(self.training)

    def unfreeze(self) -> None:
        """All is trained again."""
        self._frozen_stages, self._frozen_norms = 0, False
        self.requires_grad_(True)
        self.train(self.training)

    @property
    def frozen_to(self) -> str | None:
        """The last stage that is not trained."""
        return list(self.stages())[self._frozen_stages - 1] if self._frozen_stages else None

    def _frozen(self) -> list[nn.Module]:
        frozen = list(self.stages().values())[: self._frozen_stages]
        return [module for stage in frozen for module in stage]

    def train(self, mode: bool = True) -> DenseNet:
        forget_one_call(self)
        super().train(mode)
        for module in self._frozen():
            module.eval()
        if self._frozen_norms:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self
