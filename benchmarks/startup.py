"""Commands measured from outside: started and watched. Seconds that a person waits for a start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track

import rows
from densekit.bench.rounds import Settings, Spread

DENSEKIT = str(Path(sys.executable).with_name("densekit"))
PATIENCE = 300.0


@dataclass(frozen=True)
class Commands:
    """One or two sides that are commands; each is called with a folder that they share."""

    unit: str
    sides: dict[str, Callable[[Path], float]]
    """By what they are called in rows; images/s, or s."""
    settings: dict[str, str | int] = field(default_factory=dict)


def measure_commands(name: str, commands: Commands, settings: Settings) -> rows.Row:
    """One run of each that is not counted, for disk caches and data, and then `rounds`."""
    with tempfile.TemporaryDirectory() as folder:

        def taken() -> list[float]:
            return [side(Path(folder)) for side in commands.sides.values()]

        taken()
        runs = track(range(settings.rounds), name, console=Console(stderr=True))
        measured = [taken() for _ in runs]
    sides = tuple(
        rows.Result(name=side, measured=Spread.of(values))
        for side, values in zip(commands.sides, zip(*measured, strict=True), strict=True)
    )
    ratio = None
    if len(sides) == 2:  # how many times as fast; of memory how many times as much
        turned = commands.unit == "s"
        ratio = Spread.of([b / a if turned else a / b for a, b in measured])
    kept = {**commands.settings, "runs": settings.rounds, "threads": settings.threads}
    return rows.row(name, commands.unit, sides, ratio, kept)


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
