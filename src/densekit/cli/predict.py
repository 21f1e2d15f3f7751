"""`densekit predict`."""

from __future__ import annotations

import sys
from typing import Annotated, Optional

import typer

from densekit.cli.options import (
    AsJson,
    BatchSize,
    Classes,
    Config,
    Device,
    Engine,
    MaxPixels,
    ModelName,
    Options,
    PrecisionOption,
    Source,
    Tta,
)
from densekit.cli.output import is_printing, show_notes


def predict(
    source: Source = None,
    files: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="FILES_OR_FOLDERS...", help="Images, or folders of them."),
    ] = None,
    topk: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--topk", min=1, help="Answers per image; 5, of several classes all."),
    ] = None,
    model: ModelName = None,
    classes: Classes = None,
    config: Config = None,
    option: Options = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    precision: PrecisionOption = "fp32",
    engine: Engine = "auto",
    tta: Tta = "none",
    max_pixels: MaxPixels = None,
    json: AsJson = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.")] = False,
) -> None:
    """Predict the classes of images: one row per file, in order; exit 1 if some are unreadable.

    With -c every argument is an image, or a folder of them.

    [bold]Examples[/]

      densekit predict runs/pets/best photo.jpg more-photos/
      densekit predict runs/pets/best photos/ --topk 3 --csv > answers.csv
      densekit predict -c DenseNet121.yaml -o Infer.infer_imgs=photo.jpg
    """
    from densekit.cli.inputs import ask
    from densekit.config import UserError
    from densekit.data.bit_depth import dark_files
    from densekit.infer.classifier import Classifier, expand
    from densekit.infer.rows import write_csv, write_json, write_text
    from densekit.infer.tta import VIEWS
    from densekit.precision import FLAG, keep_freed_memory, resolve
    from densekit.progress import bar

    if json and csv:
        raise UserError("--json and --csv: choose one")
    if not is_printing():  # of several ranks one answers, each image once
        return
    keep_freed_memory()
    if config is not None:
        source, files = None, [*([source] if source else []), *(files or [])]
    asked = ask(source, config, option or [], "predict")
    images = expand(files or asked.infer.files)
    if not images:
        raise UserError("say which images to predict: files, or folders of them")
    opened = asked.open(classes, model)
    show_notes([*asked.notes, *opened.notes, *dark_files(images, opened.preprocessing.scaling)])
    formats = resolve(asked.device(device), precision, typed=FLAG)
    classifier = Classifier(opened, formats, max_pixels, engine, tta)
    topk = topk or (asked.infer.topk if asked.paddleclas else classifier.answers_shown)
    if tta != "none":
        show_notes([f"--tta {tta}: mean probability of {VIEWS[tta]} views of each image"])
    size = batch_size or asked.infer.batch_size
    rows = bar(classifier.rows(images, topk, size), len(images), "predicting")
    if csv:
        most = min(topk, len(opened.classes))
        failed = write_csv(rows, sys.stdout, most, bool(opened.thresholds))
    else:
        failed = (write_json if json else write_text)(rows, sys.stdout)
    raise typer.Exit(1 if failed else 0)
