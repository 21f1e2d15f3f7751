"""gate.py: what differs, by hand; and what is let through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image

from densekit.data.listing import Examples
from densekit.data.transforms import Preprocessing
from densekit.export import gate
from densekit.export.gate import Bounds, Counted, Difference
from densekit.export.images import RealImages
from densekit.infer.model import Opened
from densekit.models.densenet import DenseNet, DenseNetConfig

CONFIG = DenseNetConfig(
    growth_rate=4, block_config=(1, 1), num_init_features=8, stem="cifar", in_channels=1,
    num_classes=3, image_size=16,
)  # fmt: skip
SEEN = Preprocessing(channels=1, resize=None, crop=16, mean=(0.5,), std=(0.5,))
OPENED = Opened("tiny", DenseNet(CONFIG).eval(), SEEN, ["a", "b", "c"])


def counted(logits: Sequence[Sequence[float]], **summary: Any) -> Counted:
    return Counted(torch.tensor(logits), summary)


def difference(**changed: Any) -> Difference:
    same = Difference(0.0, 0.0, 5.0, 0.0, 1.0, ())
    return replace(same, **changed)


# How far they are apart ---------------------------------------------------------------------


def test_the_difference_by_hand() -> None:
    ours = counted([[3.0, 0, 0], [0, 4, 0], [0, 0, 0]])
    theirs = counted([[3.0, 0, 0], [0, 4, 8], [0, 1, 0]])
    found = gate.compare(ours, theirs, OPENED)
    assert (found.max, found.mean, found.largest_logit) == (8, 1, 4)
    assert found.relative_norm == pytest.approx(np.sqrt(65) / 5)
    assert found.agreement == pytest.approx(1 / 3)
    assert found.worst == (1, 2, 0)


def test_an_image_with_nan_is_the_worst_and_lets_nothing_through() -> None:
    ours = counted([[1.0, 2, 3]] * 3, top1=1.0)
    theirs = counted([[1.0, 2, 9], [1, float("nan"), 3], [1, 2, 3]], top1=1.0)
    found = gate.compare(ours, theirs, OPENED)
    assert found.worst[0] == 1
    assert gate.float_faults(found, Bounds(max_difference=1e9))
    assert gate.int8_faults(ours, theirs, found, Bounds(max_drop=100))


def test_of_several_classes_an_answer_is_what_the_thresholds_say() -> None:
    """A class that is rare is taken for there from 0.1 on: logits of -3 and -1.5 differ, though
    both are below nought; where nobody chose a threshold it is a half."""
    opened = replace(OPENED, task="multilabel", thresholds=[0.1, None, 0.9])
    ours = counted([[-3.0, -1, 1], [-1.5, 1, 3]])
    theirs = counted([[-1.5, -2, 2], [-3, -1, 4]])
    assert gate.compare(ours, theirs, opened).agreement == pytest.approx(3 / 6)
    plain = replace(opened, thresholds=None)
    assert gate.compare(ours, theirs, plain).agreement == pytest.approx(5 / 6)


# What is let through ------------------------------------------------------------------------


def test_a_float_export_is_bound_by_the_largest_logit() -> None:
    bounds = Bounds(max_difference=1e-3)
    assert not gate.float_faults(difference(max=0.005), bounds)
    (fault,) = gate.float_faults(difference(max=0.0051), bounds)
    assert fault == (
        "its logits differ from torch's by up to 0.0051, more than 0.005 (--max-difference 0.001 "
        "of the largest logit, 5)"
    )
    small = difference(largest_logit=0.1)
    assert not gate.float_faults(replace(small, max=0.001), bounds), "1 where the largest is less"
    assert gate.float_faults(replace(small, max=0.0011), bounds)


@pytest.mark.parametrize(("name", "said"), [("top1", "top-1"), ("auroc", "AUROC")])
def test_int8_may_lose_so_many_points(name: str, said: str) -> None:
    before, after = counted([[1.0]], **{name: 0.75}), counted([[1.0]], **{name: 0.7375})
    assert gate.drop(before, after) == pytest.approx(1.25)
    assert not gate.int8_faults(before, after, difference(), Bounds(max_drop=1.26))
    (fault,) = gate.int8_faults(before, after, difference(), Bounds(max_drop=1.2))
    assert fault == (f"it loses 1.25 points of {said} (0.7500 to 0.7375), more than --max-drop 1.2")
    assert not gate.int8_faults(after, before, difference(), Bounds(max_drop=0)), "it gains"


def test_int8_must_answer_as_torch_does() -> None:
    one = counted([[1.0]], top1=1.0)
    faults = gate.int8_faults(one, one, difference(agreement=0.94, relative_norm=0.3), Bounds())
    assert faults == [
        "94.0% of the answers are torch's, less than 95%",
        "the norm of its logits' difference is 0.30 of the logits' norm, more than 0.25",
    ]
    assert not gate.int8_faults(one, one, difference(agreement=0.95, relative_norm=0.25), Bounds())


def test_gate_json_has_the_bounds_that_applied() -> None:
    bounds = Bounds(max_difference=1e-5, max_drop=0.25)
    assert gate.bounds_of(bounds, int8=False) == {"max_difference": 1e-5}
    assert gate.bounds_of(bounds, int8=True) == {
        "max_drop": 0.25, "min_agreement": 0.95, "max_norm": 0.25,
    }  # fmt: skip


# Images -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """20 images of noise."""
    root, draw = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(draw.integers(0, 256, (16, 16), np.uint8)).save(root / f"{i}.png")
    return [str(root / f"{i}.png") for i in range(20)]


def images(files: list[str], labels: np.ndarray, opened: Opened, labelled: bool = True) -> Any:
    root = str(Path(files[0]).parent)
    return RealImages(Examples(files, labels, {}, root, root), labelled, opened)


def first_pixels(batch: torch.Tensor) -> torch.Tensor:
    """Three logits of an image: its first pixels."""
    return batch[:, 0, 0, :3].float() / 32 - 4


def test_answers_are_counted_as_densekit_evaluate_counts_them(files: list[str]) -> None:
    labels = np.arange(20) % 3
    found = gate.count(first_pixels, images(files, labels, OPENED), "x")
    assert found.logits.shape == (20, 3)
    assert found.summary["count"] == 20
    assert found.summary["top1"] == (found.logits.argmax(1).numpy() == labels).mean()
    assert found.score == "top1"
    loose = gate.count(first_pixels, images(files, labels, OPENED, labelled=False), "x")
    assert (loose.summary, loose.score) == ({}, None)
    assert torch.equal(loose.logits, found.logits)


def test_of_several_classes_the_score_is_sklearns_area(files: list[str]) -> None:
    opened = replace(OPENED, task="multilabel")
    labels = np.random.default_rng(1).integers(0, 2, (20, 3)).astype(np.int8)
    found = gate.count(first_pixels, images(files, labels, opened), "x")
    wanted = sklearn.metrics.roc_auc_score(labels, found.logits.numpy())
    assert found.summary["auroc"] == pytest.approx(wanted)
    assert found.score == "auroc"
    everywhere = gate.count(first_pixels, images(files, np.ones_like(labels), opened), "x")
    assert everywhere.score is None, "a class that is in all images has no area"
    assert gate.drop(everywhere, found) == 0


def test_latency_is_of_both_at_each_batch(files: list[str]) -> None:
    seen: dict[str, list[int]] = {"ours": [], "theirs": []}

    def network(name: str) -> Any:
        def logits(batch: torch.Tensor) -> torch.Tensor:
            seen[name].append(len(batch))
            return first_pixels(batch)

        return logits

    few = images(files[:3], np.zeros(3, np.int64), OPENED)
    rows = gate.latency(network("ours"), network("theirs"), few)
    assert [row["batch"] for row in rows] == [1, 16]
    assert all(row["torch_ms"] > 0 and row["exported_ms"] > 0 for row in rows)
    assert seen["ours"] == seen["theirs"] == [1] * 14 + [16] * 14, "three images fill a batch of 16"


def test_the_worst_images_are_named(files: list[str]) -> None:
    tree = gate.as_tree(difference(worst=(7, 2)), images(files, np.zeros(20), OPENED))
    assert tree["worst"] == ["7.png", "2.png"]
