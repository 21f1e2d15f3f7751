"""`predict` and `evaluate` see the same of grey images of 16 bits, and all of their bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from networks import TINY, tiny
from PIL import Image

from densekit.data.intensity import Rule
from densekit.models.artifact import ArtifactConfig, Described, Preprocessing, write_artifact
from runs import densekit

IMAGES = 24
KEPT: list[tuple[Rule, tuple[float, float] | None]] = [
    ("full", None), ("percentile", None), ("window", (30_000.0, 40_000.0)),
]  # fmt: skip


def grey_network(folder: Path, rule: Rule, window: tuple[float, float] | None) -> None:
    config = ArtifactConfig(
        model=Described(name="tiny", architecture=TINY.model_copy(update={"in_channels": 1})),
        preprocessing=Preprocessing(
            channels=1, resize=40, crop=32, intensity=rule, window=window, mean=(0.5,), std=(0.25,)
        ),
        classes=("a", "b", "c", "d", "e"),
    )
    write_artifact(folder, config, tiny(in_channels=1).state_dict())


def grey_images(folder: Path, low_bits: bool = True) -> None:
    """Noise of 16 bits below folders by turns; without `low_bits` their lower 8 are nought."""
    draw = np.random.default_rng(0)
    for i in range(IMAGES):
        pixels = draw.integers(0, 65536, (44, 52)).astype(np.uint16)
        (folder / "abcde"[i % 5]).mkdir(parents=True, exist_ok=True)
        pixels = pixels if low_bits else pixels & 0xFF00
        Image.fromarray(pixels).save(folder / "abcde"[i % 5] / f"{i}.{('png', 'tif')[i % 2]}")


@pytest.mark.parametrize(("rule", "window"), KEPT)
def test_predict_equals_evaluate(
    tmp_path: Path, rule: Rule, window: tuple[float, float] | None
) -> None:
    grey_network(tmp_path / "net", rule, window)
    grey_images(tmp_path / "images")
    grey_images(tmp_path / "cut", low_bits=False)
    told = ("--workers", "0", "--batch-size", "8", "--bootstrap", "0", "--report", "report")
    result = densekit("evaluate", "net", "--data", "images", *told, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    counted = json.loads(result.stdout)
    saved = np.load(tmp_path / "report/predictions.npz")
    files = [f"images/{name}" for name in saved["files"]]
    shown = ("--json", "--topk", "5", "--batch-size", "8")
    rows = json.loads(densekit("predict", "net", *files, *shown, cwd=tmp_path).stdout)
    logits = saved["logits"].astype(np.float64)
    likely = np.exp(logits - logits.max(1, keepdims=True))
    likely /= likely.sum(1, keepdims=True)
    for row, own, label in zip(rows, likely, saved["labels"], strict=True):
        assert row["error"] is None
        probs = {answer["label"]: answer["prob"] for answer in row["topk"]}
        np.testing.assert_allclose([probs[name] for name in "abcde"], own, rtol=1e-12)
        assert row["file"].split("/")[1] == "abcde"[label]
    hits = [row["topk"][0]["label"] == row["file"].split("/")[1] for row in rows]
    assert counted["top1"] == sum(hits) / IMAGES
    cut = [name.replace("images", "cut", 1) for name in files]
    others = json.loads(densekit("predict", "net", *cut, *shown, cwd=tmp_path).stdout)
    assert all(a["topk"] != b["topk"] for a, b in zip(rows, others, strict=True)), "of 16 bits"
