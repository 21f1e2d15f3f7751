"""data.intensity: from values to 0..1, against numpy and by hand; the same in every command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import UserError
from densekit.data.augment import train_transform
from densekit.data.augment_config import AugmentConfig
from densekit.data.config import DataConfig
from densekit.data.dataset import ImageDataset, Sample
from densekit.data.folders import read_folder
from densekit.data.intensity import Intensity
from densekit.data.loader import eval_batches
from densekit.data.pixels import Pixels
from densekit.data.transforms import Preprocessing
from densekit.training.recipe import load_recipe


def pixels(values: np.ndarray, **how: object) -> Pixels:
    return Pixels(values[..., None], **how)  # type: ignore[arg-type]


@given(
    st.lists(st.integers(0, 65535), min_size=4, max_size=64), st.floats(0, 49), st.floats(51, 100)
)
def test_percentiles_are_numpys(found: list[int], low: float, high: float) -> None:
    values = np.array(found, np.uint16)[None]
    square = Intensity("percentile", (low, high)).apply(pixels(values), 1)
    ends = np.percentile(values, (low, high))
    expected = (values - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0 * values
    span = ends[1] - ends[0]
    if span > 1e-3:  # the ends are rounded to float32
        rounding = 2e-6 + 2 * np.finfo(np.float32).eps * ends[1] / span
        np.testing.assert_allclose(square[0], np.clip(expected, 0, 1), rtol=0, atol=rounding)
    assert square.min() >= 0
    assert square.max() <= 1


def test_an_image_of_one_value_is_black() -> None:
    square = Intensity("percentile").apply(pixels(np.full((3, 3), 700, np.uint16)), 1)
    assert square.abs().max() == 0


def test_a_window_in_hounsfield_units() -> None:
    """Soft tissue, [40, 400]: -160 is black, 240 white."""
    values = np.array([[-1000, -160, 40, 240, 3000]], np.int16)
    square = Intensity("window", window=(40, 400)).apply(pixels(values), 1)
    assert square.flatten().tolist() == [0, 0, 0.5, 1, 1]
    negative = Intensity("window", window=(40, 400)).apply(pixels(values, inverted=True), 1)
    assert torch.equal(negative, 1 - square)


def test_the_files_own_window_unless_one_is_given() -> None:
    values = np.array([[0, 50, 100]], np.uint16)
    own = pixels(values, window=(0.0, 200.0))
    assert Intensity("window").apply(own, 1).flatten().tolist() == [0, 0.25, 0.5]
    assert Intensity("window", window=(50, 100)).apply(own, 1).flatten().tolist() == [0, 0.5, 1]


def test_the_defaults_keep_eight_bits() -> None:
    assert Intensity() == DataConfig().scaling == Preprocessing().scaling
    assert Intensity().dtype == torch.uint8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16-bit images of 20 x 24 pixels in two classes."""
    root, draw = tmp_path_factory.mktemp("sixteen"), np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(4):
            np.save(root / name / f"{i}.npy", draw.integers(0, 65536, (20, 24)).astype(np.uint16))
    return root


CONFIG = DataConfig(
    channels=1, mean=(0.5,), std=(0.25,), image_size=20, intensity="full",
    evaluate={"resize": None}, augment={"crop": "none", "flip": 0.0},  # type: ignore[arg-type]
)  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_no_bit_is_lost_on_the_way_to_the_network(folder: Path, workers: int) -> None:
    examples, preprocessing = read_folder(folder), Preprocessing.from_config(CONFIG)
    for number, batch in eval_batches(examples, preprocessing, 3, workers):
        assert batch.images.dtype == torch.float32
        inputs = preprocessing.normalize(batch.images)
        back = ((inputs.double() * 0.25 + 0.5) * 65535).round().numpy()[:, 0]
        for row, index in zip(back, batch.indices.tolist(), strict=True):
            stored = np.load(examples.paths[index])
            np.testing.assert_array_equal(row, stored[:, 2:22])
        assert len(batch.labels) == (3 if number < 2 else 2)


@pytest.mark.parametrize(
    "augment",
    [
        {"crop": "random_resized"},
        {"crop": "pad", "affine_degrees": 10, "affine_translate": 0.1},
        {"color_jitter": [0.2, 0.2, 0, 0]},
        {"erase": 1.0},
        {"erase": 1.0, "erase_with": "noise"},
        {"crop_distribution": "paddle"},
    ],
    ids=str,
)
def test_training_changes_images_of_sixteen_bits(folder: Path, augment: dict) -> None:
    config = CONFIG.model_copy(update={"augment": AugmentConfig(**augment)})
    dataset = ImageDataset(
        read_folder(folder), train_transform(config), 1, 20, intensity=config.scaling
    )
    sample = dataset[0, 5]
    assert isinstance(sample, Sample)
    assert sample.image.dtype == torch.float32
    assert 0 <= sample.image.min() <= sample.image.max() <= 1
    assert sample.image.unique().numel() > 255 / 2, "more than 8 bits are left"


def test_changes_that_would_cost_bits_are_refused() -> None:
    with pytest.raises(UserError, match="rand_augment works on 8 bits"):
        load_recipe(None, ["data.intensity=full", "data.augment.rand_augment=2"])
    with pytest.raises(UserError, match="color_jitter is for 1 or 3 channels"):
        load_recipe(
            None,
            ["data.channels=5", "data.mean=[0.5]", "data.std=[0.5]",
             "data.augment.color_jitter=[0.1,0,0,0]"],
        )  # fmt: skip
    with pytest.raises(UserError, match=r"has no effect with data.intensity=full"):
        load_recipe(None, ["data.intensity=full", "data.window=[40,400]"])
