"""images.py: which images an export is measured on and calibrated with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from densekit.config import UserError
from densekit.export.images import calibration_images, gate_images
from densekit.infer.model import Opened


def test_the_gates_are_the_validation_images_evenly_over_the_list(
    opened: Opened, trained: Path
) -> None:
    listed = (trained.parent / "data" / "val_list.txt").read_text().splitlines()
    whole, _ = gate_images(opened, None, 1000)
    assert whole.labelled
    assert [f"{whole.examples.relative(i)} {whole.examples.labels[i]}" for i in range(250)] == (
        listed
    )
    few, _ = gate_images(opened, None, 5)
    assert [f"{few.examples.relative(i)} {few.examples.labels[i]}" for i in range(5)] == [
        listed[i] for i in (0, 62, 124, 187, 249)
    ]
    numbers, batches = zip(*few.batches("x", size=2), strict=True)
    assert numbers == (0, 1, 2)
    assert [tuple(batch.images.shape) for batch in batches] == [(n, 1, 28, 28) for n in (2, 2, 1)]


def test_calibration_draws_training_images_alike_each_time(opened: Opened, trained: Path) -> None:
    listed = (trained.parent / "data" / "train_list.txt").read_text().splitlines()
    one, other = (calibration_images(opened, None, 30) for _ in range(2))
    names = [one.examples.relative(i) for i in range(len(one))]
    assert names == [other.examples.relative(i) for i in range(len(other))]
    assert len(set(names)) == 30
    assert set(names) <= {line.split()[0] for line in listed}
    places = [[line.split()[0] for line in listed].index(name) for name in names]
    assert places == sorted(places)
    assert max(places) > 1500, "from all over the list"


def test_images_that_are_named(opened: Opened, trained: Path, tmp_path: Path) -> None:
    source = sorted((trained.parent / "data").glob("*.png"))[:6]
    for number, file in enumerate(source):
        (tmp_path / "loose").mkdir(exist_ok=True)
        (tmp_path / "loose" / f"{number}.png").write_bytes(file.read_bytes())
        folder = tmp_path / "sorted" / f"digit {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(file.read_bytes())
    loose, _ = gate_images(opened, str(tmp_path / "loose"), 10)
    assert (len(loose), loose.labelled) == (6, False)
    single, _ = gate_images(opened, str(source[0]), 10)
    assert (len(single), single.labelled) == (1, False)
    classes, _ = gate_images(opened, str(tmp_path / "sorted"), 10)
    assert classes.labelled
    np.testing.assert_array_equal(np.bincount(classes.examples.labels), [2, 2, 2])
    for spec in ("loose", "sorted"):
        assert len(calibration_images(opened, str(tmp_path / spec), 4)) == 4
    one = replace(opened, task="binary", classes=["digit 1"])
    assert len(calibration_images(one, str(tmp_path / "loose"), 10)) == 6


def test_what_is_not_there_is_said_with_the_option(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: a folder without images"):
        gate_images(opened, str(tmp_path / "empty"), 10)
    unknown = replace(opened, data={})
    with pytest.raises(UserError, match="--images LIST"):
        gate_images(unknown, None, 10)
    with pytest.raises(UserError, match="--calibration LIST"):
        calibration_images(unknown, None, 10)
    moved = replace(opened, data={**opened.data, "train": "gone.txt", "val": "lost.txt"})
    with pytest.raises(UserError, match=r"lost\.txt.*--images LIST"):
        gate_images(moved, None, 10)
    with pytest.raises(UserError, match=r"gone\.txt.*--calibration LIST"):
        calibration_images(moved, None, 10)
