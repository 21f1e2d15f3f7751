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
from densekit.cli.score import On, Out, PartSize, Processes, score_to


def predict(
    source: Source = None,
    files: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="IMAGES...", help="Files, folders, lists, s3://bucket/prefix."),
    ] = None,
    topk: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--topk",
            metavar="N",
            min=1,
            help="Classes per image; default 5, multilabel all.",
        ),
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
    out: Out = None,
    workers: Processes = None,
    on: On = None,
    part_size: PartSize = None,
) -> None:
    """Predict the classes of images: one row per file, in order.

    Images are files, folders, lists (.txt, a path on each line),
    s3://bucket/prefix. With -c every argument names images. Exits with 1 if
    some are unreadable.

    With --out, rows go to Parquet files, for millions of images. After a stop
    (exit code 75) or a kill, the same command resumes.

    [bold]Examples[/]

      densekit predict runs/pets/best photo.jpg more-photos/
      densekit predict runs/pets/best photos/ --topk 3 --csv > answers.csv
      densekit predict runs/pets/best photos.txt --out results/ --workers 4
      densekit predict runs/pets/best s3://bucket/photos/ --out results/ --on ray
      densekit predict -c DenseNet121.yaml -o Infer.infer_imgs=photo.jpg
    """
    from densekit.cli.inputs import ask
    from densekit.config import UserError
    from densekit.data.bit_depth import dark_files
    from densekit.infer.classifier import Classifier
    from densekit.infer.inputs import image_names
    from densekit.infer.rows import write_csv, write_json, write_text
    from densekit.infer.tta import VIEWS
    from densekit.precision import FLAG, keep_freed_memory, resolve
    from densekit.progress import bar

    if json and csv:
        raise UserError("--json and --csv: choose one")
    given = {"--workers": workers, "--on": on, "--part-size": part_size}
    if out is None and (alone := next((name for name, value in given.items() if value), None)):
        raise UserError(f"{alone}: needs --out FOLDER")
    if not is_printing():  # one rank predicts, each image once
        return
    keep_freed_memory()
    if config is not None:
        source, files = None, [*([source] if source else []), *(files or [])]
    asked = ask(source, config, option or [], "predict")
    inputs = files or asked.infer.files
    if not inputs:
        raise UserError("name the images to predict: files, folders, lists or s3://bucket/prefix")
    opened = asked.open(classes, model)
    show_notes([*asked.notes, *opened.notes])
    if tta in VIEWS and tta != "none":
        show_notes([f"--tta {tta}: mean probability of {VIEWS[tta]} views of each image"])
    topk = topk or (asked.infer.topk if asked.paddleclas else opened.answers_shown)
    size = batch_size or asked.infer.batch_size
    if out is not None:
        if csv:
            raise UserError("--csv: goes to stdout; with --out the rows are Parquet files")
        from densekit.score.run import ScoreOptions

        options = ScoreOptions(
            topk=topk,
            batch_size=size,
            part_size=part_size,
            max_pixels=max_pixels,
            device=asked.device(device),
            precision=precision,
            engine=engine,
            tta=tta,
            workers=workers,
            on=on,
        )
        raise typer.Exit(score_to(out, opened, inputs, options, json))
    images = list(image_names(inputs))
    show_notes(dark_files(images, opened.preprocessing.scaling))
    formats = resolve(asked.device(device), precision, typed=FLAG)
    classifier = Classifier(opened, formats, max_pixels, engine, tta)
    rows = bar(classifier.rows(images, topk, size), len(images), "predicting")
    if csv:
        most = min(topk, len(opened.classes))
        failed = write_csv(rows, sys.stdout, most, bool(opened.thresholds))
    else:
        failed = (write_json if json else write_text)(rows, sys.stdout)
    raise typer.Exit(1 if failed else 0)
