"""densekit.train(train=Dataset): the run that the same images in files make; it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import densekit
from densekit.config import UserError
from densekit.infer.evaluate import validation_examples
from densekit.infer.model import open_path
from densekit.models.artifact import read_artifact
from densekit.training import curves
from densekit.training.loop import Outcome
from runs import OPTIONS, digits, lines

IMAGES, HELD = 96, 48


class Digits(Dataset):
    """Real digits as arrays; the label of one may be `changed`."""

    def __init__(self, part: slice, changed: int | None = None) -> None:
        pixels, labels = digits()
        order = np.random.default_rng(0).permutation(len(labels))[part]
        self.pixels = pixels[order].reshape(-1, 28, 28).astype(np.uint8)
        self.targets = labels[order].tolist()
        if changed is not None:
            self.targets[changed] = (self.targets[changed] + 1) % 10

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.pixels[index], self.targets[index]


TRAIN, VAL = slice(IMAGES), slice(IMAGES, IMAGES + HELD)


@pytest.fixture(autouse=True)
def _draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "draw", lambda *_: None)


def run(folder: Path, train: Any = None, val: Any = None, **more: Any) -> Outcome:
    values = {**OPTIONS, "loop.output_dir": folder, "optim.schedule": "constant"}
    values |= {key.replace("__", "."): value for key, value in more.items()}
    before = torch.get_num_threads()
    try:
        options = [f"{key}={value}" for key, value in values.items()]
        return densekit.train(None, *options, train=train, val=val)
    finally:
        torch.set_num_threads(before)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_artifact(folder / "last").state_dict


def write(folder: Path) -> None:
    for name, part in (("train", TRAIN), ("val", VAL)):
        own, rows = Digits(part), []
        for i in range(len(own)):
            pixels, label = own[i]
            Image.fromarray(pixels).save(folder / f"{name}-{i}.png")
            rows.append(f"{name}-{i}.png {label}\n")
        (folder / f"{name}_list.txt").write_text("".join(rows))


@pytest.mark.slow
def test_its_report_is_of_the_val_dataset(tmp_path: Path) -> None:
    """Which no artifact knows where to find."""
    run(tmp_path / "own", Digits(TRAIN), Digits(VAL), data__workers=1, loop__report="true")
    found = json.loads((tmp_path / "own/report/report.json").read_text())
    best = json.loads((tmp_path / "own/best/config.json").read_text())["metrics"]
    assert {name: found[name] for name in ("count", "top1")} == {
        name: best[name] for name in ("count", "top1")
    }
    assert found["images"] == "val (Digits)"
    assert "val[" in (tmp_path / "own/report/index.html").read_text()


def test_it_is_the_run_of_the_same_files_and_goes_on(tmp_path: Path) -> None:
    write(tmp_path)
    run(tmp_path / "files", data__root=tmp_path)
    train, val = Digits(TRAIN), Digits(VAL)
    run(tmp_path / "own", train, val, data__workers=1)
    expected, found = weights(tmp_path / "files"), weights(tmp_path / "own")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    evaluated = [[line for line in lines(tmp_path / name) if line["kind"] == "eval"]
                 for name in ("files", "own")]  # fmt: skip
    assert evaluated[0] == evaluated[1]
    run(tmp_path / "two", train, val, loop__epochs=1)
    outcome = run(tmp_path / "two", Digits(TRAIN), Digits(VAL))  # a schedule that allows more
    assert outcome.progress.epochs == 2
    found = weights(tmp_path / "two")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with pytest.raises(UserError, match="its state was trained on other lists of images"):
        run(tmp_path / "two", Digits(TRAIN, changed=5), Digits(VAL), loop__epochs=3)


def test_its_artifact_says_where_its_images_came_from(tmp_path: Path) -> None:
    run(tmp_path / "own", Digits(TRAIN), Digits(VAL), loop__epochs=1)
    with pytest.raises(UserError, match="took its images from a program, so say which"):
        validation_examples(open_path(str(tmp_path / "own")), None)


def test_val_needs_train(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="val=Dataset goes with train=Dataset"):
        run(tmp_path / "own", None, Digits(VAL))
