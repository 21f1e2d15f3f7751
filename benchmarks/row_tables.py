"""Rows as people read them: what `make bench` prints, and the tables of the READMEs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from densekit.bench.rounds import Spread
from rows import Result, Row, newest

COLUMNS = ("Benchmark", "densekit", "Compared with", "Ratio (its range)", "Commit, date")
LEAN_COLUMNS = (
    "Network",
    "Batch",
    "Precision",
    "Speed (its range)",
    "Torchvision's fastest",
    "Settings measured",
    "Activation memory",
)
SUMMARY_COLUMNS = (
    "",
    "CPU",
    "densekit, images/s",
    "torchvision, images/s",
    "Its setting",
    "Speed (its range)",
    "Activation memory",
)
SUMMARY = (  # what a line is of, the CPU's instructions, the names of its rows
    ("training, densenet121, fp32", "AVX2", r"lean(-compiled)?/densenet121-fp32-.*"),
    ("training, densenet121, bf16", "AVX512 bf16", r"lean(-compiled)?/densenet121-bf16-.*"),
    ("training, densenet_bc_100_12, fp32", "AVX2", r"lean(-compiled)?/densenet_bc_100_12-fp32-.*"),
    ("inference, densenet121, fp32, 16 images", "AVX512 bf16", "engines-16/torchvision-fp32"),
    ("inference, densenet121, bf16, 16 images", "AVX512 bf16", "engines-16/torchvision-bf16"),
    ("inference, densenet121, bf16, 1 image", "AVX512 bf16", "engines-1/torchvision-bf16"),
    ("JPEG files to answers, densenet121, bf16", "AVX512 bf16", "predict/tuned"),
    ("reading and augmenting, 1 worker", "AVX512 bf16", r"input/(as-it-comes|tuned|torchcodec)"),
)
FOOTNOTE = "Medians over rounds and, in brackets, their range; GiB is activation memory.\n"
NOTHING = "No measurements yet: `make bench` makes them.\n"


def cells(row: Row) -> tuple[str, ...]:
    """A row of either table, as COLUMNS has it."""
    one, *others = (_side(side, row.unit) for side in row.sides)
    compared, ratio = others[0] if others else "-", _ratio(row.ratio)
    return row.name, one, compared, ratio, f"{row.commit}, {row.date}"


def origin(row: Row) -> str:
    """The machine and the versions that a row's numbers stand on."""
    machine, versions, settings = row.machine, row.versions, row.settings
    where = f"{machine.cpu} ({machine.instructions}), {settings['threads']} threads"
    torch, torchvision = versions["torch"], versions["torchvision"]
    return f"{machine.gpu or where}; torch {torch}, torchvision {torchvision}"


def markdown(rows: Iterable[Row]) -> str:
    """Every comparison: the newest rows, under what they stand on."""
    tables = _by_origin(newest(rows), COLUMNS, lambda found: map(cells, found))
    return "\n".join([*tables, FOOTNOTE]) if tables else NOTHING


def lean_markdown(rows: Iterable[Row]) -> str:
    """Training with lean, against whatever was torchvision's fastest setting."""
    lean = [row for row in newest(rows) if row.name.startswith("lean")]
    return "\n".join(_by_origin(lean, LEAN_COLUMNS, fastest_peers)) or NOTHING


def summary_markdown(rows: Iterable[Row]) -> str:
    """The main README's table: a line of SUMMARY each, against torchvision's fastest setting."""
    measured, lines = newest(rows), []
    for what, instructions, names in SUMMARY:
        known = [
            (row.ratio, row)
            for row in measured
            if re.fullmatch(names, row.name) and row.machine.instructions == instructions
            if row.ratio is not None
        ]
        if known:
            ratio, row = min(known, key=lambda pair: pair[0].median)
            ours, theirs = row.sides
            speeds = (_number(side.measured.median) for side in row.sides)
            cpu = f"{row.machine.cpu}, {instructions}"
            setting = theirs.name.removeprefix("torchvision, ")
            lines.append((what, cpu, *speeds, setting, _ratio(ratio), _share(ours, theirs)))
    rule = "|" + "---|" * len(SUMMARY_COLUMNS)
    return "\n".join([_line(SUMMARY_COLUMNS), rule, *map(_line, lines), ""]) if lines else NOTHING


def fastest_peers(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Of each network and precision the row with the least ratio, as LEAN_COLUMNS has it."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        network, precision, _ = row.name.partition("/")[2].rsplit("-", 2)
        size = row.settings["image_size"]
        batch = f"{row.settings['batch_size']} x {size} x {size}"
        groups.setdefault((network, batch, precision), []).append(row)
    found = []
    for group, known in sorted(groups.items(), key=lambda item: item[0][0]):
        ratio, (ours, theirs) = min(
            ((row.ratio, row.sides) for row in known if row.ratio is not None),
            key=lambda one: one[0].median,
        )
        layout, *rest = theirs.name.removeprefix("torchvision, ").split(", ")
        setting = f"{layout}, {'compiled' if 'compiled' in rest else 'eager'}"
        found.append((*group, _ratio(ratio), setting, str(len(known)), _share(ours, theirs)))
    return found


def _by_origin(
    rows: Iterable[Row],
    columns: Sequence[str],
    lines_of: Callable[[list[Row]], Iterable[tuple[str, ...]]],
) -> list[str]:
    """A table for each machine."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(origin(row), []).append(row)
    rule = "|" + "---|" * len(columns)
    return [
        "\n".join([f"{where}:\n", _line(columns), rule, *map(_line, lines_of(group)), ""])
        for where, group in groups.items()
    ]


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _share(ours: Result, theirs: Result) -> str:
    """`0.27: 0.68 of 2.51 GiB`."""
    if ours.activation_bytes is None or not theirs.activation_bytes:
        return "-"
    one, other = (side / 2**30 for side in (ours.activation_bytes, theirs.activation_bytes))
    return f"{one / other:.2f}: {one:.2f} of {other:.2f} GiB"


def _side(side: Result, unit: str) -> str:
    """`densekit train bf16, lean (native): 15.1 img/s (14.9 - 15.3), 1.9 GiB`."""
    measured, short = side.measured, "img/s" if unit == "images/s" else unit
    spread = f"{_number(measured.low)} - {_number(measured.high)}"
    memory = f", {side.activation_bytes / 2**30:.2f} GiB" if side.activation_bytes else ""
    name = side.name if side.op is None else f"{side.name}, {side.op}"
    return f"{name}: {_number(measured.median)} {short} ({spread}){memory}"


def _ratio(ratio: Spread | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio.median:.2f} ({ratio.low:.2f} - {ratio.high:.2f})"


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
