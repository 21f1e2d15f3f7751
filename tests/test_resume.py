"""A run that was killed and goes on is the run that was not: bit for bit, whatever killed it."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from runs import (
    STEPS,
    Options,
    Runs,
    Started,
    assert_same_run,
    last_step,
    lines,
    newest_state,
    numbers,
    states,
    torchrun,
    weights,
)

from densekit import artifact
from densekit.checkpoint import step_of
from densekit.config import read_yaml

FEATURES: Options = {"loop.accumulation": 2, "model.sync_bn": True, "optim.clip_norm": 1.0}
slow = pytest.mark.slow


def kill_at(started: Started, step: int, later: float = 0.0) -> bool:
    """SIGKILL to every rank once `step` is logged; False if the run was faster."""
    if not started.until_step(step):
        return False
    time.sleep(later)
    landed = started.alive
    started.kill()
    return landed


def killed(runs: Runs, folder: Path, step: int, options: Options | None = None, ranks: int = 1) -> Path:
    """A run that was killed after `step`."""
    assert kill_at(runs.start(folder, options, ranks), step), "the run was over before the kill"
    return folder


# Killed at any moment -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_ends_as_it_would_have(runs: Runs, tmp_path: Path, workers: int) -> None:
    options = {"data.workers": workers}
    for step in (3, 8):  # within the first epoch, within the second
        killed(runs, tmp_path / "run", step, options)
    runs.train(tmp_path / "run", options)
    assert_same_run(tmp_path / "run", runs.whole())
