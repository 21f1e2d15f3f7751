"""`densekit compare`: what it prints, draws and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runs import Runs, densekit


@pytest.fixture(scope="module")
def place(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run `a`, and `b`, the same with another recipe and its last network as its best."""
    folder = tmp_path_factory.mktemp("compare")
    shutil.copytree(runs.whole(), folder / "a")
    shutil.copytree(runs.whole(), folder / "b")
    shutil.rmtree(folder / "b/best")
    shutil.copytree(folder / "b/last", folder / "b/best")
    text = (folder / "b/recipe.yaml").read_text()
    (folder / "b/recipe.yaml").write_text(text.replace("drop_rate: 0.1", "drop_rate: 0.2"))
    return folder


def test_runs(place: Path) -> None:
    result = densekit("compare", "a", "b", "--curves", "curves.png", cwd=place)
    assert result.returncode == 0, result.stderr
    assert "b, changed from a:\n  model.drop_rate: 0.1 -> 0.2" in result.stdout
    assert "--evaluate" in result.stdout
    assert Image.open(place / "curves.png").size[0] > 1000
    again = densekit("compare", "a", "b", "--curves", "curves.png", cwd=place)
    assert again.returncode == 2
    assert "curves.png: is there already" in again.stderr


def test_on_the_same_images(place: Path) -> None:
    words = ("compare", "a", "b", "--evaluate", "--workers", "0", "--bootstrap", "50")
    result = densekit(*words, "--json", cwd=place)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    (pair,) = found["pairs"]
    stored = json.loads((place / "a/best/config.json").read_text())["metrics"]
    first, second = (run["metrics"] for run in found["runs"])
    assert first["top1"] == stored["top1"]
    assert pair["images"] == stored["count"]
    difference = pair["differences"]["top1"]
    np.testing.assert_allclose(difference["value"], second["top1"] - first["top1"], atol=1e-12)
    test = pair["mcnemar"][0]
    assert test["only_second"] - test["only_first"] == round(difference["value"] * pair["images"])
    for run in ("a", "b"):
        told = ("--workers", "0", "--bootstrap", "50", "--report", f"{run}-report")
        assert densekit("evaluate", run, *told, cwd=place).returncode == 0
    of_reports = densekit("compare", "a-report", "b-report", "--bootstrap", "50", cwd=place)
    assert "b-report minus a-report, on the same" in of_reports.stdout
    assert "(McNemar, exact)" in of_reports.stdout
    asked = densekit("compare", "a", "b-report", "--evaluate", cwd=place)
    assert asked.returncode == 2
    assert "b-report: a report, whose images were evaluated already" in asked.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a"], "give at least two runs"),
        (["a", "gone"], "gone: give the folder of a run, an artifact or a report"),
        (["a", "."], "not an artifact"),
    ],
)
def test_mistakes_are_sentences(place: Path, words: list[str], said: str) -> None:
    result = densekit("compare", *words, cwd=place)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
