"""Rows as README has them."""

from __future__ import annotations

import sys
from pathlib import Path

from densekit.bench.rounds import Spread

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import row_tables  # noqa: E402
import rows  # noqa: E402 (benchmarks/rows.py, and so on)

WHERE = {
    "machine": rows.Machine(cpu="CPU X", cores=2, instructions="AVX512 bf16"),
    "versions": {"torch": "2.9", "torchvision": "0.24"},
    "commit": "abc",
    "date": "2026-01-31",
}
ORIGIN = "CPU X (AVX512 bf16), 2 threads; torch 2.9, torchvision 0.24"
SIZES = {"threads": 2, "batch_size": 16, "image_size": 224}


def side(
    name: str, median: float, low: float, high: float, gib: float | None = None
) -> rows.Result:
    measured = Spread(median=median, low=low, high=high)
    held = None if gib is None else int(gib * 2**30)
    return rows.Result(name=name, measured=measured, activation_bytes=held)


def against(name: str, theirs: str, ratio: float) -> rows.Row:
    sides = side("densekit train", 15, 14.04, 155, 1.5), side(theirs, 5.5, 5, 6, 3)
    spread = Spread(median=ratio, low=ratio - 0.25, high=ratio + 0.5)
    return rows.row(name, "images/s", sides, spread, dict(SIZES)).model_copy(update=WHERE)


def test_the_table_has_the_newest_row_of_each_name() -> None:
    alone = (side("densekit", 0.3, 0.25, 0.4),)
    startup = rows.row("startup/help", "s", alone, None, {"threads": 2})
    startup = startup.model_copy(update={**WHERE, "commit": "def"})
    old, new = (against("train/tuned", "torchvision", ratio) for ratio in (9, 2.5))
    assert row_tables.markdown([old, startup, new]) == (
        f"{ORIGIN}:\n\n"
        "| Benchmark | densekit | Compared with | Ratio (its range) | Commit, date |\n"
        "|---|---|---|---|---|\n"
        "| train/tuned | densekit train: 15 img/s (14 - 155), 1.50 GiB "
        "| torchvision: 5.5 img/s (5 - 6), 3.00 GiB | 2.50 (2.25 - 3.00) | abc, 2026-01-31 |\n"
        "| startup/help | densekit: 0.3 s (0.25 - 0.4) | - | - | def, 2026-01-31 |\n\n"
        + row_tables.FOOTNOTE
    )


def test_the_summary_takes_the_peer_that_was_fastest() -> None:
    peer = "torchvision, {}, memory kept"
    known = [
        against("lean/densenet121-fp32-nchw", peer.format("NCHW, fp32"), 1.5),
        against("lean/densenet121-fp32-channels_last", peer.format("channels_last, fp32"), 1.4),
        against("lean-compiled/densenet121-fp32-nchw", peer.format("NCHW, fp32, compiled"), 1.25),
        against("lean/densenet121-bf16-nchw", peer.format("NCHW, bf16"), 2),
        against("train/tuned", "torchvision, channels_last, fp32", 1),
    ]
    head, lines = row_tables.lean_markdown(known).split("---|\n")
    assert head.startswith(f"{ORIGIN}:\n\n| Network | Batch | Precision |")
    assert lines == (
        "| densenet121 | 16 x 224 x 224 | fp32 | 1.25 (1.00 - 1.75) | NCHW, compiled | 3 "
        "| 0.50: 1.50 of 3.00 GiB |\n"
        "| densenet121 | 16 x 224 x 224 | bf16 | 2.00 (1.75 - 2.50) | NCHW, eager | 1 "
        "| 0.50: 1.50 of 3.00 GiB |\n"
    )


def test_each_machine_has_a_table_of_its_own() -> None:
    one = against("train/tuned", "torchvision", 2)
    gpu = one.machine.model_copy(update={"gpu": "GPU Y"})
    text = row_tables.markdown([one, one.model_copy(update={"machine": gpu})])
    assert f"{ORIGIN}:\n" in text
    assert "\n\nGPU Y; torch 2.9, torchvision 0.24:\n" in text


def test_without_rows_the_tables_say_how_to_make_them() -> None:
    assert "make bench" in row_tables.markdown([])
    assert "make bench" in row_tables.lean_markdown([])
