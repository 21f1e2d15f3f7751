"""A tiny network, and digits for it, of which some cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from densekit.data.transforms import Preprocessing
from densekit.models import artifact
from densekit.models.artifact import ArtifactConfig, Described
from densekit.models.densenet import DenseNet, DenseNetConfig

ARCHITECTURE = DenseNetConfig(
    growth_rate=4, block_config=(1, 2), num_init_features=8, stem="cifar", num_classes=7,
    image_size=24,
)  # fmt: skip


def write_network(folder: Path, seed: int = 3) -> Path:
    torch.manual_seed(seed)
    model = DenseNet(ARCHITECTURE)
    model.classifier.weight.data *= 20  # probabilities that differ
    model(torch.randn(8, 3, 24, 24))
    config = ArtifactConfig(
        model=Described(name="tiny", architecture=ARCHITECTURE),
        preprocessing=Preprocessing(resize=28, crop=24),
        classes=tuple("abcdefg"),
    )
    artifact.write_artifact(folder, config, model.eval().state_dict())
    return folder


@dataclass(frozen=True)
class Scene:
    """What the tests score: 173 digits, a file that is gone, one cut short, and a folder."""

    network: Path
    images: Path | str
    """A list, or a prefix."""

    def command(self, out: Path, *options: str, part_size: int = 32) -> list[str]:
        sizes = ["--part-size", str(part_size), "--batch-size", "8", "--topk", "2"]
        words = [self.network, self.images, "--out", out]
        return ["predict", *map(str, words), "--device", "cpu", *sizes, *options]


def parts_of(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.glob("*.parquet"))}
