"""Seconds that a person waits, measured from outside: a command is started and watched."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

DENSEKIT = str(Path(sys.executable).with_name("densekit"))
PATIENCE = 300.0


def help_text(folder: Path) -> float:
    """`densekit --help`, from the command to its end."""
    began = time.perf_counter()
    subprocess.run([DENSEKIT, "--help"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_step(folder: Path, variables: Mapping[str, str] | None = None) -> float:
    """`densekit train -c quickstart`, from the command to the line of step 1 in its log.

    A step's line is written once the next step is under way, so this is the longer by one step,
    which takes some hundredths of a second. The digits are written to `folder` by the first call.
    """
    run = folder / f"run-{time.monotonic_ns()}"
    options = (f"loop.output_dir={run}", "loop.log_every=1")
    return _until_logged(
        [DENSEKIT, "train", "-c", "quickstart", *(t for o in options for t in ("-o", o))],
        folder,
        run / "log.jsonl",
        {**os.environ, **(variables or {})},
    )


def first_step_cold(folder: Path) -> float:
    """The same with an empty cache: the kernels are compiled."""
    with tempfile.TemporaryDirectory() as cache:
        return first_step(folder, {"DENSEKIT_CACHE": cache})


def _until_logged(
    command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]
) -> float:
    """Seconds until `log` has a line; the command is ended then."""
    with (folder / "output.txt").open("w+", encoding="utf-8") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output
        )
        try:
            while not (log.exists() and log.stat().st_size):
                waited = time.perf_counter() - began
                if process.poll() is not None or waited > PATIENCE:
                    output.seek(0)
                    raise RuntimeError(f"{' '.join(command)}: no step was made\n{output.read()}")
                time.sleep(0.005)
            return time.perf_counter() - began
        finally:
            process.kill()
            process.wait()
