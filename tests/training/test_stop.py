"""SIGTERM and SIGINT: the run stops with its state saved, on all ranks at one step."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from densekit.infer import engines
from densekit.stop import StopRequest
from densekit.training.state import step_of
from runs import (
    STEPS,
    WAIT,
    Options,
    Runs,
    Started,
    assert_same_run,
    children,
    last_step,
    states,
    torchrun,
    wait_for,
)

slow = pytest.mark.slow
BOTH = [signal.SIGTERM, signal.SIGINT]


def stopped_at_its_last_step(started: Started) -> None:
    """Every step that the log has is in the newest state, and it is the end of neither."""
    assert "stopped after step" in started.output
    assert "Traceback" not in started.output
    assert step_of(states(started.folder)[-1]) == last_step(started.folder) < STEPS


# A request ----------------------------------------------------------------------------------


def test_a_request_is_only_noted_and_the_old_handlers_return() -> None:
    before = [signal.getsignal(number) for number in BOTH]
    with StopRequest() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher may repeat it
    assert [signal.getsignal(number) for number in BOTH] == before
    with ThreadPoolExecutor(1) as pool:  # of a notebook or a server: Python takes no handlers there
        assert pool.submit(lambda: StopRequest().__enter__().asked).result() is False
    assert [signal.getsignal(number) for number in BOTH] == before


# One process --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", BOTH)
def test_the_state_is_saved_and_the_run_goes_on(
    runs: Runs, tmp_path: Path, number: signal.Signals
) -> None:
    """As a terminal's Ctrl-C does it: the signal reaches the loader's workers too."""
    options: Options = {"data.workers": 2, "loop.save_every": 100}
    started = runs.start(tmp_path / "run", options)
    assert started.until_step(3)
    (process,) = started.processes
    assert process.pid
    workers = children(process.pid)
    assert len(workers) == 2
    for pid in [*workers, process.pid]:
        os.kill(pid, number)
    assert started.wait() == [75], started.output
    stopped_at_its_last_step(started)
    runs.train(tmp_path / "run", options)
    assert_same_run(tmp_path / "run", runs.whole())


def slowly() -> None:
    """A process's prelude: a step takes a second, so that a signal falls within it."""
    standardize = engines.standardize

    def sleepy(images: Tensor, *rest: Any) -> Tensor:
        time.sleep(1.0)
        return standardize(images, *rest)

    engines.standardize = sleepy


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=slow)])
def test_a_second_sigint_quits_at_once(runs: Runs, tmp_path: Path, ranks: int) -> None:
    """It may cost what was not saved, and nothing else."""
    started = runs.start(tmp_path / "run", {"loop.save_every": 100}, ranks, slowly)
    assert started.until_step(1)
    started.send(signal.SIGINT)
    time.sleep(0.2)
    assert started.alive
    started.send(signal.SIGINT)
    assert set(started.wait()) <= {130, -signal.SIGINT}, started.output
    assert "Traceback" not in started.output
    assert "bug" not in started.output
    assert "stopped after" not in started.output
    assert last_step(tmp_path / "run") <= 2
    runs.train(tmp_path / "run", ranks=ranks)
    assert_same_run(tmp_path / "run", runs.whole(ranks=ranks))


@slow
@pytest.mark.parametrize("number", BOTH)
def test_the_command_as_a_user_starts_it(
    runs: Runs, tmp_path: Path, number: signal.Signals
) -> None:
    process = runs.command(tmp_path / "run", {"data.workers": 2})
    wait_for(lambda: last_step(tmp_path / "run") >= 3, process)
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 75, output
    assert "the same command resumes" in output
    process = runs.command(tmp_path / "run", {"data.workers": 2})
    assert process.wait(timeout=WAIT) == 0
    assert_same_run(tmp_path / "run", runs.whole())


# Several ranks ------------------------------------------------------------------------------


def test_ranks_stop_at_one_step_whichever_was_asked(runs: Runs, tmp_path: Path) -> None:
    started = runs.start(tmp_path / "run", ranks=2)
    assert started.until_step(3)
    started.send(signal.SIGTERM, 1)
    assert started.wait() == [75, 75], started.output
    stopped_at_its_last_step(started)
    assert started.output.count("stopped after step") == 1
    runs.train(tmp_path / "run", ranks=2)
    assert_same_run(tmp_path / "run", runs.whole(ranks=2))


@slow
def test_what_torchrun_makes_of_it(runs: Runs, tmp_path: Path) -> None:
    """docs/resume.md says it: torchrun hands SIGTERM on, waits for its ranks and exits 1."""
    process = runs.command(tmp_path / "run", launcher=torchrun(2))
    wait_for(lambda: last_step(tmp_path / "run") >= 3, process)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 1, output
    assert "stopped after step" in output
    assert step_of(states(tmp_path / "run")[-1]) == last_step(tmp_path / "run")
    process = runs.command(tmp_path / "run", launcher=torchrun(2))
    output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    assert_same_run(tmp_path / "run", runs.whole(ranks=2))


