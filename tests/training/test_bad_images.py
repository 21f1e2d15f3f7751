"""data.on_bad_image: a damaged training image stops a run, or is left out; either goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from densekit.config import UserError
from densekit.training import curves
from densekit.training.loop import train
from densekit.training.recipe import Recipe, load_recipe
from runs import OPTIONS, Runs, assert_same_run, lines, newest_state


@pytest.fixture
def damaged(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The digits, of which a training image is cut short."""
    monkeypatch.setattr(curves, "draw", lambda *_: None)
    data = Path(shutil.copytree(runs.data, tmp_path / "data"))
    name = (data / "train_list.txt").read_text().split("\n")[40].split()[0]
    (data / name).write_bytes((data / name).read_bytes()[:100])
    return data


def recipe(data: Path, folder: Path, **options: Any) -> Recipe:
    own = {"data.root": data, "loop.output_dir": folder, "data.check_files": 0}
    asked = {f"data.{name}": value for name, value in options.items()}
    return load_recipe(None, [f"{k}={v}" for k, v in {**OPTIONS, **own, **asked}.items()])


def test_a_run_that_stopped_goes_on_without_the_image(damaged: Path, tmp_path: Path) -> None:
    """To the bit as if it had left it out from the beginning."""
    skip = {"on_bad_image": "skip"}
    whole = train(recipe(damaged, tmp_path / "whole", **skip))
    stopped = recipe(damaged, tmp_path / "stopped")
    with pytest.raises(UserError, match=r"train_list\.txt:41: .* -o data\.on_bad_image=skip"):
        train(stopped)
    train(recipe(damaged, tmp_path / "stopped", **skip))
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")

    listed = (tmp_path / "stopped/bad-images.txt").read_text()
    assert listed == (tmp_path / "whole/bad-images.txt").read_text()
    assert listed.count("\n") == 1
    assert "train_list.txt:41" in listed
    events = [line for line in lines(whole.folder) if line.get("event") == "images left out"]
    assert [event["files"] for event in events] == [[listed.rstrip("\n")]]
    assert list(newest_state(whole.folder)["progress"]["bad_images"]) == [40]


def test_too_many_stop_the_run_and_are_listed(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 images cannot be read, .*data\.max_bad_images=0"):
        train(recipe(damaged, tmp_path / "run", on_bad_image="skip", max_bad_images=0))
    assert "train_list.txt:41" in (tmp_path / "run/bad-images.txt").read_text()
