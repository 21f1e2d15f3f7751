"""A tiny network of each task, images of noise, and what evaluation says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from networks import TINY, tiny
from PIL import Image

from densekit.data.config import Task
from densekit.infer.bootstrap import Resampling
from densekit.infer.evaluate import Judged, evaluate_source
from densekit.infer.model import open_path
from densekit.models.artifact import (
    ArtifactConfig,
    Described,
    Preprocessing,
    Thresholds,
    write_artifact,
)
from densekit.precision import resolve
from densekit.report.answers import Judgement

NAMES = ("<u>line</u>", 'a "quote"', "c|d", "ü", "e" * 40)
IMAGES = 30
FP32 = resolve("cpu", "fp32")


def network(folder: Path, task: Task) -> Path:
    """An artifact for RGB images of 32 x 32; with thresholds where the task has any."""
    outputs = 1 if task == "binary" else len(NAMES)
    chosen = Thresholds(rule="f1", values=(0.5,) * (outputs - 1) + (0.4,))
    config = ArtifactConfig(
        task=task,
        model=Described(name="tiny", architecture=TINY.model_copy(update={"num_classes": outputs})),
        preprocessing=Preprocessing(resize=None, crop=32),
        classes=NAMES[:outputs],
        thresholds=None if task == "multiclass" else chosen,
    )
    write_artifact(folder, config, tiny(num_classes=outputs).state_dict())
    return folder


def images(folder: Path, task: Task) -> Path:
    """A list of images of noise, in classes by turns; of several classes some labels unknown."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    rows = []
    for i in range(IMAGES):
        pixels = draw.integers(0, 256, (40, 36, 3)) * draw.random()
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        cells = [("0", "1", "")[(i * (k + 2) // 3 + k) % 3] for k in range(5)]
        label = {"multiclass": f" {i % 5}", "binary": f" {i % 2}"}.get(task, "," + ",".join(cells))
        rows.append(f"{i}.png{label}\n")
    if task == "multilabel":
        head = ",".join('"' + name.replace('"', '""') + '"' for name in NAMES)
        (folder / "list.csv").write_text(f"Path,{head}\n" + "".join(rows))
        return folder / "list.csv"
    if task == "binary":
        (folder / "classes.txt").write_text(f"0 none\n1 {NAMES[0]}\n")
    (folder / "list.txt").write_text("".join(rows))
    return folder / "list.txt"


def answered(folder: Path, task: Task) -> Judgement:
    """All of it below `folder`."""
    opened, kept = open_path(str(network(folder / "net", task))), list[Judged]()
    found = evaluate_source(
        opened, FP32, str(images(folder / "images", task)), batch_size=8, workers=0,
        resampling=Resampling(50), keep=kept.append,
    )  # fmt: skip
    return Judgement(opened, kept[0], found)
