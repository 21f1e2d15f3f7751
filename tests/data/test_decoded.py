"""data.cache: the pixels of files, whoever reads them; a file of them is whole or not there."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densekit.config import UserError
from densekit.data import decoded, on_cpu
from densekit.data.config import DataConfig
from densekit.data.decode import open_image
from densekit.data.decoded import DecodedImages, decoded_images
from densekit.data.folders import read_folder
from densekit.data.listing import Examples
from densekit.data.loader import Step, TrainStream, eval_batches
from densekit.data.transforms import Preprocessing

linux = pytest.mark.skipif(not decoded.HAS_SHARED_MEMORY, reason="Linux")
PLACES = [pytest.param("ram", marks=linux), "disk"]
EVERY_CHANGE = {
    "affine_degrees": 10, "rand_augment": 2, "auto_augment": "cifar10", "erase": 0.5,
    "color_jitter": (0.4, 0.4, 0.4, 0.1), "erase_with": "noise",
}  # fmt: skip


def write_varied(root: Path) -> Path:
    """Nine images in as many ways: formats, sizes, grey, opacity, turned by EXIF, 16 bits."""
    draw = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: list[tuple[str, str, tuple[int, int], dict[str, Any]]] = [
        ("colour.jpg", "RGB", (40, 30), {"quality": 90}),
        ("smooth.jpg", "RGB", (31, 47), {"subsampling": 0}),
        ("turned.jpg", "RGB", (30, 20), {"exif": turned}),
        ("grey.jpg", "L", (25, 35), {}),
        ("cmyk.jpg", "CMYK", (25, 25), {}),
        ("plain.png", "RGB", (33, 21), {}),
        ("opaque.png", "RGBA", (20, 20), {}),
        ("small.bmp", "RGB", (9, 7), {}),
    ]
    for number, (name, mode, (width, height), how) in enumerate(kinds):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (height, width, len(Image.new(mode, (1, 1)).getbands())))
        image = Image.fromarray(pixels.astype(np.uint8).squeeze(), mode)
        image.save(folder / name, **how)
    deep = draw.integers(0, 65536, (22, 24)).astype(np.uint16)
    Image.fromarray(deep).save(root / "a/deep.png")
    return root


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return read_folder(write_varied(tmp_path_factory.mktemp("varied")))


@pytest.fixture
def files(tmp_path: Path, write_folder: Any) -> Path:
    return write_folder(tmp_path / "images", {"a": 4, "b": 3}, size=(10, 8))


def config(tmp_path: Path, cache: str = "ram", **options: Any) -> DataConfig:
    small = {"image_size": 16, "batch_size": 4, "workers": 0, "cache_dir": str(tmp_path / "cache")}
    return DataConfig.model_validate({**small, "cache": cache, **options})


def steps(examples: Examples, data: DataConfig, rank: int = 0, world: int = 1) -> list[Step]:
    # of its own, so that nothing is at hand from a test before
    own = examples.subset(range(len(examples)))
    return list(TrainStream(own, data, seed=5, epochs=2, rank=rank, world=world))


def assert_alike(one: list[Step], other: list[Step]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.images == b.images
        for x, y in zip(a.batches, b.batches, strict=True):
            assert torch.equal(x.images, y.images)
            assert torch.equal(x.labels, y.labels)
            assert torch.equal(x.indices, y.indices)
            assert x.bad == y.bad


def pixel_files(data: DataConfig) -> list[Path]:
    return sorted(decoded.folder_of(data).glob("*.pixels"))


# Exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "augment",
    [
        {},
        {"crop_distribution": "paddle"},
        {"crop": "pad"},
        {"crop": "pad", "crop_padding": 0, "flip": 0.3},
        {"crop": "pad", "flip": 0.0},
        {"crop": "none"},
        EVERY_CHANGE,
        {"crop": "pad", **EVERY_CHANGE},
    ],
)
def test_batches_are_those_of_the_files(
    varied: Examples, tmp_path: Path, place: str, augment: dict[str, Any]
) -> None:
    """Also twice: nothing that is done to an image is done to the one that is kept."""
    without = steps(varied, config(tmp_path, "off", augment=augment))
    assert_alike(steps(varied, config(tmp_path, place, augment=augment)), without)
    assert len({step.batches[0].images.numpy().tobytes() for step in without}) > 2


NO_RESIZE: dict[str, Any] = {"augment": {"crop": "pad"}, "evaluate": {"resize": None}}


@pytest.mark.parametrize("change", [{}, {"workers": 1}, {"image_size": 31}])
@pytest.mark.parametrize("place", PLACES)
def test_crops_that_are_copied_by_the_batch(
    varied: Examples, tmp_path: Path, place: str, change: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In C++, and one by one where there is none; images may be smaller than the square."""
    copied: list[int] = []
    copy = on_cpu.copy_crops
    monkeypatch.setattr(on_cpu, "copy_crops", lambda *how: copied.append(len(how[1])) or copy(*how))
    with_cache = steps(varied, config(tmp_path, place, **NO_RESIZE, **change))
    assert sum(copied) == (0 if "workers" in change or not on_cpu.copies_crops() else 18)
    without = steps(varied, config(tmp_path, "off", **NO_RESIZE, **change))
    assert_alike(with_cache, without)
    monkeypatch.setattr(on_cpu, "copies_crops", lambda: False)
    assert_alike(steps(varied, config(tmp_path, place, **NO_RESIZE, **change)), without)


