"""`densekit evaluate`, and what it prints."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from densekit.cli.options import (
    AsJson,
    BatchSize,
    Classes,
    Config,
    Device,
    Engine,
    EvaluationData,
    MaxPixels,
    ModelName,
    Options,
    PrecisionOption,
    Source,
)
from densekit.cli.output import new_table, number, show, show_json, show_notes

CLASSES_SHOWN = 20


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
        typer.Option("--workers", min=0, help="Loader processes per rank."),
    ] = None,
    device: Device = "auto",
    precision: PrecisionOption = "fp32",
    engine: Engine = "auto",
    max_pixels: MaxPixels = None,
    json: AsJson = False,
) -> None:
    """Evaluate a network: top-1, top-5, loss, calibration, confusion, per class.

    [bold]Examples[/]

      densekit evaluate runs/quickstart/best
      densekit evaluate densenet121.pth --model densenet121 --data /imagenet/val_list.txt
      torchrun --nproc-per-node=4 -m densekit evaluate runs/pets/best --json
    """
    from densekit import distributed
    from densekit.cli.inputs import ask
    from densekit.infer.evaluate import evaluate_source
    from densekit.precision import FLAG, keep_freed_memory, resolve

    keep_freed_memory()
    with distributed.session():
        asked = ask(source, config, option or [], "evaluate")
        rank = distributed.local_rank()
        formats = resolve(asked.device(device), precision, local_rank=rank, typed=FLAG)
        distributed.start(formats.device)
        distributed.set_threads()
        opened = distributed.on_every_rank(lambda: asked.open(classes, model))
        show_notes([*asked.notes, *opened.notes])
        loaders = "auto" if workers is None else workers
        found = evaluate_source(
            opened, formats, data, batch_size, loaders, max_pixels, engine=engine
        )
        print_evaluation(found, as_json=json)


def print_evaluation(found: dict[str, Any], as_json: bool) -> None:
    """The results line, and per class where the classes fit on a screen."""
    if as_json:
        show_json(found)
        return
    columns = ("Images", "Top1", "Top5", "Loss", "ECE", "Balanced", "AUROC", "ips")
    table = new_table(*columns, right=columns)
    measured = (found[key] for key in ("top1", "top5", "loss", "ece", "balanced_accuracy", "auroc"))
    table.add_row(f"{found['count']:,}", *map(number, measured), f"{found['ips']:.0f}")
    show(table)
    rows = [row for row in found["per_class"] if row["count"]]
    if len(rows) <= CLASSES_SHOWN:
        numbers = ("Images", "Precision", "Recall")
        table = new_table("Class", *numbers, right=numbers)
        for row in rows:
            cells = map(number, (row["precision"], row["recall"]))
            table.add_row(row["label"], f"{row['count']:,}", *cells)
        show("")
        show(table)
    steps = found["preprocessing"]
    resized = "" if steps["resize"] is None else f"short side to {steps['resize']}, "
    show(
        f"\npreprocessing: {resized}centre {steps['crop']}, "
        f"{steps['interpolation']}, antialias {str(steps['antialias']).lower()}, "
        f"rounding as {steps['rounding']}'s; "
        f"precision {found['precision']}; all of it with --json"
    )
