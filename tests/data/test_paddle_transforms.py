"""PaddleClas' transforms against plain cv2 and numpy, written from the facts of what they do."""

from __future__ import annotations

import math
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from densekit.data.augment import PaddleCrop, train_transform
from densekit.data.augment_config import AugmentConfig
from densekit.data.config import DataConfig
from densekit.data.decode import ImageFile, decode
from densekit.data.transforms import Preprocessing

CV2 = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def paddle_eval(image: np.ndarray, short: int, crop: int) -> np.ndarray:
    """ResizeImage and CropImage: uint8 [H, W, 3] -> [crop, crop, 3]."""
    height, width = image.shape[:2]
    factor = float(short) / min(width, height)
    width, height = int(round(width * factor)), int(round(height * factor))  # noqa: RUF046
    image = cv2.resize(image, (width, height))
    left, top = (width - crop) // 2, (height - crop) // 2
    return image[top : top + crop, left : left + crop]


@pytest.fixture(scope="module")
def jpegs(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sixty real ones, of original sizes."""
    folder = tmp_path_factory.mktemp("jpegs")
    with tarfile.open(test_data / "imagenet-sample.tar") as tar:
        members = [m for m in tar.getmembers() if m.name.endswith(".JPEG")][::8][:60]
        tar.extractall(folder, members, filter="data")
    return sorted(folder.rglob("*.JPEG"))


PADDLE = Preprocessing(antialias=False, rounding="paddle")


def test_the_evaluation_transform_is_theirs_on_real_images(jpegs: list[Path]) -> None:
    differences = []
    for file in jpegs:
        read = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        theirs = paddle_eval(np.ascontiguousarray(read[..., ::-1]), 256, 224)
        image = decode(file, 3)
        assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - read[..., ::-1]).max() <= 2
        ours = PADDLE(image).permute(1, 2, 0).numpy()
        differences.append(np.abs(ours.astype(int) - theirs))
    every = np.stack(differences)
    assert len(jpegs) == 60
    assert every.mean() <= 0.25
    assert (every <= 2).mean() >= 0.999
    other = Preprocessing()(decode(jpegs[0], 3)).permute(1, 2, 0).numpy()
    assert (
        np.abs(other.astype(int) - PADDLE(decode(jpegs[0], 3)).permute(1, 2, 0).numpy()).max() > 2
    )


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (301, 301), (257, 999), (256, 256)])
def test_both_sides_are_rounded_and_the_offset_rounds_down(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    pixels = cv2.GaussianBlur(pixels, (0, 0), 3)
    ours = PADDLE(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    theirs = paddle_eval(pixels, 256, 224)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_the_random_crop_resizes_as_cv2_does(mode: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (230, 310, 3), np.uint8)
    pixels = cv2.GaussianBlur(pixels, (0, 0), 2)
    augment = AugmentConfig(crop_size=96, crop_distribution="paddle", flip=0)
    config = DataConfig(antialias=False, interpolation=mode, augment=augment)
    transform, image = train_transform(config), torch.from_numpy(pixels).permute(2, 0, 1)
    for seed in range(5):
        torch.manual_seed(seed)
        top, left, height, width = PaddleCrop(config.augment).draw(230, 310)
        torch.manual_seed(seed)
        ours = transform(ImageFile(image)).permute(1, 2, 0).numpy()
        cut = pixels[top : top + height, left : left + width]
        theirs = cv2.resize(cut, (96, 96), interpolation=CV2[mode])
        difference = np.abs(ours.astype(int) - theirs)
        if mode == "nearest":  # a coordinate on the edge of two pixels may go either way
            assert (difference <= 2).mean() > 0.9
        else:
            assert difference.max() <= 3


def their_draws(height: int, width: int, n: int) -> np.ndarray:
    """RandCropImage's top, left, height, width, [n, 4], by numpy's generator."""
    rng, rows = np.random.default_rng(7), []
    for _ in range(n):
        aspect = math.sqrt(rng.uniform(3 / 4, 4 / 3))
        w, h = aspect, 1 / aspect
        bound = min(width / height / w**2, height / width / h**2)
        low, high = min(0.08, bound), min(1.0, bound)
        size = math.sqrt(width * height * rng.uniform(low, high))
        w, h = int(size * w), int(size * h)
        left, top = (
            rng.integers(0, width - w, endpoint=True),
            rng.integers(0, height - h, endpoint=True),
        )
        rows.append((top, left, h, w))
    return np.array(rows)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (200, 640), (400, 400)])
def test_the_random_crop_has_their_distribution(height: int, width: int) -> None:
    """Kolmogorov-Smirnov on area, ratio and place."""
    torch.manual_seed(0)
    crop = PaddleCrop(DataConfig(augment=AugmentConfig(crop_distribution="paddle")).augment)
    ours = np.array([crop.draw(height, width) for _ in range(4000)])
    theirs = their_draws(height, width, 4000)
    for measure in (_area, _ratio, _place):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_torchvisions_random_crop_has_another() -> None:
    """So that the test above can fail. (On 3:4 photos its rejected tries hide the difference.)"""
    torch.manual_seed(0)
    crop, image = v2.RandomResizedCrop(224), torch.empty(3, 400, 400)
    drawn = [crop.make_params([image]) for _ in range(4000)]
    ours = np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn])
    assert stats.ks_2samp(_ratio(ours), _ratio(their_draws(400, 400, 4000))).pvalue < 1e-6


def _area(rows: np.ndarray) -> np.ndarray:
    return rows[:, 2] * rows[:, 3]


def _ratio(rows: np.ndarray) -> np.ndarray:
    return rows[:, 3] / rows[:, 2]


def _place(rows: np.ndarray) -> np.ndarray:
    return rows[:, 1]