@pytest.mark.parametrize("how", [{"interpolation": "bicubic"}, {"antialias": False}])
@pytest.mark.parametrize("place", PLACES)
def test_other_resizes_too(varied: Examples, tmp_path: Path, place: str, how: Any) -> None:
    assert_alike(
        steps(varied, config(tmp_path, place, **how)), steps(varied, config(tmp_path, "off", **how))
    )


@pytest.mark.parametrize("place", PLACES)
def test_workers_and_ranks_share_it(varied: Examples, tmp_path: Path, place: str) -> None:
    for rank in range(2):
        data = config(tmp_path, place, workers=2)
        without = steps(varied, config(tmp_path, "off"), rank, 2)
        assert_alike(steps(varied, data, rank, 2), without)


@pytest.mark.parametrize("crops", [{}, NO_RESIZE])
@pytest.mark.parametrize("place", PLACES)
def test_values_of_16_bits_keep_their_own(
    tmp_path: Path, place: str, crops: dict[str, Any]
) -> None:
    root, draw = tmp_path / "deep", np.random.default_rng(1)
    for number in range(5):
        (root / "a").mkdir(parents=True, exist_ok=True)
        values = draw.integers(0, 65536, (20, 18, 2)).astype(np.uint16)
        np.save(root / f"a/{number}.npy", values)
    examples = read_folder(root)
    how = {"channels": 2, "intensity": "full", "mean": (0.5,), "std": (0.2,), **crops}
    with_cache = steps(examples, config(tmp_path, place, **how))
    assert with_cache[0].batches[0].images.dtype == torch.float32
    assert_alike(with_cache, steps(examples, config(tmp_path, "off", **how)))


@pytest.mark.parametrize("place", PLACES)
def test_evaluation_reads_them(varied: Examples, tmp_path: Path, place: str) -> None:
    data = config(tmp_path, place)
    kept = decoded_images(varied.subset(range(len(varied))), data)
    seen = Preprocessing.from_config(data)
    sides = [
        [batch.images for _, batch in eval_batches(varied, seen, 4, 0, decoded=images)]
        for images in (None, kept)
    ]
    assert all(map(torch.equal, *sides))


@linux
def test_pixels_and_their_place_in_memory_are_the_decoders(varied: Examples) -> None:
    data = DataConfig(cache="ram")
    kept = decoded_images(varied.subset(range(len(varied))), data)
    assert kept is not None
    assert len(kept) == len(varied)
    for index, path in enumerate(varied.paths):
        own = open_image(path, 3).pixels()
        image = kept.image(index)
        assert image is not None
        assert torch.equal(image.pixels(), own)
        assert (image.height, image.width) == tuple(own.shape[1:])
        assert image.pixels().stride() == own.stride()


