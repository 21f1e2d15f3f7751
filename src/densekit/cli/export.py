"""`densekit export`, and what it prints."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from densekit.cli.options import (
    AsJson,
    Classes,
    Config,
    ModelName,
    Options,
    Source,
)
from densekit.cli.output import is_printing, new_table, number, show, show_json, show_notes


def export(
    source: Source = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="onnx, onnx-int8, openvino, openvino-int8 or torch-export.",
        ),
    ] = "onnx",
    out: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--out", metavar="FOLDER", help="Output folder; default SOURCE-FORMAT, beside SOURCE."
        ),
    ] = None,
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing", help="uint8 [N, H, W, C] in, probabilities out, in the file."
        ),
    ] = False,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Images of any height and width.")
    ] = False,
    images: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--images",
            metavar="IMAGES",
            help="Images to measure it on, as evaluate --data; default the validation images.",
        ),
    ] = None,
    calibration: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--calibration",
            metavar="IMAGES",
            help="For int8: images to calibrate on; default the training images.",
        ),
    ] = None,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            help="Use at most N images; default 256, for int8 2000.",
        ),
    ] = None,
    max_difference: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--max-difference",
            metavar="N",
            min=0.0,
            help="For float: error of logits, as a share of the largest; default 1e-4.",
        ),
    ] = None,
    max_drop: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--max-drop",
            metavar="N",
            help="For int8: points of top-1 or AUROC that it may lose; default 0.5.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep an int8 network that loses more.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing export.")] = False,
    model: ModelName = None,
    classes: Classes = None,
    config: Config = None,
    option: Options = None,
    json: AsJson = False,
) -> None:
    """Export a network for other engines, measured on real images before it is written.

    evaluate, predict and serve take the folder like an artifact; ONNX Runtime or
    OpenVINO take its file without densekit. An export whose outputs differ from
    torch's is refused.

    [bold]Examples[/]

      densekit export runs/pets/best --to openvino
      densekit export runs/pets/best --to openvino-int8 --max-drop 0.3 --out pets-int8
      densekit export runs/pets/best --to onnx --with-preprocessing --dynamic-size
      densekit export densenet121.pth --model densenet121 --to onnx --images /imagenet/val_list.txt
      densekit export -c DenseNet121.yaml -o Global.pretrained_model=best.pdparams
    """
    from pathlib import Path

    from densekit import distributed
    from densekit.cli.inputs import ask
    from densekit.config import UserError
    from densekit.export import steps
    from densekit.export.gate import MAX_DIFFERENCE, MAX_DROP, Bounds
    from densekit.precision import keep_freed_memory

    if not is_printing():  # one rank exports
        return
    keep_freed_memory()
    distributed.set_threads()
    asked = ask(source, config, option or [], "export")
    place = out or asked.export_to or (f"{source.rstrip('/')}-{to}" if source else None)
    if place is None:
        raise UserError("name the output folder: --out FOLDER")
    bounds = Bounds(
        MAX_DIFFERENCE if max_difference is None else max_difference,
        MAX_DROP if max_drop is None else max_drop,
    )
    options = steps.ExportOptions(
        to, with_preprocessing, dynamic_size, images, calibration, limit, bounds, force, replace
    )
    if options.int8 and max_difference is not None:
        raise UserError(f"--max-difference: is for float exports; for --to {to} use --max-drop")
    if not options.int8 and max_drop is not None:
        raise UserError(f"--max-drop: is for int8; for --to {to} use --max-difference")
    opened = asked.open(classes, model)
    show_notes([*asked.notes, *opened.notes])
    target = Path(place).expanduser()
    found = steps.export_network(opened, target, options)
    if json:
        show_json({"folder": str(target), **found})
    else:
        print_gate(found, str(target))


def print_gate(found: dict[str, Any], folder: str) -> None:
    """The gate's table, and what to do next."""
    engine, difference = found["engine"], found["difference"]
    count = found["images"]["count"]
    table = new_table(f"On {count} images", "torch", engine, right=("torch", engine))
    for name in ("top1", "top5", "auroc", "loss"):
        if found["torch"].get(name) is not None:
            table.add_row(name, number(found["torch"][name]), number(found["exported"][name]))
    table.add_row("same prediction", "", f"{difference['agreement']:.2%}")
    table.add_row("largest difference of a logit", "", f"{difference['max']:.2g}")
    table.add_row("mean difference", "", f"{difference['mean']:.2g}")
    table.add_row("norm of the difference", "", f"{difference['relative_norm']:.2%}")
    for row in found["latency"]:
        label = f"ms per batch of {row['batch']}"
        table.add_row(label, f"{row['torch_ms']:.2f}", f"{row['exported_ms']:.2f}")
    show(table)
    if found["float_layers"]:
        show(f"kept in float, since int8 loses too much: {', '.join(found['float_layers'])}")
    for fault in found["faults"]:
        show(f"kept by --force, though {fault}")
    show(f"{folder}: written; try: densekit evaluate {folder}")
