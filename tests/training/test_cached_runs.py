"""Runs that keep decoded images are the runs that do not, bit for bit."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from densekit.data import decoded
from runs import WAIT, Options, Runs, assert_same_run, densekit, lines

slow = pytest.mark.slow
OFF: Options = {"data.cache": "off"}


def notes(folder: Path) -> list[str]:
    (start,) = [line for line in lines(folder) if line.get("event") == "start"]
    return [note for note in start["notes"] if note.startswith("cache: ")]


def test_a_run_from_memory_is_the_run_from_files(runs: Runs) -> None:
    assert notes(runs.whole()) == ["cache: 1 MB, 173 images of 28x28, in memory"]
    assert notes(runs.whole(OFF)) == []
    assert_same_run(runs.whole(), runs.whole(OFF))


@pytest.mark.parametrize(
    ("ranks", "workers"), [(1, 0), pytest.param(1, 2, marks=slow), pytest.param(3, 2, marks=slow)]
)
def test_a_killed_run_goes_on_from_a_file(
    runs: Runs, tmp_path: Path, ranks: int, workers: int
) -> None:
    disk = {"data.cache": "disk", "data.cache_dir": tmp_path, "data.workers": workers}
    folder = tmp_path / "run"
    runs.kill(folder, 4, disk, ranks)  # once it has read a few steps
    kept = {file.name: file.stat().st_ino for file in tmp_path.glob("pixels/*.pixels")}
    assert kept
    runs.train(folder, disk, ranks)
    for name, inode in kept.items():
        assert (tmp_path / "pixels" / name).stat().st_ino == inode, "it was not written again"
    assert len(list(tmp_path.glob("pixels/*.pixels"))) == 2
    assert_same_run(folder, runs.whole(OFF, ranks))


@slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_one_memory(runs: Runs, tmp_path: Path, ranks: int) -> None:
    folder = runs.killed(tmp_path / "run", 5, {"data.workers": 1}, ranks)
    runs.train(folder, {"data.workers": 2}, ranks)
    assert_same_run(folder, runs.whole(OFF, ranks))


def decode_slowly(begun: Path, seconds: float) -> None:
    """A process's prelude: the training images take so long to decode."""
    pixels = decoded._all_pixels

    def slowly(examples: Any, *how: Any) -> Iterator[Any]:
        if len(examples) > 100:
            begun.touch()
            time.sleep(seconds)
        yield from pixels(examples, *how)

    decoded._all_pixels = slowly


@slow
@pytest.mark.parametrize("place", ["ram", "disk"])
def test_ranks_wait_for_images_that_take_long_to_decode(
    runs: Runs, tmp_path: Path, place: str
) -> None:
    """Longer than they wait for one another."""
    own = {"data.cache": place, "data.cache_dir": tmp_path / "kept", "loop.rank_timeout": 5}
    slowly = partial(decode_slowly, tmp_path / "begun", 12.0)
    started = runs.start(tmp_path / "run", own, 3, slowly)
    assert started.wait() == [0] * 3, started.output
    assert (tmp_path / "begun").exists()
    assert_same_run(tmp_path / "run", runs.whole(OFF, 3))


@slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_while_images_are_decoded_ends_the_run(
    runs: Runs, tmp_path: Path, victim: int
) -> None:
    slowly = partial(decode_slowly, tmp_path / "begun", 300.0)
    started = runs.start(tmp_path / "run", {"data.cache": "ram"}, 2, slowly)
    until = time.monotonic() + WAIT
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < until, started.output
        time.sleep(0.05)
    started.send(signal.SIGKILL, victim)
    codes = started.wait()
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 3
    assert f"rank {1 - victim} stops: rank {victim} died" in " ".join(started.output.split())


def test_a_dry_run_says_it_and_keeps_nothing(runs: Runs, tmp_path: Path) -> None:
    disk = {"data.cache": "disk", "data.cache_dir": tmp_path / "kept"}
    done = densekit(*runs.arguments(tmp_path / "run", disk), "--dry-run")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert f"cache: 1 MB, 173 images of 28x28, in {tmp_path}/kept/pixels; its files" in said
    assert not (tmp_path / "kept").exists()