@linux
def test_what_memory_has_no_room_for_is_read_as_files(
    varied: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(decoded.distributed, "free_memory", lambda: 2 * 10_000)
    assert_alike(steps(varied, config(tmp_path)), steps(varied, config(tmp_path, "off")))
    assert "of 9 images fit in the cache; the others are read as files" in capsys.readouterr().err


def test_without_a_place_nothing_is_kept(varied: Examples, tmp_path: Path) -> None:
    assert decoded_images(varied, config(tmp_path, "off")) is None
    assert decoded_images(varied, config(tmp_path, "auto")) is None


@linux
def test_memory_goes_with_the_images(files: Path) -> None:
    def maps() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:densekit-decoded-images")

    gc.collect()
    before = maps()
    examples = read_folder(files)
    decoded_images(examples, DataConfig(cache="ram"))
    assert maps() == before + 1
    del examples
    gc.collect()
    assert maps() == before


# Damage -------------------------------------------------------------------------------------


def failure(examples: Examples, data: DataConfig) -> str:
    with pytest.raises(UserError) as found:
        steps(examples, data)
    return str(found.value)


@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_image_is_the_same_mistake(files: Path, tmp_path: Path, place: str) -> None:
    (files / "b/001.png").write_bytes(b"not an image")
    examples = read_folder(files)
    message = failure(examples, config(tmp_path, place))
    assert message == failure(examples, config(tmp_path, "off"))
    assert "001.png" in message
    assert not pixel_files(config(tmp_path))


@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_image_is_left_out_alike(files: Path, tmp_path: Path, place: str) -> None:
    (files / "b/001.png").write_bytes(b"not an image")
    examples = read_folder(files)
    with_cache = steps(examples, config(tmp_path, place, on_bad_image="skip"))
    assert_alike(with_cache, steps(examples, config(tmp_path, "off", on_bad_image="skip")))
    assert sum(len(batch.bad) for step in with_cache for batch in step.batches) == 2
    # and whoever does not skip is told by the same file
    assert "001.png" in failure(examples, config(tmp_path, place))


# The file -----------------------------------------------------------------------------------


def test_a_file_serves_until_an_image_changes(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = config(tmp_path, "disk")
    steps(read_folder(files), data)
    (first,) = pixel_files(data)
    with monkeypatch.context() as patch:
        patch.setattr(decoded, "write_decoded", None)
        steps(read_folder(files), data)
    Image.fromarray(np.full((8, 10, 3), 7, np.uint8)).save(files / "a/002.png")
    assert_alike(
        steps(read_folder(files), data), steps(read_folder(files), config(tmp_path, "off"))
    )
    assert len(pixel_files(data)) == 2
    first.unlink()  # as docs say
    steps(read_folder(files), data)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: os.utime(root / "a/000.png", ns=(1, 1)),
        lambda root: (root / "a/000.png").write_bytes((root / "a/000.png").read_bytes() + b"\0"),
        lambda root: (root / "a/000.png").unlink(),
        lambda root: shutil.copy(root / "a/000.png", root / "a/009.png"),
    ],
)
def test_other_files_have_another_name(files: Path, tmp_path: Path, change: Any) -> None:
    data = config(tmp_path, "disk")
    before = decoded._key(read_folder(files), data)
    assert decoded._key(read_folder(files), data) == before
    change(files)
    assert decoded._key(read_folder(files), data) != before


