"""`densekit evaluate`, and what it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from densekit.cli.options import (
    AsJson,
    BatchSize,
    Classes,
    Config,
    Device,
    Engine,
    EvaluationData,
    GroupBy,
    MaxPixels,
    ModelName,
    Options,
    PrecisionOption,
    Source,
    Tta,
)
from densekit.cli.output import new_table, number, show, show_json, show_notes

if TYPE_CHECKING:
    from rich.table import Table

CLASSES_SHOWN = 20
ONE = {
    "Top1": "top1",
    "Top5": "top5",
    "Loss": "loss",
    "ECE": "ece",
    "Balanced": "balanced_accuracy",
    "AUROC": "auroc",
}
SEVERAL = {
    "AUROC": "auroc",
    "AP": "average_precision",
    "Balanced": "balanced_accuracy",
    "F1": "f1",
    "Sens@": "sensitivity_at_specificity",
    "ECE": "ece",
    "Loss": "loss",
}
"""Columns of the results line and their metrics: multiclass, and multilabel or binary."""


def evaluate(
    source: Source = None,
    data: EvaluationData = None,
    model: ModelName = None,
    classes: Classes = None,
    config: Config = None,
    option: Options = None,
    batch_size: BatchSize = None,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--workers", metavar="N", min=0, help="Loader processes per rank."),
    ] = None,
    device: Device = "auto",
    precision: PrecisionOption = "fp32",
    engine: Engine = "auto",
    tta: Tta = "none",
    max_pixels: MaxPixels = None,
    specificity: Annotated[
        float,
        typer.Option("--specificity", metavar="N", min=0, max=1, help="Report sensitivity at it."),
    ] = 0.9,
    bootstrap: Annotated[
        int,
        typer.Option(
            "--bootstrap", metavar="N", min=0, help="Resamples for the 95 % intervals; 0: none."
        ),
    ] = 1000,
    group: GroupBy = None,
    report: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--report", metavar="DIR", help="Write a page, figures and all predictions."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Evaluate a network: accuracy, loss, AUROC, calibration, confusion, per class, 95 % intervals.

    [bold]Examples[/]

      densekit evaluate runs/quickstart/best
      densekit evaluate densenet121.pth --model densenet121 --data /imagenet/val_list.txt
      densekit evaluate runs/chest --data test.csv --report chest-report
      torchrun --nproc-per-node=4 -m densekit evaluate runs/pets/best --json
    """
    from pathlib import Path

    from densekit import distributed
    from densekit.cli.inputs import ask
    from densekit.explain.folder import PAGE_NAME
    from densekit.infer.bootstrap import Resampling
    from densekit.infer.evaluate import Judged, evaluate_source
    from densekit.precision import FLAG, keep_freed_memory, resolve
    from densekit.report.answers import Judgement
    from densekit.report.page import ReportSource, claim_report, write_report

    keep_freed_memory()
    with distributed.session():
        asked = ask(source, config, option or [], "evaluate")
        rank = distributed.local_rank()
        formats = resolve(asked.device(device), precision, local_rank=rank, typed=FLAG)
        distributed.start(formats.device)
        opened = distributed.on_every_rank(lambda: asked.open(classes, model))
        show_notes([*asked.notes, *opened.notes])
        loaders = "auto" if workers is None else workers
        judged: list[Judged] = []
        folder = None if report is None else Path(report).expanduser()
        if folder is not None:
            distributed.from_main(lambda: claim_report(folder))
        found = evaluate_source(
            opened, formats, data, batch_size, loaders, max_pixels, engine, tta,
            specificity=specificity, resampling=Resampling(bootstrap) if bootstrap else None,
            keep=None if folder is None else judged.append, group=group,
        )  # fmt: skip
        if folder is not None and judged:
            of = ReportSource(source or str(config), data)
            write_report(folder, Judgement(opened, judged[0], found), formats, of)
            show_notes([f"{folder / PAGE_NAME}: the report"])
        print_evaluation(found, as_json=json)


def print_evaluation(found: dict[str, Any], as_json: bool) -> None:
    """The results line, and a row per class if they fit on a screen."""
    if as_json:
        show_json(found)
        return
    several = found["task"] != "multiclass"
    columns = SEVERAL if several else ONE
    table = new_table("Images", *columns, "ips", right=("Images", *columns, "ips"))
    measured = (number(found[key]) for key in columns.values())
    table.add_row(f"{found['count']:,}", *measured, f"{found['ips']:.0f}")
    show(table)
    ends = found.get("intervals", {})
    shown = [f"{name} {interval(ends[key])}" for name, key in columns.items() if ends.get(key)]
    if shown:
        show(f"95 % intervals{by_group(found)}: {', '.join(shown)}")
    rows = [row for row in found["per_class"] if several or row["count"]]
    if len(rows) <= CLASSES_SHOWN:
        show("")
        show(table_of_several(rows) if several else table_of_classes(rows))
    if several:
        show(
            f"\nThere: images with the class; From: the threshold for F1, sensitivity and "
            f"specificity; Sens@: the highest sensitivity at a specificity of "
            f"{found['specificity']:g}"
        )
    steps = found["preprocessing"]
    resized = "" if steps["resize"] is None else f"short side to {steps['resize']}, "
    show(
        f"\npreprocessing: {resized}centre {steps['crop']}, "
        f"{steps['interpolation']}, antialias {str(steps['antialias']).lower()}, "
        f"rounding as {steps['rounding']}'s; "
        + (f"test-time augmentation {found['tta']}; " if found["tta"] != "none" else "")
        + f"precision {found['precision']}; all of it with --json"
    )


def by_group(found: dict[str, Any]) -> str:
    """The unit of resampling, if it is not single images."""
    return "" if found["group"] is None else f" by {found['group']} ({found['groups']:,} groups)"


def table_of_classes(rows: list[dict[str, Any]]) -> Table:
    """Per class, for multiclass."""
    numbers = ("Images", "Precision", "Recall", "F1", "AUROC")
    table = new_table("Class", *numbers, right=numbers)
    for row in rows:
        cells = (number(row[key]) for key in ("precision", "recall", "f1", "auroc"))
        table.add_row(row["label"], f"{row['count']:,}", *cells)
    return table


def table_of_several(rows: list[dict[str, Any]]) -> Table:
    """Per class, for multilabel and binary."""
    keys = ("average_precision", "f1", "sensitivity", "specificity", "threshold")
    numbers = ("There", "AUROC", "95 %", "AP", "F1", "Sens", "Spec", "From")
    table = new_table("Class", *numbers, right=numbers)
    for row in rows:
        auroc = number(row["auroc"]), interval(row.get("intervals", {}).get("auroc"), digits=2)
        cells = (number(row[key]) for key in keys)
        table.add_row(row["label"], f"{row['positives']:,}", *auroc, *cells)
    return table


def interval(ends: list[float] | None, digits: int = 3) -> str:
    """`0.812-0.841`, or a dash; two digits let a table fit in 80 columns."""
    return "-" if ends is None else f"{ends[0]:.{digits}f}-{ends[1]:.{digits}f}"
