"""The loaders that `densekit data bench` compares do the same to the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from densekit.bench import reading
from densekit.bench.stages import measure_stages
from densekit.data import loader
from densekit.data.augment_config import AugmentConfig
from densekit.data.config import DataConfig
from densekit.data.listing import Examples
from densekit.data.splits import open_examples

# torchvision.io is deprecated, and says so at every image; it stays what users read files with
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            plain = np.full((48, 64, 3), 20 * i + 5, np.uint8)
            Image.fromarray(plain).save(tmp_path / name / f"{i}.jpg", quality=95)
    return tmp_path


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_loaders_give_normalised_batches_of_one_shape(
    photos: Path, crop: str, channels: int
) -> None:
    """Of plain images, which no crop or flip changes: the same values, too."""
    augment = AugmentConfig.model_validate(
        {"crop": crop, **({"crop_padding": 0} if crop == "pad" else {})}
    )
    config = DataConfig(channels=channels, mean=(0.4,), std=(0.2,), image_size=32, augment=augment)
    examples = open_examples(str(photos))
    loaders = [reading.densekit_loader(examples, config, workers=0)]
    loaders += [
        reading.torchvision_loader(examples, config, decode, workers=0)
        for decode in reading.DECODERS.values()
    ]
    for each in loaders:
        step = each()
        batch = step if isinstance(step, torch.Tensor) else step[0]  # type: ignore[index]
        assert batch.shape == (10, channels, 32, 32)
        values = batch * 0.2 + 0.4
        whole = (values * 255).round().flatten(1)
        assert (whole.min(1).values == whole.max(1).values).all()
        known = {np.asarray(Image.open(p).convert("L")).flat[0] for p in photos.rglob("*.jpg")}
        assert set(whole[:, 0].int().tolist()) <= {int(value) for value in known}


@pytest.mark.parametrize("place", ["auto", "ram", "disk"])
def test_files_are_read_whatever_the_recipe_keeps(
    photos: Path, place: Literal["auto", "ram", "disk"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured is reading, decoding included."""
    kept: list[object] = []

    def noted(examples: Examples, config: DataConfig, skip_bad: bool = False) -> None:
        kept.append(config.cache)

    monkeypatch.setattr(loader, "decoded_images", noted)
    examples = open_examples(str(photos))
    reading.densekit_loader(examples, DataConfig(image_size=32, cache=place), workers=0)()
    assert kept == ["off"]


def test_every_stage_takes_time(photos: Path) -> None:
    stages = measure_stages(open_examples(str(photos)), DataConfig(image_size=32), 4)
    names = [one.name for one in stages if one.name not in ("disk", "transfer")]
    assert names == ["read (cached)", "decode, crop", "augment", "collate", "normalise"]
    assert all(one.seconds > 0 for one in stages)


def test_what_torchvision_cannot_read_is_not_compared() -> None:
    deep = DataConfig(intensity="full")
    four = DataConfig(channels=4, mean=(0.5,), std=(0.5,))
    assert reading.why_no_peers(DataConfig()) is None
    assert "full" in str(reading.why_no_peers(deep))
    assert reading.why_no_peers(four) is not None
