"""Runs on shards are the runs on the files that were packed, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from runs import STEPS, Runs, assert_same_run, children, densekit, last_step, torchrun, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    done = densekit("data", "pack", runs.data, folder, "--shard-images", "50")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_on_shards_is_the_run_on_their_files(runs: Runs, shards: Path) -> None:
    assert_same_run(runs.whole({"data.root": shards}), runs.whole())


def test_a_run_that_is_killed_goes_on_with_other_workers(
    runs: Runs, shards: Path, tmp_path: Path
) -> None:
    folder = runs.killed(tmp_path / "run", 5, {"data.root": shards})
    assert_same_run(runs.train(folder, {"data.root": shards, "data.workers": 2}), runs.whole())


def test_a_torchrun_that_is_killed_goes_on_with_other_ranks(
    runs: Runs, shards: Path, tmp_path: Path
) -> None:
    """On shards as on files, to the bit: what two ranks had read, three do not read again."""
    options = {"model.sync_bn": True, "data.root": shards, "data.workers": 2, "loop.save_every": 1}
    process = runs.command(tmp_path / "run", options, torchrun(2))
    wait_for(lambda: last_step(tmp_path / "run") >= 4, process)
    for pid in (process.pid, *children(process.pid)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    step = last_step(tmp_path / "run")
    assert 4 <= step < STEPS, "it was over before the kill"
    on_files = Path(shutil.copytree(tmp_path / "run", tmp_path / "files"))
    runs.train(tmp_path / "run", options, ranks=3)
    runs.train(on_files, {**options, "data.root": runs.data, "data.workers": 0}, ranks=3)
    assert_same_run(tmp_path / "run", on_files)


def test_evaluate_counts_shards_as_their_files(runs: Runs, shards: Path) -> None:
    best = runs.whole() / "best"
    said = [
        densekit("evaluate", best, "--data", place, "--json", "--bootstrap", "0")
        for place in (runs.data, shards)
    ]
    assert [each.returncode for each in said] == [0, 0], said[1].stderr
    one, other = (
        [line for line in each.stdout.splitlines() if '"ips"' not in line] for each in said
    )
    assert one == other
