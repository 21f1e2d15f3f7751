"""Feature reuse: which layers read which, by the size of their weights; figure 5 of the paper.

Huang et al., 2017 (https://arxiv.org/abs/1608.06993): "for each convolutional layer l within a
block, we compute the average (absolute) weight assigned to connections with layer s". The columns
are a block's layers, then the reader of the whole block: the transition, or the classifier.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor, nn

from densekit.config import UserError
from densekit.explain.folder import REUSE_FIGURE, claim, write_manifest
from densekit.files import write_atomically
from densekit.models.densenet import DenseNet

# The strongest is not black: differences between dark colours are hard to see.
COLOURS = ListedColormap(colormaps["magma_r"](np.linspace(0.02, 0.85, 256)))
CELL = 0.2  # inches per cell, if the figure has room
WIDEST_FIGURE = 16.0  # inches


@dataclass(frozen=True)
class BlockReuse:
    """One dense block of L layers."""

    name: str
    """denseblock1"""
    reader: str
    """The module that reads the whole block: transition1, or classifier."""
    weights: NDArray[np.float64]
    """Mean |weight| [1 + L sources, L + 1 targets]; NaN where a source comes after its target.

    Sources: the block's input, then its layers. Targets: its layers, then the reader.
    """


def feature_reuse(network: DenseNet) -> list[BlockReuse]:
    """The blocks of a network. Raises UserError if a convolution or the classifier was replaced."""
    return [_block(network, b) for b in range(len(network.config.block_config))]


def _block(network: DenseNet, b: int) -> BlockReuse:
    config = network.config
    name, layers = f"denseblock{b + 1}", config.block_config[b]
    last = b + 1 == len(config.block_config)
    reader = "classifier" if last else f"transition{b + 1}"
    readers = [f"features.{name}.denselayer{i + 1}.conv1" for i in range(layers)]
    readers.append(reader if last else f"features.{reader}.conv")
    edges = [0, *range(config.block_inputs[b], config.block_outputs[b] + 1, config.growth_rate)]
    weights = np.full((layers + 1, layers + 1), np.nan)
    for target, module in enumerate(readers):
        sizes = _mean_sizes(network, module, edges[target + 1])
        for source, (start, stop) in enumerate(pairwise(edges[: target + 2])):
            weights[source, target] = sizes[start:stop].mean().item()
    return BlockReuse(name, reader, weights)


def _mean_sizes(network: DenseNet, name: str, channels: int) -> Tensor:
    """The mean |weight| of each channel that a module reads, float64. Raises UserError."""
    module = network.get_submodule(name)
    if not isinstance(module, (nn.Conv2d, nn.Linear)) or module.weight.shape[1] != channels:
        raise UserError(
            f"{name} is a {type(module).__name__}, where feature reuse takes the network's own "
            f"layer, which reads {channels} channels"
        )
    return module.weight.detach().double().cpu().abs().transpose(0, 1).flatten(1).mean(1)


# Drawing ------------------------------------------------------------------------------------


def write_reuse(folder: Path, network: DenseNet, name: str) -> dict[str, Any]:
    """Writes feature-reuse.png and explain.json to `folder`; returns the latter's content.

    Raises UserError for a folder with other content and for a modified network.
    """
    blocks = feature_reuse(network)
    claim(folder, "feature-reuse")
    write_atomically(folder / REUSE_FIGURE, draw_blocks(blocks, name))
    numbers = [
        {
            "name": block.name,
            "reader": block.reader,
            "sources": ["input", *_layers(block)],
            "targets": [*_layers(block), block.reader],
            "mean_abs_weight": [
                [None if math.isnan(w) else w for w in row] for row in block.weights.tolist()
            ],
        }
        for block in blocks
    ]
    said = {"network": name, "figure": REUSE_FIGURE, "blocks": numbers}
    return write_manifest(folder, "feature-reuse", said)


def draw_blocks(blocks: Sequence[BlockReuse], title: str) -> bytes:
    """A PNG with a heat map per block, all with cells of the same size."""
    sizes = [len(block.weights) for block in blocks]
    cell = min(max(CELL, 1.6 / max(sizes)), WIDEST_FIGURE / sum(sizes))
    beside, above, below = 0.75, 1.0, 1.05  # inches around a square
    width = sum(size * cell + beside for size in sizes) + 0.3
    height = max(sizes) * cell + above + below
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    figure.text(
        0.2 / width, 1 - 0.2 / height, "Feature reuse", va="top", fontsize=13, weight="bold"
    )
    figure.text(0.2 / width, 1 - 0.46 / height, title, va="top", fontsize=9, color="#555555")
    left = 0.75
    for block, size in zip(blocks, sizes, strict=True):
        side = size * cell
        top = height - above
        place = (left / width, (top - side) / height, side / width, side / height)
        bar = (left / width, (top - side - 0.62) / height, side / width, 0.09 / height)
        _draw_block(figure.add_axes(place), figure.add_axes(bar), block, first=left < 1)
        left += side + beside
    png = io.BytesIO()
    figure.savefig(png, dpi=150, format="png")
    return png.getvalue()


def _draw_block(axes: Axes, bar: Axes, block: BlockReuse, first: bool) -> None:
    size = len(block.weights)
    scale = Normalize(0, float(np.nanmax(block.weights)))
    axes.imshow(block.weights, cmap=COLOURS, norm=scale, interpolation="none", aspect="auto")
    axes.add_patch(
        Rectangle((size - 1.5, -0.5), 1, size, fill=False, edgecolor="#222222", linewidth=1.4)
    )
    axes.set_title(block.name, fontsize=10, loc="left")
    axes.set_xlabel(f"target layer; framed: {block.reader}", fontsize=8)
    axes.set_ylabel("source layer; 0: input" if first else "", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(min(size, 8), integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(min(size, 8), integer=True))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x + 1:g}" if 0 <= x < size - 1 else "")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}" if 0 <= y < size else "")
    axes.tick_params(labelsize=7, length=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    colours = ScalarMappable(scale, COLOURS)
    shown = axes.figure.colorbar(colours, cax=bar, orientation="horizontal")
    shown.outline.set_visible(False)
    shown.ax.tick_params(labelsize=7, length=2)
    shown.ax.xaxis.set_major_locator(MaxNLocator(3))
    shown.ax.set_xlabel("mean |weight|", fontsize=8)


def _layers(block: BlockReuse) -> list[str]:
    return [f"denselayer{i}" for i in range(1, len(block.weights))]
