"""Activation memory of a training step against batch size and depth: each op and torchvision.

    python benchmarks/memory.py                    about 45 processes, each for three steps
    python benchmarks/memory.py --quick --results FOLDER --figure FILE    tiny: does it work?

Rows go to benchmarks/results/memory.json, the newest of each curve's points to
docs/concepts/memory.png. Precision and memory format are what densekit takes on this machine;
torchvision has the same precision in channels_last.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from rich.console import Console
from rich.progress import track

import densekit_steps
import rows
import torchvision_steps
from densekit.bench.rounds import Candidate, Settings, StepFunction, measure_rounds
from densekit.config import Section
from densekit.precision import Format, resolve
from densekit_steps import Workload

FIGURE = rows.ROOT / "docs" / "concepts" / "memory.png"
SETTINGS = Settings(rounds=1, steps=2, warmup=0)
BATCHES = (1, 2, 4, 8, 16, 32)
DEPTHS = ("densenet121", "densenet169", "densenet201", "densenet264")
BATCH_OF_DEPTHS = 8
CURVES = {  # Okabe and Ito's colours, and a marker each, so that no hue is needed
    "torchvision": ("#D55E00", "o"),
    "reference": ("#000000", "s"),
    "torchvision, memory_efficient": ("#E69F00", "v"),
    "recompute": ("#009E73", "D"),
    "lean": ("#0072B2", "^"),
}


class Row(Section):
    """One point of one curve."""

    curve: str
    op: str | None
    """What computed the dense blocks; None for torchvision."""
    model: str
    image_size: int
    batch_size: int
    precision: str
    activation_bytes: int
    threads: int
    machine: rows.Machine
    versions: dict[str, str]
    commit: str | None
    date: str


# Measuring ----------------------------------------------------------------------------------


def points(quick: bool) -> list[Workload]:
    """Those against batch size, then those against depth; what is in both, once."""
    if quick:
        tiny = {"image_size": 32, "batch_size": 2}
        names = ("densenet_bc_10_4", "densenet_bc_16_4")
        against_batch = [Workload(model=names[0], image_size=32, batch_size=n) for n in (2, 4)]
        return [*against_batch, Workload.model_validate({"model": names[1], **tiny})]
    against_batch = [Workload(model=DEPTHS[0], batch_size=n) for n in BATCHES]
    return [*against_batch, *(Workload(model=m, batch_size=BATCH_OF_DEPTHS) for m in DEPTHS[1:])]


def candidate(curve: str, work: Workload, precision: Format) -> Candidate:
    step: Callable[[], StepFunction]
    if curve in ("reference", "recompute", "lean"):
        step = partial(densekit_steps.training, work, precision, curve)
    else:
        step = partial(
            torchvision_steps.training,
            work,
            precision,
            "channels_last",
            memory_efficient=curve.endswith("memory_efficient"),
        )
    return Candidate(curve, step, keep_freed_memory=True)


def measure(curve: str, work: Workload) -> Row:
    """In a process of its own."""
    precision = resolve(work.device).name
    ((sample,),) = measure_rounds([candidate(curve, work, precision)], SETTINGS)
    assert sample.activation_bytes is not None, "this system does not tell a process' peak memory"
    return Row(
        curve=curve,
        op=sample.op,
        model=work.model,
        image_size=work.image_size,
        batch_size=work.batch_size,
        precision=precision,
        activation_bytes=sample.activation_bytes,
        threads=SETTINGS.threads,
        machine=rows.machine(),
        versions=rows.versions(),
        commit=rows.commit(),
        date=date.today().isoformat(),
    )


# Files --------------------------------------------------------------------------------------


def read(file: Path) -> list[Row]:
    if not file.exists():
        return []
    return [Row.model_validate(row) for row in json.loads(file.read_text(encoding="utf-8"))]


def append(row: Row, file: Path) -> None:
    """A row a line, as in the other files there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(each.model_dump(mode="json")) for each in [*read(file), row]]
    file.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


