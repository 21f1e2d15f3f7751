"""reuse.py: each number is the mean of the weights that it names."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import SMALL, TINY, tiny
from PIL import Image
from torch import nn

from densekit.config import UserError
from densekit.explain.reuse import draw_blocks, feature_reuse, write_reuse
from densekit.models.densenet import DenseNet
from densekit.models.variants import variant


def test_the_numbers_are_the_weights() -> None:
    """Channel c of a block's input or of layer s is set to a number of its own: s + 1."""
    model = tiny()
    for b, width in enumerate(TINY.block_inputs, start=1):
        sources = [0] * width + [1] * 12 + [2] * 12
        numbers = torch.tensor(sources) + 1.0
        block = model.features.get_submodule(f"denseblock{b}")
        convolutions = [layer.conv1 for layer in block.values()]
        convolutions += [model.features.transition1.conv, model.features.transition2.conv][
            b - 1 : min(b, 2)
        ]
        for module in convolutions:
            signs = torch.where(torch.rand_like(module.weight) < 0.5, -1.0, 1.0)
            channels = module.weight.shape[1]
            module.weight.data = signs * numbers[:channels].view(1, -1, 1, 1)
    model.classifier.weight.data = -numbers.expand(5, -1).clone()
    blocks = feature_reuse(model)
    assert [(b.name, b.reader) for b in blocks] == [
        ("denseblock1", "transition1"),
        ("denseblock2", "transition2"),
        ("denseblock3", "classifier"),
    ]
    nan = np.nan
    for block in blocks:
        expected = np.array([[1, 1, 1], [nan, 2, 2], [nan, nan, 3]])
        assert np.allclose(block.weights, expected, equal_nan=True)


@pytest.mark.parametrize("name", ["densenet121", "densenet_40_12", "densenet_bc_16_12"])
def test_every_kind_of_block(name: str) -> None:
    config = variant(name)
    blocks = feature_reuse(DenseNet(config))
    for block, layers in zip(blocks, config.block_config, strict=True):
        triangle = np.triu(np.ones((layers + 1, layers + 1), bool))
        assert np.array_equal(np.isfinite(block.weights), triangle)


def test_a_replaced_layer_is_named() -> None:
    model = DenseNet(SMALL)
    model.classifier = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(UserError, match="classifier is a Sequential, where feature reuse takes"):
        feature_reuse(model)
    model.features.denseblock2.denselayer1.conv1 = nn.Identity()
    with pytest.raises(UserError, match=r"denseblock2\.denselayer1\.conv1 is a Identity"):
        feature_reuse(model)


def test_what_is_written(tmp_path: Path) -> None:
    said = write_reuse(tmp_path / "reuse", tiny(), "tiny")
    assert sorted(p.name for p in (tmp_path / "reuse").iterdir()) == [
        "explain.json", "feature-reuse.png"
    ]  # fmt: skip
    assert json.loads((tmp_path / "reuse/explain.json").read_text()) == said
    block = said["blocks"][2]
    assert block["sources"] == ["input", "denselayer1", "denselayer2"]
    assert block["targets"] == ["denselayer1", "denselayer2", "classifier"]
    assert block["mean_abs_weight"][2][:2] == [None, None]
    with Image.open(tmp_path / "reuse/feature-reuse.png") as image:
        image.load()
        assert image.width > 300
    write_reuse(tmp_path / "reuse", tiny(), "again")


def test_a_figure_shows_the_blocks_beside_each_other() -> None:
    """As wide as the layers ask for, up to a limit; nothing but the page at its edges."""
    for config in (SMALL, variant("densenet121")):
        picture = np.asarray(
            Image.open(io.BytesIO(draw_blocks(feature_reuse(DenseNet(config)), "a network")))
            .convert("L")
        )  # fmt: skip
        assert picture.shape[1] < 3200
        for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
            assert (edge == 255).all(), "something is cut off"
