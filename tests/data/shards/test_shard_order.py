"""data.shuffle_window: every image once, few shards at a time, a function of seed and epoch."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import UserError
from densekit.data.config import DataConfig
from densekit.data.dataset import epoch_order
from densekit.data.loader import TrainStream
from densekit.data.shards.order import windowed
from densekit.data.splits import open_examples

Indices = list[list[int]]


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=12),
    st.integers(1, 14),
    st.integers(0, 2**40),
)
def test_few_shards_at_a_time(sizes: list[int], window: int, seed: int) -> None:
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    n = len(shard_of)
    order = epoch_order(seed, 3, n)
    found = windowed(order, shard_of[order], window, seed, 3)
    assert sorted(found.tolist()) == list(range(n))
    assert np.array_equal(found, windowed(order, shard_of[order], window, seed, 3))
    if window >= len(sizes):
        assert np.array_equal(found, order), "a window over all shards is no window"
    shards = shard_of[found]
    first = {shard: int(np.argmax(shards == shard)) for shard in range(len(sizes))}
    last = {shard: n - 1 - int(np.argmax(shards[::-1] == shard)) for shard in range(len(sizes))}
    for place in range(n):
        begun = [s for s in first if first[s] <= place <= last[s]]
        assert len(begun) <= window + 1


def test_a_window_mixes_its_shards() -> None:
    shard_of = np.repeat(np.arange(40), 100)
    order = epoch_order(0, 0, 4000)
    shards = shard_of[windowed(order, shard_of[order], 8, 0, 0)]
    distinct = [len(set(shards[start : start + 100])) for start in range(0, 4000, 100)]
    assert min(distinct) >= 7
    other = shard_of[windowed(order, shard_of[order], 8, 0, 1)]
    assert not np.array_equal(shards, other)


def test_a_stream_with_a_window(write_folder, pack_into, tmp_path: Path) -> None:
    write_folder(tmp_path / "images", {"a": 20, "b": 20}, size=(20, 20))
    pack_into(tmp_path / "images", tmp_path / "shards")
    shards = open_examples(str(tmp_path / "shards"), split="train")

    def indices(start: int = 0, rank: int = 0, world: int = 1, **options: object) -> Indices:
        config = DataConfig(image_size=16, batch_size=8, workers=0, **options)
        stream = TrainStream(shards, config, seed=1, epochs=2, rank=rank, world=world)
        return [b.indices.tolist() for step in stream.from_step(start) for b in step.batches]

    whole = indices(shuffle_window=2)
    for epoch in (whole[:5], whole[5:]):
        assert sorted(itertools.chain(*epoch)) == list(range(40))
    assert whole != indices() == indices(shuffle_window=0)
    assert whole[3:] == indices(3, shuffle_window=2)
    ranks = [indices(0, rank, 2, shuffle_window=2) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    assert sum(map(len, indices(shuffle_window=2, balance=0.5)[:5])) == 40
    files = open_examples(str(tmp_path / "images"))
    stream = TrainStream(files, DataConfig(shuffle_window=2, workers=0), seed=1, epochs=1)
    with pytest.raises(UserError, match=r"data\.shuffle_window=2 is for shards, not for "):
        next(iter(stream))
