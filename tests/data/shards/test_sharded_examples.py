"""Shards as examples: every image once, on any ranks and workers; what is damaged is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densekit.config import UserError
from densekit.data.checks import check_examples
from densekit.data.config import DataConfig
from densekit.data.dataset import Batch
from densekit.data.decode import UnreadableImage
from densekit.data.listing import Examples
from densekit.data.loader import TrainStream
from densekit.data.shards.cache import ShardCache
from densekit.data.shards.examples import ShardedExamples
from densekit.data.splits import anchored, open_examples, open_split
from densekit.data.survey import survey


@pytest.fixture(scope="module")
def places(write_folder, pack_into, tmp_path_factory) -> tuple[Path, Path]:
    """A folder of 30 images, and its shards."""
    root = tmp_path_factory.mktemp("data")
    write_folder(root / "images", {"a": 17, "b": 13}, size=(40, 30))
    pack_into(root / "images", root / "shards")
    return root / "images", root / "shards"


def batches(examples: Examples, rank: int, world: int, workers: int, start: int = 0) -> list[Batch]:
    config = DataConfig(image_size=16, batch_size=6, workers=workers)
    stream = TrainStream(examples, config, seed=3, epochs=2, rank=rank, world=world)
    return [batch for step in stream.from_step(start) for batch in step.batches]


def test_three_ranks_of_two_workers_see_every_image_once(places: tuple[Path, Path]) -> None:
    files = open_examples(str(places[0]))
    shards = open_examples(str(places[1] / "train-{000000..000007}.tar"))
    truth = batches(files, 0, 1, 0)
    ranks = [batches(shards, rank, 3, 2) for rank in range(3)]
    steps = [*zip(*ranks, strict=True)]
    seen = [torch.cat([batch.indices for batch in step]) for step in steps]
    for epoch in (seen[:5], seen[5:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(30))
    for step, whole in zip(steps, truth, strict=True):
        assert torch.equal(torch.cat([batch.images for batch in step]), whole.images)
        assert torch.equal(torch.cat([batch.labels for batch in step]), whole.labels)
    later = batches(shards, 1, 2, 2, start=3)
    for batch, whole in zip(later, truth[3:], strict=True):
        assert torch.equal(batch.images, whole.images[3:]), "mid-epoch, on other ranks"


def test_shards_by_name(places: tuple[Path, Path]) -> None:
    folder = places[1]
    one = open_examples(str(folder / "train-000003.tar"))
    assert len(one) == 4
    assert {one.where(i) for i in range(4)} == {str(folder / "train-000003.tar")}
    two = DataConfig(root=str(folder), train="train-{000000..000001}.tar", val="train-000007.tar")
    assert [len(part) for part in open_split(two)] == [8, 2]
    assert [len(part) for part in open_split(anchored(two))] == [8, 2]
    assert Path(anchored(two).train or "").parent == folder


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("train-{0..99}.tar", "there is no file or folder"),
        ("train-{000000..000008}.tar", r"lists 8 shards but not train-000008\.tar"),
        ("train-{3..1}.tar", "are 0 shards"),
        ("train-{0..9999999}.tar", "are 10000000 shards"),
        ("train-{a,b}.tar", "expected a range of numbers"),
        ("{0..1}/train-{0..1}.tar", "braces belong in the file name"),
        ("val-index.npz", "there is no file or folder"),
    ],
)
def test_mistakes(places: tuple[Path, Path], spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_examples(str(places[1] / spec))


def test_what_is_damaged_is_named(places: tuple[Path, Path], tmp_path: Path) -> None:
    for file in places[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shards = open_examples(str(tmp_path / "train-index.npz"))
    assert isinstance(shards, ShardedExamples)
    index = 5
    shard, name = Path(shards.where(index)), shards.relative(index)
    content = bytearray(shard.read_bytes())
    content[int(shards.members["offset"][index]) + 60] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UnreadableImage, match="its CRC-32 is not the one in the index"):
        shards.image(index)
    with pytest.raises(UserError, match=f"{shard}: {name}: is corrupt"):
        batches(shards, 0, 1, 2)
    shard.write_bytes(content[: int(shards.members["offset"][index]) + 60])
    with pytest.raises(UserError, match=f"{shard}: {name}: is truncated with its shard"):
        batches(shards, 0, 1, 0)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard}: there is no such shard"):
        batches(shards, 0, 1, 0)


def test_shards_without_an_index(places: tuple[Path, Path], tmp_path: Path) -> None:
    for file in places[1].glob("*.tar"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with_index = open_examples(str(places[1]), split="train")
    cache = ShardCache(tmp_path / "cache", 1)
    without = open_examples(str(tmp_path / "train-{000000..000007}.tar"), cache=cache)
    rows = [
        sorted((e.image(i).content, int(e.labels[i])) for i in range(30))
        for e in (with_index, without)
    ]
    assert rows[0] == rows[1]
    place = tmp_path / "train-000004.tar"
    place.write_bytes(place.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"train-000004\.tar: is truncated in 0000000"):
        open_examples(str(tmp_path / "train-{000000..000007}.tar"), cache=cache)
    assert np.array_equal(np.bincount(without.labels), [17, 13])


def test_what_is_nearly_black_is_said_of_shards_too(pack_into, tmp_path: Path) -> None:
    for i, name in enumerate("aabb"):
        file = tmp_path / "images" / name / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9), 4000 + i, np.uint16)).save(file)
    pack_into(tmp_path / "images", tmp_path / "shards")
    shards = open_examples(str(tmp_path / "shards"), split="train")
    _, notes = check_examples(shards, 2, 4, 1)
    assert any("largest value is 4003, 12 bits" in note for note in notes)
    found = survey(shards, shards.subset([]), DataConfig(channels=1, mean=(0.5,), std=(0.5,)))
    assert any("largest value is 4003, 12 bits" in note for note in found.notes)
