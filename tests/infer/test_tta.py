"""tta.py: the mean probability of views, in evaluation and prediction alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import tiny, tiny_artifact
from PIL import Image

from densekit.config import UserError
from densekit.infer.classifier import Classifier, load
from densekit.infer.evaluate import evaluate_source
from densekit.infer.model import open_path
from densekit.infer.tta import squares_for, together, views
from densekit.models import artifact
from densekit.precision import resolve

FP32 = resolve("cpu", "fp32")


def photographs(folder: Path, n: int = 6) -> list[str]:
    """Images of 50 x 44 that are not symmetric, and list.txt with labels."""
    draw = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(n)]
    for name in names:
        Image.fromarray(draw.integers(0, 256, (44, 50, 3), np.uint8)).save(folder / name)
    lines = [f"{name} {i % 5}\n" for i, name in enumerate(names)]
    (folder / "list.txt").write_text("".join(lines))
    return [str(folder / name) for name in names]


@pytest.fixture(params=["multiclass", "multilabel"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    place = tiny_artifact(tmp_path / "net", request.param)
    config = artifact.read_artifact(place).config
    steps = config.preprocessing.model_copy(update={"resize": 40, "crop": 32})
    again = config.model_copy(update={"preprocessing": steps})
    artifact.write_artifact(tmp_path / "wide", again, tiny().state_dict())
    return tmp_path / "wide"


@pytest.mark.parametrize("tta", ["flip", "five-crop"])
def test_it_is_the_mean_probability(folder: Path, tmp_path: Path, tta: str) -> None:
    opened, files = open_path(str(folder)), photographs(tmp_path)
    plain, own = Classifier(opened, FP32), Classifier(opened, FP32, tta=tta)
    wide = squares_for(tta, opened.preprocessing)
    for file, row in zip(files, own.predict(files, topk=5), strict=True):
        square = own.read_square(file)
        assert isinstance(square, torch.Tensor)
        assert square.shape[1:] == (wide.crop, wide.crop)
        logits = [plain.logits(view).double() for view in views(square[None], tta, 32)]
        assert len(logits) == {"flip": 2, "five-crop": 5}[tta]
        probs = [x.softmax(1) if opened.task == "multiclass" else x.sigmoid() for x in logits]
        truth = torch.stack(probs).mean(0)[0]
        assert all(a["prob"] == pytest.approx(truth[a["class"]].item()) for a in row["topk"])


def test_the_centre_is_what_is_seen_without_it(folder: Path, tmp_path: Path) -> None:
    opened, (file, *_) = open_path(str(folder)), photographs(tmp_path)
    square = Classifier(opened, FP32, tta="five-crop").read_square(file)
    plain = Classifier(opened, FP32).read_square(file)
    assert isinstance(square, torch.Tensor)
    assert isinstance(plain, torch.Tensor)
    corners = [view[0] for view in views(square[None], "five-crop", 32)]
    assert torch.equal(corners[4], plain)
    assert len({view.numpy().tobytes() for view in corners}) == 5


def test_evaluation_counts_the_same(folder: Path, tmp_path: Path) -> None:
    opened, files = open_path(str(folder)), photographs(tmp_path)
    found = evaluate_source(
        opened, FP32, str(tmp_path / "list.txt"), batch_size=4, workers=0, tta="flip"
    )
    assert found["tta"] == "flip"
    json.dumps(found, allow_nan=False)
    if opened.task == "multiclass":
        rows = Classifier(opened, FP32, tta="flip").predict(files, topk=1)
        hits = [row["topk"][0]["class"] == i % 5 for i, row in enumerate(rows)]
        assert found["top1"] == sum(hits) / 6


def test_logits_of_certain_answers_stay_finite() -> None:
    far = torch.tensor([[800.0, -800.0]])
    for task in ("multiclass", "multilabel"):
        assert together([far, far], task).isfinite().all()
    assert together([far, far], "multilabel").tolist() == [[800.0, -800.0]]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    opened = open_path(str(tiny_artifact(tmp_path / "net")))
    whole = opened.preprocessing.model_copy(update={"resize": None})
    with pytest.raises(UserError, match="--tta five-crop: the network sees the whole image"):
        squares_for("five-crop", whole)
    with pytest.raises(UserError, match='did you mean "flip"'):
        squares_for("flipped", whole)


def test_a_multilabel_row_says_what_is_positive(tmp_path: Path) -> None:
    place = tiny_artifact(tmp_path / "net", "multilabel")
    (file, *_) = photographs(tmp_path)
    plain = load(str(place), "cpu").predict([file])[0]["topk"]
    assert len(plain) == 5
    assert all("positive" not in answer for answer in plain)
    config = artifact.read_artifact(place).config
    middle = sorted(answer["prob"] for answer in plain)[2]
    chosen = artifact.Thresholds(rule="f1", values=(middle, middle, middle, middle, None))
    config = config.model_copy(update={"thresholds": chosen})
    artifact.write_artifact(tmp_path / "own", config, tiny().state_dict())
    for answer in load(str(tmp_path / "own"), "cpu").predict([file])[0]["topk"]:
        if answer["class"] == 4:
            assert "positive" not in answer
        else:
            assert answer["positive"] == (answer["prob"] >= middle)
