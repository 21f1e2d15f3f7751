"""From a command's start to the answer of one image, and the memory that it held: by engine.

`densekit predict` of the artifact, which torch computes, and of its exports.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import densekit_steps
from densekit.infer.exported import Target
from densekit_steps import Workload
from startup import DENSEKIT, Commands

Measure = Literal["s", "MiB"]
MEASURES: dict[Measure, str] = {"s": "engines-start", "MiB": "engines-memory"}
EXPORTS: tuple[Target, ...] = get_args(Target)


def commands(work: Workload, image: str, folder: Path) -> dict[str, Commands]:
    """`engines-start/...` in seconds and `engines-memory/...` at the peak, each beside torch's.

    The networks are written to `folder`, once for all rows, by calls that are not counted.
    """
    image, found = str(Path(image).absolute()), {}
    settings: dict[str, str | int] = {"model": work.model, "image_size": work.image_size}
    for to in EXPORTS:
        for measure, benchmark in MEASURES.items():
            sides: dict[str, Callable[[Path], float]] = {
                f"densekit predict, {said}": partial(answer, work, each, image, folder, measure)
                for said, each in ((to, to), ("torch", None))
            }
            found[f"{benchmark}/{to}"] = Commands(measure, sides, settings)
    return found


def answer(
    work: Workload, to: Target | None, image: str, networks: Path, measure: Measure, folder: Path
) -> float:
    """Of the command's whole process."""
    network = densekit_steps.written(work, to, networks)
    words: Sequence[str] = [DENSEKIT, "predict", str(network), image, "--device", "cpu"]
    with (folder / "output.txt").open("w+", encoding="utf-8") as output:
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(words)}: {process.returncode}\n{output.read()}")
    return seconds if measure == "s" else usage.ru_maxrss / 1024