def test_other_decoding_has_another_name(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, data = read_folder(files), config(tmp_path, "disk")
    keys = {decoded._key(examples, data)}
    for other in ({"channels": 1, "mean": (0.5,), "std": (0.5,)}, {"intensity": "full"}):
        keys.add(decoded._key(examples, config(tmp_path, "disk", **other)))
    monkeypatch.setattr(decoded, "version", lambda _: "another decoder")
    keys.add(decoded._key(examples, data))
    assert len(keys) == 4


def test_a_file_that_was_cut_is_named(files: Path, tmp_path: Path) -> None:
    data = config(tmp_path, "disk")
    steps(read_folder(files), data)
    (kept,) = pixel_files(data)
    kept.write_bytes(kept.read_bytes()[:-20])
    assert failure(read_folder(files), data).startswith(f"{kept}: is not a file of decoded images")


def test_a_full_disk_is_a_sentence(files: Path, tmp_path: Path) -> None:
    """As a limit on the size of files has it, which any user can set."""
    data, limit = config(tmp_path, "disk"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limit[1]))
    try:
        message = failure(read_folder(files), data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "cannot be written: File too large" in message
    assert "MiB free: set data.cache_dir to a folder with more space, or data.cache=off" in message
    assert [
        file.name for file in decoded.folder_of(data).iterdir() if ".lock" not in file.name
    ] == []


def _use(root: Path, data: DataConfig, using: Any) -> None:
    examples = read_folder(root)  # which are in use as long as they are here
    decoded_images(examples, data)
    using.set()
    time.sleep(600 + len(examples))


def test_files_used_longest_ago_make_room_but_none_that_a_run_uses(
    write_folder: Any, tmp_path: Path, capsys: Any
) -> None:
    """Of two that fit, the older one is in use by another process, which is killed at last."""
    roots = {n: write_folder(tmp_path / n, {"a": 4, n: 4}, size=(60, 60)) for n in "bcde"}
    data = config(tmp_path, "disk", cache_gib=200_000 / 2**30)
    context = multiprocessing.get_context("fork")
    using = context.Event()
    process = context.Process(target=_use, args=(roots["b"], data, using))
    process.start()
    assert using.wait(60)
    (first,) = pixel_files(data)
    decoded_images(read_folder(roots["c"]), data)
    (second,) = set(pixel_files(data)) - {first}
    assert "removed" not in capsys.readouterr().err
    decoded_images(read_folder(roots["d"]), data)
    said = " ".join(capsys.readouterr().err.split())
    assert f"cache: {second} (1 MB) was removed, which no run uses, since data.cache_gib=" in said
    assert not second.exists()
    (third,) = set(pixel_files(data)) - {first}
    in_use = read_folder(roots["d"])
    decoded_images(in_use, data)
    with pytest.raises(UserError, match=r"8 images of 60x60, and what runs use .* can be raised"):
        decoded_images(read_folder(roots["e"]), data)
    assert pixel_files(data) == sorted([first, third])
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    decoded_images(read_folder(roots["e"]), data)
    assert not first.exists()
    assert third.exists()


def _fill(root: Path, data: DataConfig, started: Any, pause: float) -> None:
    pixels = decoded._all_pixels

    def slowly(*how: Any) -> Iterator[Any]:
        for image in pixels(*how):
            started.set()
            time.sleep(pause)
            yield image

    decoded._all_pixels = slowly
    decoded_images(read_folder(root), data)


def test_a_killed_process_leaves_nothing_that_is_taken(files: Path, tmp_path: Path) -> None:
    data, context = config(tmp_path, "disk"), multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_fill, args=(files, data, started, 60.0))
    process.start()
    assert started.wait(60)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert not pixel_files(data)
    assert_alike(
        steps(read_folder(files), data), steps(read_folder(files), config(tmp_path, "off"))
    )
    assert not list(decoded.folder_of(data).glob(".*.tmp"))


def test_runs_that_start_together_write_it_once(files: Path, tmp_path: Path) -> None:
    data, context = config(tmp_path, "disk"), multiprocessing.get_context("fork")
    started = [context.Event() for _ in range(3)]
    processes = [
        context.Process(target=_fill, args=(files, data, event, 0.05)) for event in started
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 3
    assert sum(event.is_set() for event in started) == 1
    assert_alike(
        steps(read_folder(files), data), steps(read_folder(files), config(tmp_path, "off"))
    )


def test_a_spawned_worker_opens_it_by_its_name(files: Path, tmp_path: Path) -> None:
    kept = decoded_images(read_folder(files), config(tmp_path, "disk"))
    assert kept is not None
    opened, arguments = kept.__reduce__()
    again = opened(*arguments)
    assert isinstance(again, DecodedImages)
    assert torch.equal(again.pixels, kept.pixels)
