"""A whole network's evaluation by the Triton kernels; inference.py does the same on a CPU.

One buffer a block, as in training: each layer writes its columns, nothing is concatenated. A 1x1
product normalises what it reads; norm2 is folded into it, and relu its last act. Transitions pool
before their convolution. A layer is 2 launches, or 3 where the 3x3 product is cuDNN's; a shape that
comes a second time is a CUDA graph, one launch in all. Unproved on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.ops.lean.graphs import Graphs
from densekit.ops.lean.inference import NetworkParts, block_width, folded, scale_and_shift
from densekit.ops.lean.kernels.plain import Pool
from densekit.ops.lean.layout import as_rows


class _Layer(NamedTuple):
    """norm, relu, 1x1 convolution, shift, relu; a 3x3 convolution. Without bottleneck norm, relu
    and the latter: then `point` and `shift` are None."""

    norm: Tensor
    point: Tensor | None
    shift: Tensor | None
    window: Tensor


class _Transition(NamedTuple):
    norm: Tensor
    weight: Tensor


class GpuNetwork:
    """Images to logits, or to pooled features where there is no classifier.

    The weights are those of when it was made.
    """

    def __init__(self, parts: NetworkParts, dtype: torch.dtype) -> None:
        """`dtype` is that of maps and products' operands: float32, bfloat16 or float16."""
        from densekit.ops.lean.kernels import gpu  # imports triton

        self._kernels, self._dtype = gpu, dtype
        self._conv0, self._stem = parts.conv0, self._weight(parts.conv0.weight)
        self._norm0 = None if parts.norm0 is None else _norm(parts.norm0)
        self._blocks = [[self._layer(layer) for layer in layers] for layers in parts.blocks]
        self._widths = [
            block_width(layers, before)
            for layers, before in zip(
                parts.blocks,
                [parts.conv0.out_channels, *(t.conv.out_channels for t in parts.transitions)],
                strict=True,
            )
        ]
        self._transitions = [
            _Transition(_norm(t.norm), self._weight(t.conv.weight)) for t in parts.transitions
        ]
        self._norm5, head = _norm(parts.norm5), parts.classifier
        self._head = None if head is None else _copy(head.weight, torch.float32)
        self._bias = None if head is None or head.bias is None else _copy(head.bias, torch.float32)
        self._call: Callable[[Tensor], Tensor] = self.launched
        if parts.conv0.weight.is_cuda:
            self._call = Graphs(self.launched)

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [N, C, H, W] -> float32 [N, classes]."""
        with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
            return self._call(x)

    def launched(self, x: Tensor) -> Tensor:
        """The same, kernel by kernel."""
        x = x.to(self._dtype, memory_format=torch.channels_last)
        maps = F.conv2d(x, self._stem, None, self._conv0.stride, self._conv0.padding)
        n, channels, h, w = maps.shape
        rows = as_rows(maps.contiguous(memory_format=torch.channels_last))
        if self._norm0 is None:
            buffer = rows.new_empty(len(rows), self._widths[0])
            buffer[:, :channels].copy_(rows)
        else:
            size, h, w = (h, w), (h + 1) // 2, (w + 1) // 2
            buffer = rows.new_empty(n * h * w, self._widths[0])
            self._kernels.rows.norm_relu_max(rows, self._norm0, buffer[:, :channels], size)
        for i, layers in enumerate(self._blocks):
            self._block(buffer, channels, layers, (h, w))
            if i < len(self._transitions):
                buffer, channels = self._transition(
                    buffer, self._transitions[i], (n, h, w), self._widths[i + 1]
                )
                h, w = h // 2, w // 2
        pooled = buffer.new_empty(n, self._widths[-1], dtype=torch.float32)
        self._kernels.rows.norm_relu_mean(buffer, self._norm5, pooled)
        return pooled if self._head is None else F.linear(pooled, self._head, self._bias)

    def _block(self, buffer: Tensor, c: int, layers: list[_Layer], size: tuple[int, int]) -> None:
        """Fills the columns from c on; every layer reads all before its own."""
        for layer in layers:
            x, k = buffer[:, :c], len(layer.window)
            z, norm = buffer[:, c : c + k], layer.norm
            if layer.point is None:
                self._kernels.norm_relu_conv(x, norm, layer.window, z, size)
            else:
                y = buffer.new_empty(len(buffer), len(layer.point))
                self._kernels.conv1_forward(x, norm, layer.point, y, shift=layer.shift)
                self._kernels.window(y, layer.window, z, size)
            c += k

    def _transition(
        self, buffer: Tensor, part: _Transition, shape: tuple[int, int, int], width: int
    ) -> tuple[Tensor, int]:
        """The next block's buffer [M, width], and how many of its columns are filled."""
        (n, h, w), kept = shape, len(part.weight)
        pooled = buffer.new_empty(n * (h // 2) * (w // 2), buffer.shape[1])
        self._kernels.norm_relu_pool(buffer, part.norm, pooled, Pool(h, w))
        after = buffer.new_empty(len(pooled), width)
        self._kernels.conv1_forward(pooled, None, part.weight, after[:, :kept])
        return after, kept

    # Weights made ready -------------------------------------------------------------------------

    def _layer(self, layer: Any) -> _Layer:
        norm = _norm(layer.norm1)
        if not layer.bottleneck:
            return _Layer(norm, None, None, self._weight(layer.conv1.weight))
        weight, shift = folded(layer.conv1, layer.norm2)
        point, window = self._weight(weight), self._weight(layer.conv2.weight)
        return _Layer(norm, point, _copy(shift, torch.float32), window)

    def _weight(self, weight: Tensor) -> Tensor:
        """A convolution's, as its product reads it."""
        return _copy(weight, self._dtype).contiguous(memory_format=torch.channels_last)


def _norm(norm: nn.BatchNorm2d) -> Tensor:
    """An evaluating norm as kernels read it: mean, scale, shift; [4, c], of which rstd is none."""
    assert norm.running_mean is not None
    scale, _ = scale_and_shift(norm)
    vectors = (norm.running_mean, scale, norm.bias, torch.zeros_like(scale))
    return torch.stack([_copy(vector, torch.float32) for vector in vectors])


def _copy(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Which later changes of the network do not reach."""
    return x.detach().to(dtype, copy=True)
