"""Who is held out of a run's training list: on its dry run, beside it, in evaluate, and after."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from densekit.training.loop import train
from densekit.training.recipe import load_recipe
from runs import OPTIONS, Options, Runs, densekit

PATIENT = r"^(\d\d?)"  # the first digits of a file's name, as if they were a patient's number


@pytest.fixture
def digits(runs: Runs, tmp_path: Path) -> Path:
    """The shared digits by links, in one list of 120; 10 more wait in more.txt."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for file in runs.data.glob("*.png"):
        (folder / file.name).symlink_to(file)
    lines = (runs.data / "train_list.txt").read_text().splitlines(keepends=True)
    (folder / "all.txt").write_text("".join(lines[:120]))
    (folder / "more.txt").write_text("".join(lines[120:]))
    return folder


def options(digits: Path, folder: Path, more: Options | None = None) -> list[str]:
    own = {
        "data.train": digits / "all.txt", "data.group": PATIENT, "data.val_fraction": 0.25,
        "loop.output_dir": folder, "optim.schedule": "constant", "loop.device": "cpu",
        "loop.epochs": 1,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in {**OPTIONS, **own, **(more or {})}.items()]


def dashed(texts: Iterable[str]) -> list[str]:
    return [word for text in texts for word in ("-o", text)]


def sides(folder: Path) -> dict[str, tuple[str, str]]:
    with (folder / "split.csv").open(newline="") as file:
        return {row["path"]: (row["split"], row["group"]) for row in csv.DictReader(file)}


def test_the_dry_run_says_that_no_patient_is_on_both_sides(digits: Path, tmp_path: Path) -> None:
    done = densekit("train", "--dry-run", "--json", *dashed(options(digits, tmp_path / "run")))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["groups"]["both"] == 0
    assert said["groups"]["train"] > said["groups"]["val"] > 3
    text = (
        f"{said['groups']['train']} in training, {said['groups']['val']} in validation, 0 in both"
    )
    assert any(text in warning for warning in said["warnings"])
    assert not (tmp_path / "run").exists()


def test_evaluate_and_a_run_that_goes_on_hold_out_the_same(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(load_recipe(None, options(digits, folder)))
    before = sides(folder)
    held = {path for path, (side, _) in before.items() if side == "val"}
    assert len(before) == 120
    assert held

    # ten more images come: what evaluate counts stays what the run was validated on
    with (digits / "all.txt").open("a") as file:
        file.write((digits / "more.txt").read_text())
    done = densekit("evaluate", folder, "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    config = json.loads((folder / "best" / "config.json").read_text())
    assert found["count"] == len(held) == config["metrics"]["count"]
    assert found["loss"] == config["metrics"]["loss"]
    assert "10 images were added after training and are left out" in " ".join(done.stderr.split())
    assert not {"12", "25"} & set(json.dumps(config["data"]).split('"')), "no group in an artifact"

    # and a run that goes on with them validates on none that it was trained on
    more: Options = {"loop.epochs": 2, "loop.accept_data_change": "true"}
    train(load_recipe(None, options(digits, folder, more)))
    after = sides(folder)
    assert len(after) == 130
    assert {path: after[path] for path in before} == before
    groups = [{group for s, group in after.values() if s == side} for side in ("train", "val")]
    assert not groups[0] & groups[1]


def test_a_start_without_held_out_images_leaves_no_split(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(load_recipe(None, options(digits, folder)))
    assert (folder / "split.csv").exists()
    more: Options = {
        "data.train": "train_list.txt", "data.val": "val_list.txt", "data.val_fraction": 0,
        "data.group": r"(\d+)\.png",
    }  # fmt: skip
    for name in ("train_list.txt", "val_list.txt"):
        lines = (digits / "all.txt").read_text().splitlines(keepends=True)
        part = lines[:100] if name.startswith("train") else lines[100:]
        (digits / name).write_text("".join(part))
    train(load_recipe(None, options(digits, tmp_path / "two", {**more, "data.root": digits})))
    assert not (tmp_path / "two" / "split.csv").exists()
