"""`densekit explain`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from networks import tiny_artifact
from PIL import Image

from runs import densekit


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an artifact `best` and images `photos`."""
    folder = tmp_path_factory.mktemp("place")
    tiny_artifact(folder / "best")
    (folder / "photos").mkdir()
    draw = np.random.default_rng(0)
    for i in range(3):
        pixels = draw.integers(0, 255, (32, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"photos/{i}.png")
    return folder


def test_images(place: Path) -> None:
    words = ("explain", "best", "photos", "none.jpg", "-o", "out", "--topk", "2")
    result = densekit(*words, cwd=place)
    assert result.returncode == 1, result.stderr
    assert result.stdout.splitlines() == [
        "none.jpg  error: there is no such file", "out/index.html: 3 of 4 images"
    ]  # fmt: skip
    result = densekit("explain", "best", "photos", "-o", "out", "--json", "--class", "b", cwd=place)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said == json.loads((place / "out/explain.json").read_text())
    assert [[m["label"] for m in row["maps"]] for row in said["rows"]] == [["b"]] * 3
    assert len(list((place / "out/overlays").iterdir())) == 3


def test_feature_reuse(place: Path) -> None:
    result = densekit("explain", "best", "--feature-reuse", "-o", "reuse", cwd=place)
    assert (result.returncode, result.stdout) == (0, "reuse/feature-reuse.png\n"), result.stderr
    words = ("explain", "best", "--feature-reuse", "-o", "reuse", "--json")
    said = json.loads(densekit(*words, cwd=place).stdout)
    assert [block["reader"] for block in said["blocks"]] == [
        "transition1", "transition2", "classifier"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["best", "photos"], "say where to write: -o DIR"),
        (["best", "-o", "x"], "name the images to explain"),
        (["best", "photos", "-o", "x", "--method", "gradcam"], 'did you mean "gradcam++"?'),
        (["best", "photos", "-o", "x", "--topk", "1", "--class", "a"], "choose one"),
        (["best", "photos", "-o", "x", "--class", "z"], "--class z: this network has no such"),
        (["best", "photos", "-o", "x", "--feature-reuse"], "FILES: --feature-reuse uses"),
        (["best", "-o", "x", "--feature-reuse", "--topk", "2"], "--topk: --feature-reuse uses"),
        (["best", "-o", "x", "--feature-reuse", "--device", "cpu"], "--device: --feature-reuse"),
        (["best", "photos", "-o", "photos"], "photos: holds 0.png, which is not of an earlier"),
        (["best", "photos", "-o", "best/config.json"], "best/config.json: cannot be made"),
    ],
)
def test_mistakes(place: Path, words: list[str], sentence: str) -> None:
    result = densekit("explain", *words, cwd=place)
    assert result.returncode == 2
    assert sentence in " ".join(result.stderr.split())
    assert not (place / "x").exists()
