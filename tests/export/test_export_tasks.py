"""Exports of networks of several classes, of one class, and of images of 16 bits.

The heads are sums of a digit network's own, so nothing has to be trained: of several classes
whether a digit is odd, below four, or three; of one class whether it is a three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densekit.config import UserError
from densekit.export.steps import ExportOptions, export_network
from densekit.infer.classifier import load
from densekit.infer.evaluate import evaluate_source
from densekit.infer.model import Opened, open_path
from densekit.infer.rows import Row
from densekit.models import artifact
from densekit.models.artifact import Thresholds
from densekit.precision import Precision

FP32 = Precision(torch.device("cpu"))
GROUPS = {"odd": (1, 3, 5, 7, 9), "small": (0, 1, 2, 3), "three": (3,)}
KINDS = ("multilabel", "binary", "16 bits")
SCORES = ("auroc", "average_precision", "f1", "top1", "loss")


@dataclass(frozen=True)
class Case:
    """An artifact, and files that it can answer."""

    folder: Path
    files: list[str]

    @property
    def opened(self) -> Opened:
        return open_path(str(self.folder))


@pytest.fixture(scope="session")
def case(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def make(kind: str) -> Case:
        if kind not in made:
            place = tmp_path_factory.mktemp(kind.replace(" ", "-"))
            made[kind] = (grey16 if kind == "16 bits" else grouped)(trained, place, kind)
        return made[kind]

    return make


def examples(trained: Path) -> tuple[list[str], list[int]]:
    """The validation images and some of training, without their folder; and their digits."""
    data = trained.parent / "data"
    lines = [
        line.split()
        for name in ("val_list.txt", "train_list.txt")
        for line in (data / name).read_text().splitlines()[:250]
    ]
    return [file for file, _ in lines], [int(label) for _, label in lines]


def grouped(trained: Path, place: Path, task: str) -> Case:
    stored, (files, digits) = artifact.read_artifact(trained), examples(trained)
    names = list(GROUPS) if task == "multilabel" else ["three"]
    tensors = dict(stored.state_dict)
    sums = torch.zeros(len(names), 10)
    for row, name in zip(sums, names, strict=True):
        own = torch.tensor([digit in GROUPS[name] for digit in range(10)])
        row[own], row[~own] = 1 / own.sum(), -1 / (~own).sum()
    for part in ("weight", "bias"):
        tensors[f"classifier.{part}"] = sums @ stored.state_dict[f"classifier.{part}"]
    if task == "multilabel":
        rows = [[str(int(digit in GROUPS[name])) for name in names] for digit in digits]
        rows[0][1] = ""  # unknown
        head = [["Path", *names]]
        pairs = [[file, *row] for file, row in zip(files, rows, strict=True)]
        lists = [[*head, *pairs[:250]], [*head, *pairs[250:]]]
        separator, suffix = ",", ".csv"
    else:
        pairs = [[file, str(int(digit == 3))] for file, digit in zip(files, digits, strict=True)]
        lists, separator, suffix = [pairs[:250], pairs[250:]], " ", ".txt"
    data = trained.parent / "data"
    if task == "binary":
        (place / "classes.txt").write_text("0 other\n1 three\n")
    for name, lines in zip(("val", "train"), lists, strict=True):
        text = "".join(separator.join(line) + "\n" for line in lines)
        (place / f"{task}-{name}{suffix}").write_text(text)
    config = stored.config.model_copy(
        update={
            "task": task,
            "classes": tuple(names),
            "thresholds": Thresholds(rule="youden", values=(0.3, None, 0.6)[: len(names)]),
            "data": {
                **stored.config.data,
                "root": str(data),
                "train": str(place / f"{task}-train{suffix}"),
                "val": str(place / f"{task}-val{suffix}"),
            },
            "model": with_outputs(stored.config.model, len(names)),
        }
    )
    artifact.write_artifact(place / "best", config, tensors)
    return Case(place / "best", [str(data / file) for file in files[:12]])


def with_outputs(described: Any, outputs: int) -> Any:
    architecture = described.architecture.model_copy(update={"num_classes": outputs})
    return described.model_copy(update={"architecture": architecture})


def grey16(trained: Path, place: Path, kind: str) -> Case:
    """The same digits in files of 16 bits, of which the last eight count, too."""
    stored, (files, digits) = artifact.read_artifact(trained), examples(trained)
    noise = np.random.default_rng(0)
    for file in files:
        pixels = np.asarray(Image.open(trained.parent / "data" / file)).astype(np.uint16) * 256
        Image.fromarray(pixels + noise.integers(0, 256, pixels.shape, np.uint16)).save(place / file)
    lines = [f"{file} {digit}\n" for file, digit in zip(files, digits, strict=True)]
    (place / "val_list.txt").write_text("".join(lines[:250]))
    (place / "train_list.txt").write_text("".join(lines[250:]))
    seen = stored.config.preprocessing.model_copy(update={"intensity": "full"})
    lists = {name: str(place / f"{name}_list.txt") for name in ("train", "val")}
    data = {**stored.config.data, **lists, "intensity": "full"}
    config = stored.config.model_copy(update={"preprocessing": seen, "data": data})
    artifact.write_artifact(place / "best", config, stored.state_dict)
    return Case(place / "best", [str(place / file) for file in files[:12]])


def assert_same(found: list[Row], wanted: list[Row]) -> None:
    assert [row["file"] for row in found] == [row["file"] for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["error"] is None
        assert len(one["topk"]) == len(other["topk"])
        for a, b in zip(one["topk"], other["topk"], strict=True):
            assert a == {**b, "prob": pytest.approx(b["prob"], abs=1e-5)}


# What passes --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("to", "inside"), [("onnx", True), ("openvino", False)])
def test_evaluate_and_predict_give_the_artifacts_numbers(
    case: Callable[[str], Case], tmp_path: Path, kind: str, to: str, inside: bool
) -> None:
    made = case(kind)
    opened, out = made.opened, tmp_path / "out"
    gate = export_network(opened, out, ExportOptions(to, with_preprocessing=inside))
    assert gate["passed"]
    assert gate["difference"]["agreement"] == 1
    other = open_path(str(out))
    assert (other.task, other.classes) == (opened.task, opened.classes)
    assert other.thresholds == opened.thresholds
    wanted = evaluate_source(opened, FP32, workers=0)
    found = evaluate_source(other, FP32, workers=0)
    assert wanted.get("auroc") is None or wanted["auroc"] > 0.8
    counted = [name for name in SCORES if name in wanted]
    assert len(counted) > 1
    assert {name: found[name] for name in counted} == pytest.approx(
        {name: wanted[name] for name in counted}, abs=1e-5
    )
    if opened.task != "multiclass":
        assert gate["torch"]["auroc"] == wanted["auroc"]
        assert gate["exported"]["auroc"] == found["auroc"]
    rows = load(made.folder).predict(made.files)
    assert_same(load(out).predict(made.files), rows)
    thresholds = opened.thresholds or [None]
    said = sum("positive" in answer for answer in rows[0]["topk"])
    assert said == sum(value is not None for value in thresholds)


# What does not ------------------------------------------------------------------------------


def test_images_that_measure_nothing_are_refused(
    case: Callable[[str], Case], tmp_path: Path
) -> None:
    made = case("binary")
    listed = tmp_path / "none.txt"
    (tmp_path / "classes.txt").write_text("0 other\n1 three\n")
    listed.write_text("".join(f"{file} 0\n" for file in made.files))
    asked = ExportOptions("openvino-int8", images=str(listed))
    with pytest.raises(UserError, match="is judged by AUROC, and each class is in all or none"):
        export_network(made.opened, tmp_path / "out", asked)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "one.png").write_bytes(Path(made.files[0]).read_bytes())
    with pytest.raises(UserError, match="int8 is judged by its accuracy, and these have no labels"):
        export_network(made.opened, tmp_path / "out", replace(asked, images=str(photos)))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "classes.txt", "none.txt", "photos",
    ]  # fmt: skip


def test_a_float_export_needs_no_labels(case: Callable[[str], Case], tmp_path: Path) -> None:
    made = case("binary")
    asked = ExportOptions("torch-export", images=made.files[0])
    gate = export_network(made.opened, tmp_path / "out", asked)
    assert (gate["images"]["count"], gate["torch"], gate["passed"]) == (1, {}, True)


def test_images_of_8_bits_are_none_for_a_network_of_16(
    case: Callable[[str], Case], trained: Path, tmp_path: Path
) -> None:
    """As predict does: under `full` 8 bits have a full range too, and are taken."""
    made = case("16 bits")
    eight = str(trained.parent / "data" / Path(made.files[0]).name)
    export_network(made.opened, tmp_path / "out", ExportOptions("torch-export", limit=10))
    assert_same(load(tmp_path / "out").predict([eight]), load(made.folder).predict([eight]))
