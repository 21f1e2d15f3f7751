"""Rows of benchmarks/results: a comparison each, with all that is needed to judge it.

row_tables.py prints them.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

import torch
import torchvision

import densekit
from densekit import distributed
from densekit.bench.rounds import (
    Candidate,
    RoundSample,
    Settings,
    Spread,
    activation_bytes,
    images_per_second,
)
from densekit.config import Section

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OTHERS = ("memory.json",)  # there; benchmarks/memory.py writes and reads it
MEASURED = ("src", "pyproject.toml", "benchmarks/*.py")  # what a number depends on


class Machine(Section):
    """What it ran on; no names of hosts."""

    cpu: str
    cores: int
    instructions: str
    """The best that torch uses here, such as AVX512 bf16."""
    gpu: str | None = None


class Result(Section):
    """The measurements of one candidate."""

    name: str
    op: str | None = None
    """What computed densekit's dense blocks in training."""
    measured: Spread
    """Images per second over the rounds, or seconds where the row's unit is s."""
    activation_bytes: int | None = None
    """None where the system does not tell."""
    keeps_memory: bool = False


class Row(Section):
    """One comparison, or one number where there is nothing to compare with."""

    name: str
    """benchmark/comparison; the benchmark names the file."""
    unit: str
    """images/s, or s."""
    sides: tuple[Result, ...]
    """One or two; densekit's first."""
    ratio: Spread | None
    """How many times as fast the first side is, over the rounds."""
    settings: dict[str, str | int]
    machine: Machine
    versions: dict[str, str]
    commit: str | None
    """`+dirty` where sources were changed since; None outside a checkout."""
    date: str


def result(candidate: Candidate, samples: Sequence[RoundSample], images: int) -> Result:
    """Of the samples of a candidate, in steps of `images` images."""
    return Result(
        name=candidate.name,
        op=samples[-1].op,
        measured=images_per_second(samples, images),
        activation_bytes=activation_bytes(samples),
        keeps_memory=all(sample.keeps_memory for sample in samples),
    )


def speed_ratio(pairs: Sequence[tuple[RoundSample, ...]]) -> Spread:
    """How many times as fast the first of two candidates is; round by round, so that what slows
    the machine down slows both."""
    return Spread.of([other.step_seconds / one.step_seconds for one, other in pairs])


def settings_of(settings: Settings) -> dict[str, str | int]:
    """As rows have them: a round of two is a pair."""
    values = settings.model_dump()
    return {"pairs": values.pop("rounds"), **values}


def row(
    name: str,
    unit: str,
    sides: tuple[Result, ...],
    ratio: Spread | None,
    settings: dict[str, str | int],
) -> Row:
    """The measurement with where, when and of what it was made."""
    return Row(
        name=name,
        unit=unit,
        sides=sides,
        ratio=ratio,
        settings=settings,
        machine=machine(),
        versions=versions(),
        commit=commit(),
        date=date.today().isoformat(),
    )


def machine() -> Machine:
    bf16 = " bf16" if torch.cpu._is_avx512_bf16_supported() else ""
    return Machine(
        cpu=cpu(),
        cores=distributed.cores(),
        instructions=torch.backends.cpu.get_cpu_capability() + bf16,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )


def cpu() -> str:
    """The processor's name as Linux has it; elsewhere its architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "densekit": densekit.__version__,
    }


def commit() -> str | None:
    """Of the sources that are measured."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+dirty" if _git("status", "--porcelain", "--", *MEASURED) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


# Files: JSON lists, a row a line ------------------------------------------------------------


def read(folder: Path = RESULTS) -> list[Row]:
    """Every row, file by file, oldest first."""
    files = [file for file in sorted(folder.glob("*.json")) if file.name not in OTHERS]
    return [row for file in files for row in _read_file(file)]


def append(row: Row, folder: Path = RESULTS) -> Path:
    """Adds the row to its benchmark's file, which it returns."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{row.name.partition('/')[0]}.json"
    known = _read_file(file) if file.exists() else []
    lines = [json.dumps(row.model_dump(mode="json")) for row in [*known, row]]
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    return file


def newest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each name on each machine, in the order of their first rows."""
    return list({(row.name, row.machine): row for row in rows}.values())


def _read_file(file: Path) -> list[Row]:
    return [Row.model_validate(row) for row in json.loads(file.read_text(encoding="utf-8"))]
