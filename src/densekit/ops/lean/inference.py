"""A whole network's evaluation in one call of the C++ kernels, with weights made ready once.

What changes no number but the rounding is done beforehand: norm2 and norm0 go into the convolution
before them, 3x3 windows are transformed for Winograd's F(2x2, 3x3), weights are cast and laid out
as the products read them. A transition pools before its convolution. kernels/inference.h computes.

An image's logits do not depend on the batch it is in, nor on the number of threads.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from densekit.ops.lean.kernels.inference import kernel

PTR, INT = ctypes.c_void_p, ctypes.c_int64
# Winograd's transform of three weights, G: Lavin & Gray, 2015, arXiv:1509.09308, eq. 9.
WINOGRAD = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]).double()


class _Kind(enum.IntEnum):
    """Of a step, as in inference.h."""

    POINT = 0
    """norm, relu, 1x1 convolution, shift, relu."""
    NORM = 1
    """norm, relu."""
    WINDOW = 2
    """3x3 convolution of what POINT or NORM gave, into new columns."""
    TRANSITION = 3
    """norm, relu, 2x2 average, 1x1 convolution."""
    LAST = 4
    """norm, relu, average over the map."""


class _Stem(ctypes.Structure):
    _fields_ = (
        *((name, INT) for name in ("channels", "kept", "side", "stride", "k", "pools", "width")),
        ("weight", PTR),
        ("shift", PTR),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, INT) for name in ("kind", "c", "k", "width")),
        ("norm", PTR),
        ("weight", PTR),
        ("shift", PTR),
    )


class _Program(ctypes.Structure):
    _fields_ = (("stem", _Stem), ("steps", ctypes.POINTER(_Step)), ("count", INT))


class _Images(ctypes.Structure):
    _fields_ = (
        ("p", PTR),
        *((name, INT) for name in ("n", "h", "w", "of_n", "of_c", "of_h", "of_w")),
    )


@dataclass(frozen=True)
class NetworkParts:
    """A network's modules, in order; `layers` and `transitions` as densekit's DenseNet has them."""

    conv0: nn.Conv2d
    norm0: nn.BatchNorm2d | None
    """Behind it relu and a 3x3 max pool; None where the stem is the convolution alone."""
    blocks: Sequence[Sequence[Any]]
    transitions: Sequence[Any]
    norm5: nn.BatchNorm2d
    classifier: nn.Linear | None

    def take(self, x: Tensor) -> bool:
        """That there are images in x, with the channels and the pixels that the network needs."""
        if x.ndim != 4 or x.shape[1] != self.conv0.in_channels or x.numel() == 0:
            return False
        side = min(x.shape[2:])
        if self.conv0.stride[0] > 1:
            side = (side - 1) // self.conv0.stride[0] + 1
        if self.norm0 is not None:
            side = (side + 1) // 2
        return side >> len(self.transitions) > 0


class Network:
    """Images to logits, or to pooled features where there is no classifier.

    The weights are those of when it was made.
    """

    def __init__(self, parts: NetworkParts, dtype: torch.dtype) -> None:
        """`dtype` is that of maps and products' operands: float32 or bfloat16."""
        self._pack = Packing(dtype)
        self._infer = kernel("infer", dtype)
        self._stem = self._stem_of(parts)
        self._steps = self._steps_of(parts)
        self._program = _Program(
            self._stem, (_Step * len(self._steps))(*self._steps), len(self._steps)
        )
        self._channels = parts.norm5.num_features
        self._classifier = None if parts.classifier is None else _Linear(parts.classifier)

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [N, C, H, W] -> float32 [N, classes]."""
        n, _, h, w = x.shape
        images = _Images(x.data_ptr(), n, h, w, *x.stride())
        rounded = -(-n // 16) * 16  # products read whole groups of rows
        pooled = x.new_empty(rounded, self._channels)
        threads = torch.get_num_threads()
        self._infer(ctypes.byref(self._program), ctypes.byref(images), pooled.data_ptr(), threads)
        return pooled[:n].clone() if self._classifier is None else self._classifier(pooled, n)

    def _stem_of(self, parts: NetworkParts) -> _Stem:
        conv, norm, pack = parts.conv0, parts.norm0, self._pack
        channels, side, stride = conv.in_channels, conv.kernel_size[0], conv.stride[0]
        kept = channels + (stride * channels) % 2  # pixels begin at whole words
        weight, shift = conv.weight.detach().float(), None
        if norm is not None:
            weight, shift = folded(conv, norm)
        k = len(weight)
        rows = weight.new_zeros(
            side, k, side, kept
        )  # of the window, by what they are multiplied with
        rows[..., :channels] = weight.permute(2, 0, 3, 1)
        return _Stem(
            channels, kept, side, stride, k, norm is not None, block_width(parts.blocks[0], k),
            pack.matrices(rows.reshape(1, side, k, side * kept)), pack.vector(shift),
        )  # fmt: skip

    def _steps_of(self, parts: NetworkParts) -> list[_Step]:
        steps = []
        for i, layers in enumerate(parts.blocks):
            for layer in layers:
                steps += self._layer(layer)
            if i < len(parts.transitions):
                transition = parts.transitions[i]
                conv, width = (
                    transition.conv,
                    block_width(parts.blocks[i + 1], transition.conv.out_channels),
                )
                steps.append(
                    _Step(
                        _Kind.TRANSITION, conv.in_channels, conv.out_channels, width,
                        self._pack.norm(transition.norm), self._pack.point(conv.weight), None,
                    )
                )  # fmt: skip
        channels = parts.norm5.num_features
        return [*steps, _Step(_Kind.LAST, channels, 0, 0, self._pack.norm(parts.norm5), None, None)]

    def _layer(self, layer: Any) -> list[_Step]:
        pack, conv = self._pack, layer.conv1
        norm, c, k = pack.norm(layer.norm1), conv.in_channels, conv.out_channels
        if not layer.bottleneck:
            packed = pack.window(conv.weight)
            normed = _Step(_Kind.NORM, c, 0, 0, norm, None, None)
            return [normed, _Step(_Kind.WINDOW, c, k, 0, None, packed, None)]
        weight, shift = folded(conv, layer.norm2)
        first = _Step(_Kind.POINT, c, k, 0, norm, pack.point(weight), pack.vector(shift))
        packed, new = pack.window(layer.conv2.weight), layer.conv2.out_channels
        return [first, _Step(_Kind.WINDOW, k, new, 0, None, packed, None)]


def block_width(layers: Sequence[Any], channels: int) -> int:
    """Channels behind a block that `channels` enter."""
    last = layers[-1]
    conv = last.conv2 if last.bottleneck else last.conv1
    return channels + len(layers) * conv.out_channels


class _Linear:
    """The classifier, in float32 whatever the maps are."""

    def __init__(self, linear: nn.Linear) -> None:
        self._pack = Packing(torch.float32)
        self.classes, self.features = linear.weight.shape
        self.weight = self._pack.point(linear.weight)
        bias = linear.weight.new_zeros(self.classes) if linear.bias is None else linear.bias
        self.bias = self._pack.vector(bias)
        self._linear = kernel("linear", torch.float32)

    def __call__(self, x: Tensor, n: int) -> Tensor:
        """The first n rows of x, which has room for what products read -> [n, classes]."""
        out = x.new_empty(n, self.classes)
        self._linear(
            x.data_ptr(), n, self.features, self.weight, self.bias, self.classes, out.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return out


# Weights made ready ---------------------------------------------------------------------------


class Packing:
    """Tensors as the kernels read them; it owns the memory and gives addresses."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.kept: list[Tensor] = []

    def matrices(self, weights: Tensor) -> int:
        """[count, taps, n, group]: `count` matrices [n, taps * group], by groups of columns."""
        count, taps, n, group = weights.shape
        weights = weights.float().contiguous()
        size = kernel("packed_bytes", self.dtype)(count, taps, group, n, 1)
        words = torch.empty(size, dtype=torch.uint8)
        pack = kernel("pack", self.dtype)
        pack(weights.data_ptr(), count, taps, group, n, words.data_ptr(), torch.get_num_threads())
        return self._keep(words)

    def point(self, weight: Tensor) -> int:
        """A 1x1 convolution's or a linear layer's weight."""
        return self.matrices(weight.detach().flatten(1)[None, None])

    def window(self, weight: Tensor) -> int:
        """A 3x3 convolution's [k, c, 3, 3] as Winograd's 16 matrices: G w G'."""
        g = WINOGRAD
        turned = torch.einsum("iy,kcyx,jx->ijkc", g, weight.detach().double(), g)
        return self.matrices(turned.flatten(0, 1)[:, None])

    def norm(self, norm: nn.BatchNorm2d) -> int:
        return self._keep(torch.stack(scale_and_shift(norm)).float().contiguous())

    def vector(self, x: Tensor | None) -> int | None:
        return None if x is None else self._keep(x.detach().float().contiguous())

    def _keep(self, x: Tensor) -> int:
        self.kept.append(x)
        return x.data_ptr()


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """An evaluating norm as x * scale + shift, in float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var, gamma, beta = (
        t.detach().double() for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scale = gamma * torch.rsqrt(var + norm.eps)
    return scale, beta - mean * scale


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The weight and the shift of a convolution with the norm behind it."""
    scale, shift = scale_and_shift(norm)
    return conv.weight.detach().double() * scale.view(-1, 1, 1, 1), shift
