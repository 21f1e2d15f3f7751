"""Shards in an S3 server on loopback that drops and stalls, and on a plain HTTP server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from store import Store, serving
from web_server import web_server

from densekit import remote
from densekit.config import UserError
from densekit.data.config import DataConfig
from densekit.data.loader import TrainStream
from densekit.data.shards.cache import ShardCache
from densekit.data.splits import open_examples, open_split
from runs import Runs, assert_same_run, densekit, forked

pytestmark = pytest.mark.slow  # the server takes seconds to start


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serving() as store:
        yield store


@pytest.fixture(scope="module")
def folder(write_folder, pack_into, tmp_path_factory) -> Path:
    """Shards of 40 images for training, and of 8 for validation."""
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", 20), ("val", 4)):
        write_folder(root / "images" / part, {"a": count, "b": count}, size=(40, 30))
    pack_into(root / "images", root / "shards")
    return root / "shards"


def upload(store: Store, folder: Path, prefix: str, **other: bytes) -> str:
    """Its files; `other` is what some of them hold, by their stems."""
    for file in folder.glob("[!.]*"):
        store.put(f"{prefix}/{file.name}", other.get(file.stem, file.read_bytes()))
    return f"s3://photos/{prefix}"


def apart(work: Callable[[], None], variables: dict[str, str]) -> None:
    """`work`, a module's function or partial, in a process in which obstore was never used."""
    done = forked(partial(with_variables, work, variables))
    assert done.returncode == 0, done.stderr


def set_variables(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def with_variables(work: Callable[[], None], variables: dict[str, str]) -> None:
    set_variables(variables)
    work()


def data_config(root: str, cache: Path, **options: object) -> DataConfig:
    return DataConfig(
        root=root, cache_dir=str(cache), image_size=16, batch_size=8, check_files=0, **options
    )


def pixels(config: DataConfig, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    train, _ = open_split(config)
    stream = TrainStream(train, config, seed=1, epochs=2, rank=rank, world=world)
    return [batch.images.numpy() for step in stream for batch in step.batches]


def same_as_files(root: str, folder: Path, cache: Path, stalled: str = "30s") -> None:
    remote.STALLED = stalled
    truth = pixels(DataConfig(root=str(folder), image_size=16, batch_size=8, workers=0))
    for world, workers in ((1, 0), (3, 2)):
        config = data_config(root, cache / str(world), workers=workers, shuffle_window=0)
        ranks = [pixels(config, rank, world) for rank in range(world)]
        for step, *parts in zip(truth, *ranks, strict=True):
            assert np.array_equal(np.concatenate(parts), step)


def test_a_store_is_as_good_as_a_disk(store: Store, folder: Path, tmp_path: Path) -> None:
    root = upload(store, folder, "whole")
    apart(partial(same_as_files, root, folder, tmp_path), store.variables)
    assert store.asked["whole/train-000003.tar"] <= 4, "each cache fetched it once, after its facts"


def test_answers_that_break_off_or_stall_cost_nothing(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    root = upload(store, folder, "weak")
    for number in range(10):
        store.broken[f"weak/train-{number:06d}.tar"] = 2
        store.stalled[f"weak/train-{number:06d}.tar"] = 1
    apart(partial(same_as_files, root, folder, tmp_path, "1s"), store.variables)
    assert not +store.broken
    assert not +store.stalled


def fails(root: str, cache: Path, workers: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        pixels(data_config(root, cache, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_mistakes_are_named(store: Store, folder: Path, tmp_path: Path, workers: int) -> None:
    content = (folder / "train-000001.tar").read_bytes()
    for name, wrong, said in (
        ("short", content[:1000], "has 1,000 bytes, but its index says"),
        ("other", content[:-1] + b"x", "is corrupt: its SHA-256 is not the one in its index"),
    ):
        root = upload(store, folder, f"{name}{workers}", **{"train-000001": wrong})
        said = f"{root}/train-000001.tar: {said}"
        apart(partial(fails, root, tmp_path, workers, said), store.variables)
    nowhere = f"s3://photos/nowhere{workers}"
    apart(
        partial(fails, nowhere, tmp_path, workers, "no file s3://photos/nowhere"), store.variables
    )


def stays_small(root: str, cache: Path, limit: int) -> None:
    size = {"cache_gib": limit / 2**30}
    config = data_config(root, cache, workers=2, shuffle_window=1, **size)
    assert len(pixels(config)) == 10
    kept = [file.stat().st_size for file in cache.glob("*.tar")]
    assert sum(kept) <= limit
    assert not list(cache.glob(".*.tmp"))
    with pytest.raises(UserError, match=r"reads 10 shards at a time.*data\.cache_gib"):
        pixels(data_config(root, cache, workers=0, shuffle_window=0, **size))


def test_the_cache_is_bounded(store: Store, folder: Path, tmp_path: Path) -> None:
    largest = max(file.stat().st_size for file in folder.glob("train-*.tar"))
    root = upload(store, folder, "small")
    apart(partial(stays_small, root, tmp_path, 4 * largest), store.variables)


def indexes_once(url: str, folder: Path, cache_folder: Path) -> None:
    cache = ShardCache(cache_folder, 2**30)
    found = open_examples(f"{url}/train-{{000000..000009}}.tar", cache=cache)
    truth = open_examples(str(folder), split="train")
    rows = [
        sorted((examples.image(i).content, int(examples.labels[i])) for i in range(40))
        for examples in (found, truth)
    ]
    assert rows[0] == rows[1]
    for file in cache_folder.glob("*.tar"):
        file.unlink()
    again = open_examples(f"{url}/train-{{000000..000009}}.tar", cache=cache)
    assert again.digest() == found.digest()
    assert not list(cache_folder.glob("*.tar")), "the index was kept"
    assert again.image(3).content == found.image(3).content
    assert not list(cache_folder.glob("*.tar")), "a single image takes no shard"


def test_plain_shards_on_a_web_server(folder: Path, tmp_path: Path) -> None:
    with web_server(folder) as plain:
        apart(partial(indexes_once, plain.url, folder, tmp_path), {})


def test_data_commands_read_a_store(folder: Path, tmp_path: Path) -> None:
    with web_server(folder, all_files=True) as plain:
        options = ("--json", "-o", f"data.cache_dir={tmp_path}", "-o", "data.image_size=16")
        found = densekit("data", "check", plain.url, *options)
        assert found.returncode == 1, found.stderr
        said = json.loads(found.stdout)
        assert len(said["leaked"]) == 8, "those of validation are drawn like those of training"
        assert (said["train"], said["val"], said["unreadable"]) == (40, 8, [])
        assert max(plain.whole.values()) <= 2, "a shard is fetched once, an index with each opening"
        measured = densekit("data", "bench", plain.url, *options, "--images", "8", "--rounds", "1")
        assert measured.returncode == 0, measured.stderr
        assert json.loads(measured.stdout)["speedup_vs_pil"] > 0


def test_a_run_on_a_store_is_the_run_on_files(runs: Runs, store: Store, tmp_path: Path) -> None:
    done = densekit("data", "pack", runs.data, tmp_path / "shards", "--shard-images", "50")
    assert done.returncode == 0, done.stderr
    options = {
        "data.root": upload(store, tmp_path / "shards", "digits"),
        "data.cache_dir": tmp_path / "cache",
        "data.shuffle_window": 0,
        "data.workers": 2,
    }
    started = runs.start(tmp_path / "run", options, prelude=partial(set_variables, store.variables))
    assert started.wait() == [0], started.output
    assert_same_run(tmp_path / "run", runs.whole())
