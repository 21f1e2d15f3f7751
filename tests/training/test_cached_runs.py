"""Runs that keep decoded images are the runs that do not, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from runs import Options, Runs, assert_same_run, densekit, lines

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
    kept = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("pixels/*.pixels")}
    assert kept
    runs.train(folder, disk, ranks)
    for name, time in kept.items():
        assert (tmp_path / "pixels" / name).stat().st_mtime_ns == time, "it was not written again"
    assert len(list(tmp_path.glob("pixels/*.pixels"))) == 2
    assert_same_run(folder, runs.whole(OFF, ranks))


@slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_one_memory(runs: Runs, tmp_path: Path, ranks: int) -> None:
    folder = runs.killed(tmp_path / "run", 5, {"data.workers": 1}, ranks)
    runs.train(folder, {"data.workers": 2}, ranks)
    assert_same_run(folder, runs.whole(OFF, ranks))


def test_a_dry_run_says_it_and_keeps_nothing(runs: Runs, tmp_path: Path) -> None:
    disk = {"data.cache": "disk", "data.cache_dir": tmp_path / "kept"}
    done = densekit(*runs.arguments(tmp_path / "run", disk), "--dry-run")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert f"cache: 1 MB, 173 images of 28x28, in {tmp_path}/kept/pixels, whose files" in said
    assert not (tmp_path / "kept").exists()
