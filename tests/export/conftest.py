"""A network that has learned real digits, as an artifact, and its exports; each made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from densekit.data.transforms import Preprocessing
from densekit.export import steps
from densekit.infer.model import Opened, open_path
from densekit.models import artifact
from densekit.models.artifact import ArtifactConfig, Described
from densekit.models.densenet import DenseNet, DenseNetConfig
from runs import digits

TRAIN, VAL, STEPS, BATCH = 2000, 250, 120, 64
CONFIG = DenseNetConfig(
    growth_rate=8, block_config=(2, 2), num_init_features=16, in_channels=1, num_classes=10,
    image_size=28,
)  # fmt: skip
PREPROCESSING = Preprocessing(channels=1, resize=None, crop=28, mean=(0.13,), std=(0.31,))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact, beside `data/` with its train_list.txt and val_list.txt."""
    place = tmp_path_factory.mktemp("exports")
    pixels, labels = digits()
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))[: TRAIN + VAL]
    images = torch.from_numpy(pixels[order].reshape(-1, 1, 28, 28).astype(np.uint8))
    wanted = torch.from_numpy(labels[order].astype(np.int64))
    _write(place / "data", images.numpy()[:, 0], labels[order])
    network = _learn(images[:TRAIN], wanted[:TRAIN])
    config = ArtifactConfig(
        model=Described(name="densenet121", architecture=CONFIG),
        preprocessing=PREPROCESSING,
        classes=tuple(f"digit {i}" for i in range(10)),
        data={
            "train": str(place / "data" / "train_list.txt"),
            "val": str(place / "data" / "val_list.txt"),
            "channels": 1, "image_size": 28, "mean": [0.13], "std": [0.31],
            "evaluate": {"resize": None},
        },
        provenance=artifact.provenance(),
    )  # fmt: skip
    artifact.write_artifact(place / "best", config, network.state_dict())
    return place / "best"


def _learn(images: torch.Tensor, labels: torch.Tensor) -> DenseNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DenseNet(CONFIG, op="reference").train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=STEPS)
        for _ in range(STEPS):
            drawn = torch.randint(len(images), (BATCH,))
            loss = F.cross_entropy(network(PREPROCESSING.normalize(images[drawn])), labels[drawn])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _write(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    root.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(root / f"{index}.png")
    lines = [f"{index}.png {label}\n" for index, label in enumerate(labels)]
    (root / "train_list.txt").write_text("".join(lines[:TRAIN]))
    (root / "val_list.txt").write_text("".join(lines[TRAIN:]))


@pytest.fixture(scope="session")
def opened(trained: Path) -> Opened:
    return open_path(str(trained))


@pytest.fixture(scope="session")
def squares(trained: Path) -> torch.Tensor:
    """The first 20 validation images, uint8 [20, 1, 28, 28]."""
    files = (trained.parent / "data" / "val_list.txt").read_text().splitlines()[:20]
    images = [np.asarray(Image.open(trained.parent / "data" / f.split()[0])) for f in files]
    return torch.from_numpy(np.stack(images))[:, None]


@pytest.fixture(scope="session")
def exported(opened: Opened, trained: Path) -> Callable[..., Path]:
    """`exported("onnx", with_preprocessing=True)`: the folder of such an export."""
    made: dict[str, Path] = {}

    def make(to: str, **options: Any) -> Path:
        key = f"{to} {sorted(options.items())}"
        if key not in made:
            place = trained.parent / f"{len(made)}-{to}"
            steps.export_network(opened, place, steps.ExportOptions(to, **options))
            made[key] = place
        return made[key]

    return make
