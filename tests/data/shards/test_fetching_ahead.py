"""Shards are fetched ahead, once for all that read them, and go only when nobody needs them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from web_server import WebServer, web_server

from densekit import distributed
from densekit.data.config import DataConfig
from densekit.data.loader import TrainStream, eval_batches
from densekit.data.shards.ahead import ReadingPlan, ShardUse, shard_uses
from densekit.data.shards.cache import ShardCache
from densekit.data.shards.examples import ShardedExamples
from densekit.data.shards.index import Shard
from densekit.data.splits import open_examples
from densekit.data.transforms import Preprocessing
from runs import Runs, forked

IMAGES, PER_SHARD, EPOCHS = 288, 24, 2
SHARDS, VAL_SHARDS = IMAGES // PER_SHARD, 2
BATCH, RANKS = 6, 3


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 5), st.data())
def test_uses(n: int, size: int, shards: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(n)
    shard_of = rng.integers(0, shards, n)
    orders = [rng.permutation(n) for _ in range(3)]
    per_epoch = data.draw(st.sampled_from(sorted({max(n // size, 1), -(-n // size)})))
    start = data.draw(st.integers(0, 3 * per_epoch))
    plan = ReadingPlan(orders.__getitem__, size, per_epoch, start, 3 * per_epoch)
    wanted: dict[tuple[int, int], list[int]] = {}
    for step in range(start, 3 * per_epoch):
        epoch, place = divmod(step, per_epoch)
        for image in orders[epoch][place * size : (place + 1) * size]:
            wanted.setdefault((epoch, int(shard_of[image])), []).append(step)
    found = list(shard_uses(plan, shard_of))
    assert sorted(found) == sorted(ShardUse(s, min(w), max(w)) for (_, s), w in wanted.items())
    assert [use.first for use in found] == sorted(use.first for use in found)


def test_what_is_held_does_not_make_room(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 100)
    files = {}
    for age, name in enumerate("abc"):
        files[name] = cache._target("u", Shard(name, 30, name))
        files[name].write_bytes(bytes(30))
        os.utime(files[name], (age, age))
    (tmp_path / ".old.tar.densekit-1.tmp").write_bytes(bytes(10))
    oldest = cache.held("u", Shard("a", 30, "a"))
    assert oldest is not None
    assert cache.files.make_room(10)
    assert len(list(tmp_path.glob("*.tar"))) == 3, "what a killed process left has made room"
    assert cache.files.make_room(40)
    assert not files["b"].exists()
    assert files["a"].exists()
    assert not cache.files.make_room(80)
    assert [file for file in files.values() if file.exists()] == [files["a"]]
    oldest.close()
    assert cache.files.make_room(80)
    assert cache.held("u", Shard("a", 30, "a")) is None


# Against a server ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(write_folder, pack_into, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", IMAGES), ("val", VAL_SHARDS * PER_SHARD)):
        half = count // 2
        write_folder(root / "images" / part, {"a": half, "b": half}, size=(16, 16))
    pack_into(root / "images", root / "shards", shard_images=PER_SHARD)
    return root / "shards"


@pytest.fixture
def server(packed: Path) -> Iterator[WebServer]:
    with web_server(packed, all_files=True) as made:
        yield made


@pytest.fixture(scope="module")
def largest(packed: Path) -> int:
    return max(file.stat().st_size for file in packed.glob("*.tar"))


def stream_of(url: str, cache: Path, limit: int, workers: int, **how: int) -> TrainStream:
    config = DataConfig(
        root=url, cache_dir=str(cache), cache_gib=limit / 2**30, workers=workers, shuffle_window=2,
        image_size=8, batch_size=BATCH, check_files=0,
    )  # fmt: skip
    train = open_examples(url, split="train", cache=ShardCache.of(config))
    return TrainStream(train, config, seed=1, epochs=EPOCHS, **how)


def read_all(url: str, cache: Path, limit: int, out: Path) -> None:
    """A rank reads as in training, where no rank is more than a step ahead of another."""
    with distributed.session():
        distributed.start(torch.device("cpu"), threads=1)
        ranks = {"rank": distributed.rank(), "world": distributed.world_size()}
        seen: list[list[int]] = []
        for step in stream_of(url, cache, limit, 2, **ranks):
            seen.append([i for batch in step.batches for i in batch.indices.tolist()])
            distributed.gather_objects(None)
        val = open_examples(url, split="val", cache=ShardCache(cache, limit))
        plain = Preprocessing.from_config(DataConfig(image_size=8))
        read = eval_batches(val, plain, BATCH, 2, **ranks)
        of_val = [i for _, batch in read for i in batch.indices.tolist()]
        (out / f"{ranks['rank']}.json").write_text(json.dumps([seen, of_val]))


def sound(cache: Path, packed: Path, limit: int) -> None:
    known = {hashlib.sha256(file.read_bytes()).hexdigest() for file in packed.glob("*.tar")}
    kept = list(cache.glob("*.tar"))
    assert {file.stem for file in kept} <= known
    for file in kept:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    assert sum(file.stat().st_size for file in kept) <= limit


@pytest.mark.slow
def test_three_ranks_of_two_workers_fetch_each_shard_once(
    runs: Runs, server: WebServer, packed: Path, largest: int, tmp_path: Path
) -> None:
    limit, cache = 8 * largest, tmp_path / "cache"
    broken = ("train-000002.tar", "train-000005.tar")
    server.broken.update(dict.fromkeys(broken, 1))
    runs.on_ranks(partial(read_all, server.url, cache, limit, tmp_path), RANKS)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    steps = list(zip(*(seen for seen, _ in ranks), strict=True))
    per_epoch = IMAGES // BATCH
    for epoch in range(EPOCHS):
        own = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert Counter(i for step in own for part in step for i in part) == Counter(range(IMAGES))
    assert sorted(i for _, of_val in ranks for i in of_val) == list(range(48))
    shards = {name: count for name, count in server.gets.items() if name.endswith(".tar")}
    in_part = server.gets - server.whole
    assert set(in_part) <= set(broken), "no image was asked for alone"
    for name, count in shards.items():
        times = 1 if name.startswith("val") else EPOCHS
        assert count - in_part[name] <= times, f"{name} came twice in an epoch"
    assert sum(shards.values()) > SHARDS + VAL_SHARDS, "nothing ever had to make room"
    sound(cache, packed, limit)
    assert not list(cache.glob(".*.tmp"))


def reads_until_killed(url: str, cache: Path, limit: int) -> None:
    for _ in stream_of(url, cache, limit, 2, rank=distributed.local_rank(), world=2):
        pass


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_cache_sound(
    runs: Runs, server: WebServer, packed: Path, largest: int, tmp_path: Path
) -> None:
    limit, cache = 7 * largest, tmp_path / "cache"
    server.pause = 0.02
    for after in (2, 5, 9, 14):
        begun, asked = server.gets.total(), after
        work = partial(reads_until_killed, server.url, cache, limit)
        processes = runs.spawn(work, 2)
        while server.gets.total() < begun + asked and any(p.is_alive() for p in processes):
            time.sleep(0.001)
        for process in processes:
            assert process.pid
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.join()
        sound(cache, packed, limit)
    server.pause = 0
    runs.on_ranks(partial(read_all, server.url, cache, limit, tmp_path))
    seen, _ = json.loads((tmp_path / "0.json").read_text())
    assert Counter(i for step in seen for i in step) == Counter(list(range(IMAGES)) * EPOCHS)
    sound(cache, packed, limit)
    assert not list(cache.glob(".*.tmp"))


def fetches_before_they_are_read(url: str, cache: Path, limit: int) -> None:
    stream = stream_of(url, cache, limit, 0)
    shards = stream.examples
    assert isinstance(shards, ShardedExamples)
    steps = stream.from_step(20)
    next(steps)
    plan = ReadingPlan(stream._order, BATCH, stream.steps_per_epoch, 20, stream.steps)
    coming = list(shard_uses(plan, shards.members["shard"]))[:6]
    deadline = time.monotonic() + 60
    place, of_use = shards.place, [shards.shards[use.shard] for use in coming]
    while not all(place.cache.has(place.name(shard), shard) for shard in of_use):
        assert time.monotonic() < deadline, "what comes next is not there"
        time.sleep(0.01)
    steps.close()


@pytest.mark.slow
def test_what_comes_next_is_there_before_it_is_read(
    server: WebServer, largest: int, tmp_path: Path
) -> None:
    work = partial(fetches_before_they_are_read, server.url, tmp_path, 7 * largest)
    done = forked(work)
    assert done.returncode == 0, done.stderr
    assert server.gets.total() <= 7 + 1, "the index, and as many as there is room for"


def reads_where_there_is_no_room(url: str, cache: Path, limit: int) -> None:
    """All that fits is held by another run."""
    one = stream_of(url, cache, limit, 2)
    shards = one.examples
    assert isinstance(shards, ShardedExamples)
    files = []
    for shard in shards.shards[:4]:
        name = shards.place.name(shard)
        shards.place.cache.fetched(name, shard)
        files.append(shards.place.cache.held(name, shard))
    assert None not in files
    seen = [i for step in one for batch in step.batches for i in batch.indices.tolist()]
    assert Counter(seen) == Counter(list(range(IMAGES)) * EPOCHS)
    for shard in shards.shards[:4]:
        assert shards.place.cache.has(shards.place.name(shard), shard)


@pytest.mark.slow
def test_a_cache_that_others_fill_makes_a_run_slow_not_wrong(
    packed: Path, server: WebServer, largest: int, tmp_path: Path
) -> None:
    done = forked(partial(reads_where_there_is_no_room, server.url, tmp_path, 4 * largest))
    assert done.returncode == 0, done.stderr
    assert "is full of shards in use" in done.stderr
    assert server.gets.total() > sum(server.whole.values()), "images were asked for one by one"
    sound(tmp_path, packed, 4 * largest)
