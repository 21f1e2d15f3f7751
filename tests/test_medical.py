"""docs/medical.md's commands, as they stand there, for one epoch; a served answer is predict's."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from PIL import Image

from densekit.infer.classifier import load
from runs import densekit

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import medical_data  # noqa: E402 (docs/medical_data.py)

PAGE = (ROOT / "docs" / "medical.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
SHORT = ("-o", "loop.epochs=1", "-o", "data.workers=0")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("medical")
    assert COMMANDS[0] == "python docs/medical_data.py chest"
    medical_data.main(folder / "chest")
    return folder


def test_the_data_are_what_the_page_says(place: Path) -> None:
    images = list((place / "chest/images").glob("*.png"))
    assert len(images) == medical_data.IMAGES
    values = np.asarray(Image.open(images[0]))
    assert values.dtype == np.uint16
    assert max(np.asarray(Image.open(image)).max() for image in images[:50]) >> 12 == 0
    patients = [
        {row.split(",")[1] for row in (place / f"chest/{part}.csv").read_text().splitlines()[1:]}
        for part in ("train", "test")
    ]
    assert sum(map(len, patients)) == len(set().union(*patients)) == medical_data.IMAGES / 4


@pytest.mark.slow
def test_the_commands(place: Path) -> None:
    for command in COMMANDS[1:]:
        _, *words = shlex.split(command)
        short = SHORT if words[0] == "train" else ()
        result = densekit(*words, *short, cwd=place)
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
        if "--dry-run" in words:
            assert re.search(r"data.group=Patient: \d+ in training, \d+ in validation, 0 in both",
                             result.stdout + result.stderr)  # fmt: skip
    rows = (place / "runs/chest/split.csv").read_text().splitlines()[1:]
    sides = {side: {row.split(",")[2] for row in rows if row.split(",")[1] == side}
             for side in ("train", "val")}  # fmt: skip
    assert not sides["train"] & sides["val"]
    assert len(sides["train"]) + len(sides["val"]) == medical_data.IMAGES / 4 * 5 / 6
    assert 0.15 < len(sides["val"]) / len(sides["train"] | sides["val"]) < 0.25
    saved = np.load(place / "chest-report/predictions.npz")
    report = json.loads((place / "chest-report/report.json").read_text())
    assert (report["group"], report["groups"]) == ("Patient", medical_data.IMAGES / 4 / 6)
    for k, row in enumerate(report["per_class"]):
        known = saved["labels"][:, k] >= 0
        theirs = sklearn.metrics.roc_auc_score(saved["labels"][known, k], saved["logits"][known, k])
        assert row["auroc"] == pytest.approx(theirs)
    assert [row["label"] for row in report["per_class"]] == ["Loop", "Bar"]
    file = "chest/images/p005-0.png"
    (row,) = load(place / "runs/chest", "cpu").predict([place / file])
    result = densekit("predict", "runs/chest", file, "--json", cwd=place)
    (printed,) = json.loads(result.stdout)
    assert printed["topk"] == row["topk"]
    assert {answer["label"] for answer in row["topk"]} == {"Loop", "Bar"}
    assert all("positive" in answer for answer in row["topk"])
