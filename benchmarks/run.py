"""Speed against torchvision, and how long commands take to start; what `make bench` runs.

    python benchmarks/run.py                       everything, two to three hours on 2 cores
    python benchmarks/run.py train inference/fp32  a benchmark, or one comparison of one
    python benchmarks/run.py --quick train/tuned   tiny and once: whether it works, no rows

The machine must be otherwise idle. Rows go to benchmarks/results; `make docs` puts the newest
into the README.
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

import cache_sides
import densekit_steps
import inference_sides
import input_sides
import photo_sides
import row_tables
import rows
import scoring_sides
import start_sides
import startup
import torchvision_steps
from densekit.bench.reading import BATCHES
from densekit.bench.rounds import Candidate, Settings, StepFunction, measure_rounds
from densekit.config import UserError, nearest
from densekit.data.splits import open_examples
from densekit.precision import Format, resolve, resolve_device
from densekit_steps import Workload
from startup import Commands, measure_commands

SAMPLE = "imagenet-sample"  # in the folder that DENSEKIT_TEST_DATA names
LOG_WIDTH = 200  # columns of a table that goes to a file
FILES = 128  # that `predict` reads in a step
SERVED = 128  # that 64 clients send to a server in a step
TUNED = (resolve().name, "channels_last")  # in the precision that densekit takes here
# Without bf16 instructions torchvision took 20 s for a step of densenet_bc_100_12.
PRECISIONS: tuple[Format, ...] = ("fp32", "bf16") if TUNED[0] == "bf16" else ("fp32",)
LAYOUTS = {"contiguous": "NCHW", "channels_last": "channels_last"}
NETWORKS = (
    Workload(),
    Workload(model="densenet_bc_100_12", image_size=32, batch_size=64),
)
LARGE = tuple(Workload(model=f"densenet{depth}") for depth in (161, 201, 264))


@dataclass(frozen=True)
class Comparison:
    ours: Candidate
    theirs: Candidate
    work: Workload
    reads: bool = False
    """A step is BATCHES batches."""
    elsewhere: tuple[bool, bool] = (False, False)
    """Which sides compute in a process of their own, whose memory is not seen."""


def comparisons(quick: bool, list_file: str | None, folder: str = "") -> dict[str, Comparison]:
    """By name: benchmark/comparison. In `folder` some make files that they read."""

    def shrink(work: Workload) -> Workload:
        small = {"image_size": min(work.image_size, 64), "batch_size": 2}
        return work.model_copy(update=small if quick else {})

    work = shrink(Workload())
    found = {**training(work), **inference(work)}
    engines = inference_sides.engines(work, PRECISIONS, Path(folder))
    found |= {n: Comparison(*of) for n, of in engines.items()}
    for network in map(shrink, NETWORKS):
        found.update(lean(network))
    for network in map(shrink, LARGE):
        found.update(lean_large(network))
    found |= {n: Comparison(*of) for n, of in cache_sides.sides(folder, quick).items()}
    if list_file is None:
        return found
    files = open_examples(list_file).paths[: 4 if quick else None]
    predicted = inference_sides.files(work, files[:FILES], TUNED[0], Path(folder))
    for name, of in predicted.items():
        found[name] = Comparison(*of, elsewhere=(False, "paddle" in name))
    served = inference_sides.serving(work, files[:SERVED], PRECISIONS)
    for name, of in served.items():
        found[name] = Comparison(*of, elsewhere=(True, "bare" not in name))
    scored = scoring_sides.scoring(work, files, PRECISIONS)
    found |= {name: Comparison(*of) for name, of in scored.items()}
    return {**found, **reading(work, list_file, folder)}


def commands(quick: bool, list_file: str | None, folder: str = "") -> dict[str, Commands]:
    """By name: those that are measured from outside."""
    found = {
        f"startup/{name}": Commands("s", {"densekit": seconds})
        for name, seconds in (
            ("help", startup.help_text),
            ("quickstart-first-step", startup.first_step),
            ("quickstart-first-step-cold", startup.first_step_cold),
        )
    }
    if list_file is None:
        return found
    work = Workload(image_size=32) if quick else Workload()
    paths = open_examples(list_file).paths
    if all(map(find_spec, ("onnxruntime", "openvino", "nncf"))):
        found |= start_sides.commands(work, paths[0], Path(folder))
    return found | scoring_sides.commands(work, paths, TUNED[0], quick)


def training(work: Workload) -> dict[str, Comparison]:
    """A step as `densekit train` makes it, with what the tables in densekit.precision say."""

    def ours(keep_memory: bool = True) -> Candidate:
        name = "densekit train" + ("" if keep_memory else ", allocator as it comes")
        return Candidate(name, partial(densekit_steps.training, work), keep_memory)

    peer = partial(_torchvision, torchvision_steps.training, work)
    return {
        "train/as-it-comes": Comparison(ours(), peer("fp32", "contiguous"), work),
        "train/tuned": Comparison(ours(), peer(*TUNED), work),
        "train/tuned-allocator": Comparison(ours(), peer(*TUNED, keep_memory=True), work),
        "compiled/train": Comparison(ours(), peer(*TUNED, compiled=True), work),
        "train/allocator-alone": Comparison(ours(), ours(keep_memory=False), work),
    }


def lean(work: Workload) -> dict[str, Comparison]:
    """The same against all that torchvision can be set to, in the same precision and allocator.

    lean is against eager torchvision; lean-compiled against a compiled one, which takes minutes.
    """
    peer = torchvision_steps.training
    return {
        f"lean{'-compiled' * compiled}/{work.model}-{precision}-{layout.lower()}": Comparison(
            _ours(work, precision),
            _torchvision(peer, work, precision, memory_format, compiled, keep_memory=True),
            work,
        )
        for compiled in (False, True)
        for precision in PRECISIONS
        for memory_format, layout in LAYOUTS.items()
    }


def lean_large(work: Workload) -> dict[str, Comparison]:
    """The larger networks in this machine's precision, against torchvision's best eager setting."""
    peer = _torchvision(torchvision_steps.training, work, *TUNED, keep_memory=True)
    name = f"lean-large/{work.model}-{'-'.join(TUNED)}"
    return {name: Comparison(_ours(work, TUNED[0]), peer, work)}


def _ours(work: Workload, precision: str) -> Candidate:
    step = partial(densekit_steps.training, work, precision)
    return Candidate(f"densekit train {precision}", step, keep_freed_memory=True)


def inference(work: Workload) -> dict[str, Comparison]:
    """A batch as `densekit evaluate` computes it: in fp32, or in bf16 where that is asked for."""

    def ours(precision: str, keep_memory: bool = True) -> Candidate:
        name = f"densekit, {precision}" + ("" if keep_memory else ", allocator as it comes")
        return Candidate(name, partial(densekit_steps.inference, work, precision), keep_memory)

    peer = partial(_torchvision, torchvision_steps.inference, work)
    fp32, bf16 = ours("fp32"), ours("bf16")
    best, best_bf16 = ("fp32", "channels_last"), ("bf16", "channels_last")
    sides = {
        "inference/as-it-comes": (fp32, peer("fp32", "contiguous")),
        "inference/fp32": (fp32, peer(*best)),
        "inference/fp32-allocator": (fp32, peer(*best, keep_memory=True)),
        "inference/bf16-as-it-comes": (bf16, peer("fp32", "contiguous")),
        "inference/bf16": (bf16, peer(*best_bf16)),
        "inference/bf16-allocator": (bf16, peer(*best_bf16, keep_memory=True)),
        "inference/allocator-alone": (fp32, ours("fp32", keep_memory=False)),
        "compiled/inference": (ours(TUNED[0]), peer(*TUNED, compiled=True)),
    }
    return {
        name: Comparison(*pair, work)
        for name, pair in sides.items()
        if "bf16" in PRECISIONS or not name.startswith("inference/bf16")
    }


def reading(work: Workload, list_file: str, folder: str) -> dict[str, Comparison]:
    """The next training batches, read by one worker."""
    of_sample = input_sides.sides(list_file, work)
    sides = {name: (*pair, work) for name, pair in of_sample.items()}
    sides |= photo_sides.sides(list_file, work, folder)
    return {name: Comparison(*each, True, (True, True)) for name, each in sides.items()}


def _torchvision(
    make: Callable[..., StepFunction],
    work: Workload,
    precision: str,
    memory_format: str,
    compiled: bool = False,
    keep_memory: bool = False,
) -> Candidate:
    words = ["torchvision", LAYOUTS[memory_format], precision]
    words += ["compiled"] * compiled + ["memory kept"] * keep_memory
    step = partial(make, work, precision, memory_format, compiled)
    return Candidate(", ".join(words), step, keep_memory)


# Measuring ----------------------------------------------------------------------------------


def measure(name: str, comparison: Comparison, settings: Settings) -> rows.Row:
    """All rounds of one comparison."""
    ours, theirs, work = comparison.ours, comparison.theirs, comparison.work
    images = work.batch_size * (BATCHES if comparison.reads else 1)
    if comparison.reads:  # a second thread waits in turns, on a core that a worker could use
        settings = settings.model_copy(update={"threads": 1})
    rounds = measure_rounds([ours, theirs], settings)
    pairs = list(track(rounds, name, total=settings.rounds, console=Console(stderr=True)))
    results = [
        rows.result(candidate, samples, images)
        for candidate, samples in zip((ours, theirs), zip(*pairs, strict=True), strict=True)
    ]
    results = [
        each.model_copy(update={"activation_bytes": None}) if unseen else each
        for each, unseen in zip(results, comparison.elsewhere, strict=True)
    ]
    device = resolve_device(work.device).type
    said = {**work.model_dump(), "device": device, **rows.settings_of(settings)}
    return rows.row(name, "images/s", tuple(results), rows.speed_ratio(pairs), said)


def select(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Those of `known` that are named, or whose benchmark is; all without names."""
    for name in names:
        if not any(name in (one, one.partition("/")[0]) for one in known):
            raise UserError(
                f'there is no benchmark "{name}"{nearest(name, known)} (input needs --images LIST, '
                f"or {SAMPLE}.tar in the folder that DENSEKIT_TEST_DATA names; bf16 needs a "
                "processor that has instructions for it)"
            )
    return [n for n in known if not names or n in names or n.partition("/")[0] in names]


