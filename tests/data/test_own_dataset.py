"""own_dataset.py: what a Dataset may hold, and the sentence for what it may not."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from densekit.config import UserError
from densekit.data.config import DataConfig, Task
from densekit.data.decode import decode
from densekit.data.own_dataset import of_dataset, open_datasets

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 5, 3)).astype(np.uint8)
LABELS = [0, 1, 2, 0, 1, 2, 0, 1]
Items = list[tuple[Any, Any]]


class Own(Dataset):
    """As torchvision's: classes, and targets that need no image to be read."""

    classes = ("cat", "dog", "<fox>")

    def __init__(self, items: Items, targets: Any = None) -> None:
        self.items, self.read = items, 0
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.read += 1
        return self.items[index]


def items(kind: str = "array", labels: Any = None) -> Items:
    made = {
        "array": lambda pixels: pixels,
        "tensor": torch.from_numpy,
        "PIL": Image.fromarray,
    }[kind]
    return [(made(p), label) for p, label in zip(PIXELS, labels or LABELS, strict=False)]


@pytest.mark.parametrize("kind", ["array", "tensor", "PIL"])
def test_images_are_seen_as_they_are(kind: str) -> None:
    found = of_dataset(Own(items(kind)), "multiclass", "train")
    assert found.labels.tolist() == LABELS
    assert found.classes == dict(enumerate(Own.classes))
    for index in range(len(found)):
        square = decode(found.image(index), 3)
        np.testing.assert_array_equal(square.permute(1, 2, 0), PIXELS[index])
    picked = found.subset([5, 2])
    np.testing.assert_array_equal(np.asarray(picked.image(0)), PIXELS[5])
    assert picked.where(1) == "train[2]"


def test_targets_are_taken_where_there_are_any() -> None:
    dataset = Own(items() * 50, targets=torch.tensor(LABELS * 50))
    found = of_dataset(dataset, "multiclass", "train")
    assert found.labels.tolist() == LABELS * 50
    assert dataset.read < 200  # the images that are tried, twice


def test_the_digest_is_of_labels_and_pixels_and_not_of_the_kind() -> None:
    digests = {kind: of_dataset(Own(items(kind)), "multiclass", "train").digest()
               for kind in ("array", "tensor", "PIL")}  # fmt: skip
    assert len(set(digests.values())) == 1
    other = items()
    other[3] = (255 - PIXELS[3], LABELS[3])
    turned = Own(items(labels=LABELS[::-1]))
    for changed in (Own(other), turned):
        assert of_dataset(changed, "multiclass", "train").digest() not in digests.values()
    (note,) = of_dataset(Own(items()), "multiclass", "train").notes
    assert "the pixels of 8 of them, are the same" in note


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        ("binary", [0, 1, 1, 0, 0, 0, 0, 1], [[0], [1], [1], [0], [0], [0], [0], [1]]),
        ("multilabel", [[0, 1, -1]] * 8, [[0, 1, -1]] * 8),
        ("multilabel", [torch.tensor([1.0, 0.0, 1.0])] * 8, [[1, 0, 1]] * 8),
    ],
)
def test_labels_of_classes_that_are_there_or_not(task: Task, labels: Any, expected: Any) -> None:
    found = of_dataset(Own(items(labels=labels)), task, "train")
    assert found.labels.tolist() == expected
    assert found.labels.dtype == np.int8


class Random(Own):
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return (PIXELS[index] if random.random() < 0.5 else PIXELS[0]), 0


class Streamed:
    def __iter__(self) -> Any:
        return iter(items())


WRONG: list[tuple[Any, Task, str]] = [
    (Random(items()), "multiclass", r"train\[\d\]: is a different image each time"),
    (Streamed(), "multiclass", "train: expected a map-style Dataset"),
    ([], "multiclass", "train: has no images"),
    ([PIXELS[0]] * 4, "multiclass", r"train\[0\]: expected a pair .*, got ndarray"),
    ([(PIXELS[0], 1, 2)] * 4, "multiclass", r"train\[0\]: expected a pair .*, got tuple of 3"),
    ([("a.png", 1)] * 4, "multiclass", r"train\[0\]: an image is a PIL image .*; got str"),
    ([(PIXELS[0].transpose(2, 0, 1), 1)] * 4, "multiclass", r"uint8 \[3, 6, 5\]: image.permute"),
    ([(PIXELS[0], "cat")] * 4, "multiclass", "train: its labels are not numbers"),
    ([(PIXELS[0], 0.5)] * 4, "multiclass", "train: its labels are not whole numbers"),
    ([(PIXELS[0], [0, 1])] * 4, "multiclass", "which needs model.task=multilabel"),
    ([(PIXELS[0], -1)] * 4, "multiclass", r"train\[0\]: a negative label"),
    ([(PIXELS[0], 2)] * 4, "binary", "1 present, 0 absent"),
    ([(PIXELS[0], [0, 1])] * 4, "binary", "one label per image, 0 or 1"),
]


@pytest.mark.parametrize(("dataset", "task", "said"), WRONG)
def test_what_it_may_not_hold_is_a_sentence(dataset: Any, task: Task, said: str) -> None:
    with pytest.raises(UserError, match=said):
        of_dataset(dataset, task, "train")


def test_validation_is_a_dataset_or_held_out() -> None:
    train, val = Own(items()), Own(items()[:4])
    both = open_datasets(train, val, DataConfig(), "multiclass", None)
    assert [len(each) for each in both] == [8, 4]
    rest, held = open_datasets(train, None, DataConfig(val_fraction=0.3), "multiclass", None)
    assert len(held) == 3
    assert len(rest) == 5
    seen = [np.asarray(each.image(i)) for each in (rest, held) for i in range(len(each))]
    assert sorted(p.tobytes() for p in seen) == sorted(p.tobytes() for p in PIXELS)
    for config, said in (
        (DataConfig(), "give val=Dataset, or hold some out"),
        (DataConfig(train="list.txt"), r"data.train=list.txt: .* add 'data.train=null'"),
        (DataConfig(relabel=True), "data.relabel=true is for lists"),
    ):
        with pytest.raises(UserError, match=said):
            open_datasets(train, None, config, "multiclass", None)
    with pytest.raises(UserError, match="there is also val=Dataset"):
        open_datasets(train, val, DataConfig(val_fraction=0.5), "multiclass", None)
