from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import Tensor

from densekit.config import UserError
from densekit.data import workers
from densekit.data.dataset import ImageDataset
from densekit.data.decode import ImageFile, UnreadableImage
from densekit.data.folders import read_folder
from densekit.data.listing import Examples
from densekit.data.transforms import Preprocessing
from densekit.data.workers import read_batches

SMALL = Preprocessing(resize=None, crop=8).square
KEYS = [[(0, i)] for i in range(12)]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, write_folder) -> Examples:
    return read_folder(write_folder(tmp_path_factory.mktemp("own"), {"a": 6, "b": 6}))


@pytest.mark.parametrize("number", [0, 2])
def test_an_unreadable_file_reaches_the_main_process_as_it_was(
    tmp_path: Path, examples: Examples, number: int
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    paths = [*examples.paths[:5], str(bad), *examples.paths[6:]]
    listed = Examples(paths, examples.labels, {}, "", "list.txt", list(range(1, 13)))
    batches = read_batches(ImageDataset(listed, SMALL, 3, 8), KEYS, 1, number)
    assert [int(next(batches).indices[0]) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(UnreadableImage) as caught:
        next(batches)
    assert str(caught.value) == f"list.txt:6: {bad}: is not an image that PIL can read"
    assert (caught.value.file, caught.value.place) == (str(bad), "list.txt:6")
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(sys.platform != "linux", reason="workers that are forked")
@pytest.mark.parametrize("holds", [0, 6])
def test_a_batch_stays_as_it_is_while_it_is_held(
    examples: Examples, monkeypatch: pytest.MonkeyPatch, holds: int
) -> None:
    """Memory is used again, and fresh memory taken only where all of it is held."""

    def no_more(size: int) -> torch.UntypedStorage:
        raise ZeroDivisionError("fresh memory")

    if not holds:
        monkeypatch.setattr(torch.UntypedStorage, "_new_shared", staticmethod(no_more))
    dataset, keys = ImageDataset(examples, SMALL, 3, 8), KEYS * 3
    alone = [batch.images for batch in read_batches(dataset, keys, 1, 0)]
    held: list[tuple[Tensor, Tensor]] = []
    for batch, expected in zip(read_batches(dataset, keys, 1, 1), alone, strict=True):
        held.append((batch.images, expected))
        assert all(torch.equal(*pair) for pair in held)
        held = held[max(0, len(held) - holds) :]


def broken(image: ImageFile) -> Tensor:
    raise ZeroDivisionError("a bug of ours")


@pytest.mark.parametrize("number", [0, 1])
def test_a_bug_keeps_its_kind(examples: Examples, number: int) -> None:
    with pytest.raises(ZeroDivisionError, match="a bug of ours"):
        next(read_batches(ImageDataset(examples, broken, 3, 8), KEYS, 1, number))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_workers_outlive_signals_that_ask_the_run_to_stop(examples: Examples) -> None:
    batches = read_batches(ImageDataset(examples, SMALL, 3, 8), KEYS, 1, 2)
    got = [next(batches)]
    for child in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM):
            assert child.pid is not None
            os.kill(child.pid, number)
    got += batches
    assert [int(batch.indices[0]) for batch in got] == list(range(12))


def killed(image: ImageFile) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return image


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_killed_worker_is_explained(examples: Examples) -> None:
    with pytest.raises(UserError, match=r"was killed \(.*out of memory: lower data.workers=2"):
        list(read_batches(ImageDataset(examples, killed, 3, 8), KEYS, 1, 2))
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
def test_too_little_shared_memory_is_said_before(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: usage(64 << 20))
    dataset = ImageDataset(examples, SMALL, 3, 224)
    batch = 256 * 3 * 224 * 224
    needed = (2 * 4 + 3) * batch >> 20
    with pytest.raises(UserError, match=rf"64 MiB free, but data.workers=4 may have {needed} MiB"):
        next(read_batches(dataset, KEYS, 256, 4))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=rf"may have {2 * 11 * batch >> 20} MiB"):
        next(read_batches(dataset, KEYS, 256, 4))
    next(read_batches(ImageDataset(examples, SMALL, 3, 8), KEYS, 256, 1))  # fits
    next(read_batches(ImageDataset(examples, SMALL, 3, 8), KEYS, 1 << 30, 0))  # needs none


def run(script: str, folder: Path) -> subprocess.Popen[str]:
    head = f"""
import os, time
from densekit.data.dataset import ImageDataset
from densekit.data.folders import read_folder
from densekit.data.transforms import Preprocessing
from densekit.data.workers import read_batches
from pathlib import Path

examples = read_folder(Path({str(folder)!r}))
keys = [[(0, i % 12)] for i in range(10000)]
"""
    return subprocess.Popen([sys.executable, "-c", head + script], stdout=-1, stderr=-1, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["", "raise SystemExit(0)", "1 / 0"])
def test_a_run_that_forgets_its_workers_still_ends(examples: Examples, ending: str) -> None:
    process = run(
        "small = Preprocessing(resize=None, crop=8).square\n"
        "batches = read_batches(ImageDataset(examples, small, 3, 8), keys, 1, 2)\n"
        f"next(batches)\n{ending}\n",
        Path(examples.root),
    )
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (1 if "/" in ending else 0), err
    assert ("ZeroDivisionError" in err) == ("/" in ending)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells children of a parent's death")
def test_workers_die_with_a_killed_run(examples: Examples) -> None:
    """Even one that is busy and so does not ask whether its parent still lives."""
    process = run(
        "def stuck(image):\n    os.write(1, b'%d\\n' % os.getpid())\n    time.sleep(60)\n"
        "next(read_batches(ImageDataset(examples, stuck, 3, 8), keys, 1, 2))\n",
        Path(examples.root),
    )
    assert process.stdout is not None
    try:
        pids = [int(process.stdout.readline()) for _ in range(2)]
        assert all(alive(pid) for pid in pids)
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_reading_leaves_the_global_generator_alone(examples: Examples) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert len(list(read_batches(ImageDataset(examples, SMALL, 3, 8), KEYS, 1, 0))) == 12
    assert torch.equal(torch.get_rng_state(), before)