def sample_list(folder: str) -> str | None:
    """The list of the ImageNet sample, unpacked to `folder`; None where there is no sample."""
    archive = Path(os.environ.get("DENSEKIT_TEST_DATA", "")) / f"{SAMPLE}.tar"
    if not archive.is_file():
        return None
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return str(Path(folder) / SAMPLE / "val_list.txt")


def show(measured: Sequence[rows.Row]) -> None:
    """The table, under what it stands on."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    for origin in dict.fromkeys(map(row_tables.origin, measured)):
        table = Table(box=box.SIMPLE_HEAD)
        for column in row_tables.COLUMNS:
            table.add_column(
                column, no_wrap=column in (row_tables.COLUMNS[0], row_tables.COLUMNS[3])
            )
        for row in measured:
            if row_tables.origin(row) == origin:
                table.add_row(*row_tables.cells(row))
        console.print(table, origin, markup=False)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a benchmark or a comparison")
    parser.add_argument("--rounds", type=int, default=5, help="of each comparison (5)")
    parser.add_argument("--steps", type=int, default=7, help="timed, of each side in a round (7)")
    parser.add_argument("--threads", type=int, help="CPU threads of each side (torch's choice)")
    parser.add_argument("--images", metavar="LIST", help="of JPEG files, for the benchmark input")
    parser.add_argument("--results", type=Path, help="where rows go (benchmarks/results)")
    parser.add_argument("--quick", action="store_true", help="one tiny round of each, no rows")
    return parser.parse_args()


def main(arguments: argparse.Namespace) -> None:
    settings = Settings(rounds=arguments.rounds, steps=arguments.steps)
    results = arguments.results or rows.RESULTS
    if arguments.threads:
        settings = settings.model_copy(update={"threads": arguments.threads})
    if arguments.quick:
        settings = settings.model_copy(update={"rounds": 1, "steps": 1})
        results = arguments.results
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        images = arguments.images or sample_list(folder)
        outside = commands(arguments.quick, images, folder)
        inside = comparisons(arguments.quick, images, folder)
        for name in select(arguments.names, [*outside, *inside]):
            if name in outside:
                row = measure_commands(name, outside[name], settings)
            else:
                row = measure(name, inside[name], settings)
            if results is not None:
                rows.append(row, results)
            measured.append(row)
    show(measured)


if __name__ == "__main__":
    try:
        main(parse_arguments())
    except UserError as mistake:
        sys.exit(f"benchmarks/run.py: {mistake}")
