"""`densekit compare`, and what it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from densekit.cli.evaluate import ONE, SEVERAL
from densekit.cli.options import AsJson, BatchSize, Device, EvaluationData, GroupBy
from densekit.cli.output import is_printing, new_table, number, show, show_json, show_notes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from densekit.report.sides import Compared

TESTS_SHOWN = 20  # classes


def compare_runs(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN RUN...", help="Folders of runs, artifacts or reports."),
    ],
    data: EvaluationData = None,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Evaluate them now; --data implies it."),
    ] = False,
    group: GroupBy = None,
    curves: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--curves", metavar="FILE.png", help="Draw their curves in one plot."),
    ] = None,
    bootstrap: Annotated[
        int,
        typer.Option(
            "--bootstrap", metavar="N", min=0, help="Resamples for the 95 % intervals; 0: none."
        ),
    ] = 1000,
    batch_size: BatchSize = None,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--workers", metavar="N", min=0, help="Loader processes."),
    ] = None,
    device: Device = "auto",
    json: AsJson = False,
) -> None:
    """Compare runs: metrics, recipes, and whether one is better on the same images.

    Each is compared with the first on the same images: the difference with its
    95 % interval (paired bootstrap) and McNemar's exact test. This needs the
    prediction for every image: from a report ([cyan]evaluate --report[/]), or
    computed now with [cyan]--evaluate[/] or [cyan]--data[/].

    [bold]Examples[/]

      densekit compare runs/pets runs/pets-2
      densekit compare runs/pets runs/pets-tuned --data test/ --curves pets.png
      densekit compare report-a report-b --json
    """
    from pathlib import Path

    from densekit.config import UserError
    from densekit.infer.bootstrap import Resampling
    from densekit.precision import FLAG, keep_freed_memory, resolve
    from densekit.report.paired import compare_pair
    from densekit.report.sides import changes, draw_curves, judge, open_side

    if len(runs) < 2:
        raise UserError("give at least two runs, such as runs/pets runs/pets-2")
    if not is_printing():  # one rank compares
        return
    if evaluate or data is not None:
        keep_freed_memory()
        formats = resolve(device, "fp32", typed=FLAG)
        loaders = "auto" if workers is None else workers
        how = {"batch_size": batch_size, "workers": loaders, "group": group}
        sides = [judge(run, formats, data, **how) for run in runs]
    elif group is not None:
        raise UserError(
            f"--group={group}: needs --evaluate or --data; reports have their images' groups "
            f"from evaluate --report"
        )
    else:
        sides = [open_side(run) for run in runs]
    if curves is not None:
        draw_curves(sides, Path(curves).expanduser())
        show_notes([f"{curves}: the curves"])
    first, *others = sides
    resampling = Resampling(bootstrap) if bootstrap else None
    pairs = [
        compare_pair(first.predictions, other.predictions, resampling)
        for other in others
        if first.predictions is not None and other.predictions is not None
    ]
    found = {
        "runs": [
            {"run": side.name, "task": side.task, "metrics": _plain(side.metrics)} for side in sides
        ],
        "recipes": [{"run": other.name, "changes": changes(first, other)} for other in others],
        "pairs": pairs,
    }
    if json:
        show_json(found)
    else:
        _print(sides, found, explain=not pairs)


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if isinstance(value, (int, float))}


def _print(sides: Sequence[Compared], found: dict[str, Any], explain: bool) -> None:
    tasks = {side.task for side in sides}
    named = (ONE if "multiclass" in tasks else {}) | (SEVERAL if tasks - {"multiclass"} else {})
    columns = {
        name: key for name, key in named.items() if any(key in side.metrics for side in sides)
    }
    table = new_table("Run", "Images", *columns, right=("Images", *columns))
    for side in sides:
        count = side.metrics.get("count")
        cells = (number(side.metrics.get(key)) for key in columns.values())
        table.add_row(side.name, "-" if count is None else f"{count:,}", *cells)
    show(table)
    for recipe in found["recipes"]:
        if recipe["changes"]:
            show(f"\n{recipe['run']}, changed from {sides[0].name}:")
            for change in recipe["changes"]:
                show(f"  {change}")
    for pair in found["pairs"]:
        _print_pair(pair, {key: name for name, key in named.items()})
    if explain:
        show(
            "\nEach on the images that it was evaluated on. To test whether a difference is more "
            "than chance, evaluate on the same images: --evaluate, or --data LIST|FOLDER"
        )


def _print_pair(pair: dict[str, Any], names: dict[str, str]) -> None:
    of = "" if pair["groups"] is None else f", resampled by their {pair['groups']:,} groups"
    show(f"\n{pair['second']} minus {pair['first']}, on the same {pair['images']:,} images{of}")
    table = new_table("", "Difference", "95 %", right=("Difference", "95 %"))
    for key, found in pair["differences"].items():
        value, ends = found["value"], found["interval"]
        table.add_row(
            names.get(key, key),
            "-" if value is None else f"{value:+.4f}",
            "-" if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f}",
        )
    show(table)
    tests = pair["mcnemar"]
    if len(tests) > TESTS_SHOWN:
        show(f"McNemar's test for {len(tests)} classes: see --json")
        return
    for test in tests:
        of = "" if test["label"] is None else f" of {test['label']}"
        show(
            f"Correct{of}: {test['only_first']:,} only in the first, {test['only_second']:,} only "
            f"in the second; p = {test['p']:.3g} (McNemar, exact)"
        )
    if len(tests) > 1:
        show(f"p is per class, not corrected for {len(tests)} comparisons")
