"""docs/slurm.sbatch, with stand-ins for SLURM's commands that do what it does with them."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from densekit.training.state import step_of
from runs import WAIT, Options, Runs, assert_same_run, free_port, last_step, states, wait_for

SBATCH = Path(__file__).parents[2] / "docs" / "slurm.sbatch"
RANKS = 2

SRUN = """
import os, subprocess, sys
expected = ["--kill-on-bad-exit=0", "--wait=60", "--cpus-per-task=1", "--cpu-bind=none"]
options, arguments = sys.argv[1:5], sys.argv[5:]
assert options == expected
ranks = [
    subprocess.Popen(arguments, env={**os.environ, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)})
    for n in range(int(os.environ["SLURM_NTASKS"]))
]
open(os.environ["PIDS"], "w").write(" ".join(str(rank.pid) for rank in ranks))
sys.exit(max(rank.wait() for rank in ranks))
"""
SCONTROL = """
import os, sys
if sys.argv[1:] == ["show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]:
    print("127.0.0.1")
else:
    open(os.environ["ASKED"], "a").write(" ".join(sys.argv[1:]))
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment as in a job of one node and RANKS tasks."""
    commands = tmp_path / "bin"
    commands.mkdir()
    scripts = {
        "srun": f"#!{sys.executable}{SRUN}",
        "scontrol": f"#!{sys.executable}{SCONTROL}",
        "python": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n',
    }
    for name, text in scripts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(stat.S_IRWXU)
    return {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "GLOO_SOCKET_IFNAME": "lo",
        "SLURM_JOB_ID": str(free_port() - 20_000),  # the script's port is 20000 + this
        "SLURM_JOB_NODELIST": "node",
        "SLURM_NTASKS": str(RANKS),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_NTASKS_PER_NODE": str(RANKS),
        "PIDS": str(tmp_path / "pids"),
        "ASKED": str(tmp_path / "asked"),
    }


def job(runs: Runs, slurm: dict[str, str], folder: Path, options: Options | None = None):
    """A job of the script, as slurmd starts it."""
    _, *arguments = runs.arguments(folder, options)
    return subprocess.Popen(
        ["bash", str(SBATCH), *arguments],
        env=slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_back_into_the_queue(
    runs: Runs, slurm: dict[str, str], tmp_path: Path
) -> None:
    first = job(runs, slurm, tmp_path / "run")
    wait_for(lambda: last_step(tmp_path / "run") >= 3, first)
    for pid in Path(slurm["PIDS"]).read_text().split():
        os.kill(int(pid), signal.SIGTERM)  # --signal=TERM@300 reaches every task of a step
    output, _ = first.communicate(timeout=WAIT)
    assert first.returncode == 75, output
    assert Path(slurm["ASKED"]).read_text() == f"requeue {slurm['SLURM_JOB_ID']}"
    assert step_of(states(tmp_path / "run")[-1]) == last_step(tmp_path / "run")

    Path(slurm["ASKED"]).unlink()
    second = job(runs, slurm, tmp_path / "run")
    output, _ = second.communicate(timeout=WAIT)
    assert second.returncode == 0, output
    assert not Path(slurm["ASKED"]).exists(), "a finished run is not queued again"
    assert_same_run(tmp_path / "run", runs.whole(ranks=RANKS))


@pytest.mark.slow
def test_a_mistake_ends_the_job(runs: Runs, slurm: dict[str, str], tmp_path: Path) -> None:
    wrong = job(runs, slurm, tmp_path / "run", {"data.root": tmp_path / "nowhere"})
    output, _ = wrong.communicate(timeout=WAIT)
    assert wrong.returncode == 2, output
    assert not Path(slurm["ASKED"]).exists()


def test_the_script_is_bash_and_asks_for_what_it_needs() -> None:
    assert shutil.which("bash")
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    text = SBATCH.read_text()
    for option in ("--signal=TERM@300", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {option}\n" in text