# The figure ---------------------------------------------------------------------------------


def depth(model: str) -> int:
    """Its layers with weights, by its name."""
    number = re.search(r"[0-9]+", model)
    assert number is not None, model
    return int(number[0])


def draw(measured: Sequence[Row], works: Sequence[Workload], file: Path) -> None:
    """The newest row of each point of `works`: against batch size, and against depth."""
    newest = {(row.curve, row.model, row.batch_size): row for row in measured}
    network = works[0].model
    batches = [work.batch_size for work in works if work.model == network]
    alike = works[-1].batch_size
    models = [network, *(work.model for work in works if work.model != network)]
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _panel(left, {
        curve: [(n, newest[curve, network, n]) for n in batches] for curve in CURVES
    })  # fmt: skip
    _panel(right, {
        curve: [(depth(model), newest[curve, model, alike]) for model in models]
        for curve in CURVES
    })  # fmt: skip
    one = newest["lean", network, alike]
    pixels = f"{one.image_size} x {one.image_size}"
    _dress(left, f"{_name(network)}, {pixels}", "images in the batch")
    _dress(right, f"{alike} images of {pixels}", "layers of the DenseNet")
    figure.suptitle(
        f"Activation memory of a training step, {one.precision}, {one.machine.cpu}",
        x=0.01, ha="left", fontsize=11, fontweight="bold",
    )  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def _name(model: str) -> str:
    return f"DenseNet-{model.removeprefix('densenet').lstrip('_').replace('_', '-')}"


def _panel(axes: Axes, curves: dict[str, list[tuple[int, Row]]]) -> None:
    """A line a curve, its name at its right end, as high as there is room."""
    ends = []
    for curve, measured in curves.items():
        xs = [x for x, _ in measured]
        ys = [row.activation_bytes / 2**30 for _, row in measured]
        color, marker = CURVES[curve]
        axes.plot(xs, ys, color=color, marker=marker, markersize=4.5, linewidth=1.8)
        ends.append((ys[-1], curve))
    axes.set_ylim(bottom=0)
    apart = 0.05 * (xs[-1] - xs[0])  # 1 beside 2 would read as 12
    ticks = [x for x, after in zip(xs, [*xs[1:], 2 * xs[-1]], strict=True) if after - x > apart]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    for (y, curve), height in zip(sorted(ends), _spread(sorted(ends), axes), strict=True):
        axes.annotate(
            curve, (xs[-1], y), (1.02, height), textcoords=axes.get_yaxis_transform(),
            color=CURVES[curve][0], fontsize=9, va="center", annotation_clip=False,
        )  # fmt: skip


def _spread(ends: Sequence[tuple[float, str]], axes: Axes) -> Iterator[float]:
    """Heights for the names, from the lowest up: at their lines, but never over one another."""
    gap, last = 0.06 * axes.get_ylim()[1], float("-inf")
    for y, _ in ends:
        last = max(y, last + gap)
        yield last


def _dress(axes: Axes, title: str, over: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(over, fontsize=9)
    axes.set_ylabel("activation memory, GiB", fontsize=9)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, length=0)
    axes.spines[:].set_visible(False)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny networks; give the next two")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="folder of memory.json")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="where the figure goes")
    parser.add_argument("--draw-only", action="store_true", help="of the rows that are there")
    found = parser.parse_args()
    if found.quick and (found.results == rows.RESULTS or found.figure == FIGURE):
        parser.error("--quick measures nothing worth keeping: give --results and --figure")
    return found


def main(arguments: argparse.Namespace) -> None:
    works, file = points(arguments.quick), arguments.results / rows.OTHERS[0]
    todo = [] if arguments.draw_only else [(c, work) for work in works for c in CURVES]
    for curve, work in track(todo, "memory", console=Console(stderr=True)):
        append(measure(curve, work), file)
    draw(read(file), works, arguments.figure)


if __name__ == "__main__":
    main(parse_arguments())