@slow
def test_torchrun_restarts_a_run_whose_rank_was_killed(runs: Runs, tmp_path: Path) -> None:
    process = runs.command(tmp_path / "run", launcher=torchrun(2, "--max-restarts=2"))
    wait_for(lambda: last_step(tmp_path / "run") >= 4, process)
    ranks = children(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 0, output
    assert_same_run(tmp_path / "run", runs.whole(ranks=2))


# A rank that fails --------------------------------------------------------------------------


def failed(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=WAIT)
    assert process.returncode == 1, output
    return " ".join(output.split())


@pytest.fixture
def spoilt(runs: Runs, tmp_path: Path) -> tuple[Path, str]:
    """A copy of the images, the last of the training list unreadable: one rank comes to it."""
    copy = Path(shutil.copytree(runs.data, tmp_path / "digits"))
    name = (copy / "train_list.txt").read_text().split()[-2]
    (copy / name).write_bytes(b"not an image")
    return copy, name


def test_a_rank_that_raises_is_named_by_the_others(
    runs: Runs, tmp_path: Path, spoilt: tuple[Path, str]
) -> None:
    root, name = spoilt
    options = {"data.root": root, "data.check_files": 0, "data.cache": "off"}
    started = runs.start(tmp_path / "run", options, ranks=3)
    codes = started.wait()
    (guilty,) = (rank for rank, code in enumerate(codes) if code == 2)
    assert codes.count(3) == 2, "the others'"
    said = " ".join(started.output.split())
    assert f"train_list.txt:130: {root / name}: is not an image" in said
    for rank in {0, 1, 2} - {guilty}:
        assert f"rank {rank} stops: rank {guilty} failed: UserError: " in said
    assert "Traceback" not in said


def test_what_all_ranks_find_is_said_once(
    runs: Runs, tmp_path: Path, spoilt: tuple[Path, str]
) -> None:
    """One of them decodes the images that all of them keep."""
    root, name = spoilt
    started = runs.start(tmp_path / "run", {"data.root": root, "data.check_files": 0}, ranks=2)
    assert started.wait() == [2, 2]
    said = " ".join(started.output.split())
    assert said.count(f"train_list.txt:130: {root / name}: is not an image") == 1
    assert said.count("-o data.on_bad_image=skip") == 1
    assert "Traceback" not in said


@slow
def test_torchrun_shows_the_error_of_the_rank_that_raised(
    runs: Runs, tmp_path: Path, spoilt: tuple[Path, str]
) -> None:
    root, name = spoilt
    options: Options = {"data.root": root, "data.check_files": 0, "data.cache": "off"}
    said = failed(runs.command(tmp_path / "run", options, torchrun(2)))
    assert f"{name}: is not an image" in said
    assert "train_list.txt:130" in said


@slow
def test_a_first_rank_that_stands_still_is_named(runs: Runs, tmp_path: Path) -> None:
    """Within loop.rank_timeout, here 5 s, and the seconds that finding the culprit takes; then
    torchrun gives the rank that stands still 30 s to end before it kills it."""
    process = runs.command(tmp_path / "run", {"loop.rank_timeout": 5}, torchrun(2))
    wait_for(lambda: last_step(tmp_path / "run") >= 3, process)
    os.kill(children(process.pid)[0], signal.SIGSTOP)
    said = failed(process)
    assert re.search("rank 1 stops: rank 0 (died, or stands still|is stuck)", said)


@slow
def test_a_rank_that_stands_still_is_named(runs: Runs, tmp_path: Path) -> None:
    started = runs.start(tmp_path / "run", {"loop.rank_timeout": 5}, ranks=3)
    assert started.until_step(3)
    started.send(signal.SIGSTOP, 1)
    started.processes[0].join(WAIT)
    started.processes[2].join(WAIT)
    assert started.processes[0].exitcode == started.processes[2].exitcode == 3
    said = " ".join(started.output.split())
    assert re.search("rank 0 stops: rank 1 (died, or stands still|is stuck)", said), said
    started.send(signal.SIGKILL)


def test_rank_0_that_dies_without_a_launcher_is_named(runs: Runs, tmp_path: Path) -> None:
    """It takes the store along in which the ranks meet (docs/slurm.sbatch starts them so)."""
    started = runs.start(tmp_path / "run", ranks=2)
    assert started.until_step(3)
    started.send(signal.SIGKILL, 0)
    assert started.wait() == [-signal.SIGKILL, 3]
    assert "rank 1 stops: rank 0 died" in " ".join(started.output.split())
    assert "Traceback" not in started.output
    assert "bug" not in started.output


def test_a_rank_that_dies_takes_the_others_down(runs: Runs, tmp_path: Path) -> None:
    started = runs.start(tmp_path / "run", ranks=2)
    assert started.until_step(3)
    started.send(signal.SIGKILL, 1)
    codes = started.wait()
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, 75)
    assert "rank 1 died" in " ".join(started.output.split())
    runs.train(tmp_path / "run", ranks=2)
    assert_same_run(tmp_path / "run", runs.whole(ranks=2))
