"""A small network's artifact, opened; noise as images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import tiny_artifact
from torch import Tensor

from densekit.infer.classifier import Classifier, load


@pytest.fixture
def classifier(tmp_path: Path) -> Classifier:
    return load(tiny_artifact(tmp_path / "best"), "cpu")


@pytest.fixture
def squares() -> Tensor:
    """Three images, uint8 [3, 3, 32, 32]."""
    draw = torch.manual_seed(1)
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=draw)
