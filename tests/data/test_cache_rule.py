"""data.cache=auto by its table, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densekit.config import UserError
from densekit.data import cache_rule
from densekit.data.cache_rule import Choice, choose_cache, estimate, readable_bytes
from densekit.data.config import DataConfig
from densekit.data.folders import read_folder
from densekit.data.listing import Examples
from densekit.data.own_dataset import of_dataset
from densekit.data.shards.cache import ShardCache
from densekit.data.shards.examples import ShardedExamples
from densekit.data.shards.place import ShardPlace

GIB = 2**30


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, write_folder: Any) -> Examples:
    return read_folder(
        write_folder(tmp_path_factory.mktemp("images"), {"a": 5, "b": 5}, size=(100, 50))
    )


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with shared memory and a GiB."""
    monkeypatch.setattr(cache_rule, "HAS_SHARED_MEMORY", True)
    monkeypatch.setattr(cache_rule.distributed, "free_memory", lambda: GIB)


def choose(images: Examples, epochs: int = 2, **options: Any) -> Choice:
    return choose_cache(DataConfig.model_validate(options), (images, images), epochs)


def test_small_images_are_kept_in_memory(images: Examples) -> None:
    assert choose(images) == ("ram", ("cache: 1 MB, 20 images of 100x50, in memory",))


def test_off_is_not_spoken_of(images: Examples) -> None:
    assert choose(images, cache="off") == ("off", ())


def test_a_quarter_of_the_memory_is_the_most(
    images: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 20 * 100 * 50 * 3
    monkeypatch.setattr(cache_rule.distributed, "free_memory", lambda: 4 * size)
    assert choose(images).place == "ram"
    monkeypatch.setattr(cache_rule.distributed, "free_memory", lambda: 4 * size - 1)
    place, (note,) = choose(images)
    assert place == "off"
    assert "20 images of 100x50, are more than a quarter of the free memory, 1 MB" in note
    assert choose(images, cache="ram").place == "ram", "who asks for it gets half"
    monkeypatch.setattr(cache_rule.distributed, "free_memory", lambda: 2 * size - 1)
    with pytest.raises(UserError, match=r"data\.cache=ram: .*half.*set data\.cache=off"):
        choose(images, cache="ram")
    assert choose(images, cache="disk").place == "disk"
    with pytest.raises(UserError, match=r"cache=disk: .*are more than data\.cache_gib=0.0001"):
        choose(images, cache="disk", cache_gib=1e-4)


def test_what_is_decoded_once_is_not_kept(images: Examples) -> None:
    assert choose(images, epochs=1) == (
        "off",
        ("cache: off, since one epoch decodes each image once",),
    )
    assert choose(images, epochs=1, cache="ram").place == "ram"


def test_scaled_decoding_is_not_kept(images: Examples) -> None:
    place, (note,) = choose(images, decode="scaled")
    assert (place, "data.decode=scaled" in note) == ("off", True)
    for cache in ("ram", "disk"):
        with pytest.raises(UserError, match=rf"data\.cache={cache}: data\.decode=scaled"):
            choose(images, decode="scaled", cache=cache)


def test_a_programs_own_images_are_not_kept() -> None:
    own = of_dataset([(np.zeros((4, 4, 3), np.uint8), 0)] * 4, "multiclass", "train")
    assert choose(own).place == "off"
    with pytest.raises(UserError, match=r"data\.cache=ram: .* own Dataset"):
        choose(own, cache="ram")


def test_shards_from_elsewhere_are_not_asked_for(images: Examples) -> None:
    place = ShardPlace("s3://bucket/shards", ShardCache(Path(), 0))
    shards = ShardedExamples(
        images.paths, images.labels, {}, "s3://bucket/shards", "s3://bucket/shards",
        members=np.empty(0), shards=(), place=place, has_checksums=False,
    )  # fmt: skip
    assert choose(shards) == (
        "off",
        ("cache: off, since remote shards are cached as files",),
    )


def test_without_such_memory_there_are_files(
    images: Examples, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cache_rule, "HAS_SHARED_MEMORY", False)
    place, (note,) = choose(images)
    assert place == "off"
    assert "data.cache=disk" in note
    with pytest.raises(UserError, match=r"data\.cache=ram: this system"):
        choose(images, cache="ram")
    place, (note,) = choose(images, cache="disk", cache_dir=str(tmp_path))
    assert place == "disk"
    assert f"in {tmp_path}/pixels; its files may be deleted" in note


def test_images_that_cannot_be_read_are_left_to_who_reads_them(
    images: Examples, tmp_path: Path
) -> None:
    gone = replace(images, paths=[str(tmp_path / "gone.png")] * 10)
    assert choose(gone) == ("off", ())
    half = replace(images, paths=[*list(images.paths)[:5], *list(gone.paths)[:5]])
    found = estimate(DataConfig(), (half,))
    assert found is not None
    assert (found.images, found.bytes) == (10, 10 * 100 * 50 * 3)


@pytest.mark.parametrize(
    ("options", "each"),
    [({}, 3), ({"channels": 1, "mean": (0.5,), "std": (0.5,)}, 1), ({"intensity": "full"}, 12)],
)
def test_bytes_are_those_of_the_pixels(images: Examples, options: Any, each: int) -> None:
    found = estimate(DataConfig.model_validate(options), (images,))
    assert found is not None
    assert found.bytes == 10 * 100 * 50 * each


def test_images_of_many_sizes_are_said_to_be(tmp_path: Path, write_image: Any) -> None:
    for number, width in enumerate((10, 20, 60)):
        write_image(tmp_path / f"a/{number}.png", (width, 10))
    found = estimate(DataConfig(), (read_folder(tmp_path),))
    assert found is not None
    assert found.bytes == 900 * 3
    assert str(found) == "1 MB, 3 images of about 20x10"


def test_sizes_for_people() -> None:
    assert [readable_bytes(n) for n in (0, 168.9e6, 1e9, 7.24e9)] == [
        "1 MB", "169 MB", "1.0 GB", "7.2 GB",
    ]  # fmt: skip
