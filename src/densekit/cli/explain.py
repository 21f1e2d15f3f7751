"""`densekit explain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from densekit.cli.options import (
    AsJson,
    BatchSize,
    Classes,
    Device,
    Engine,
    MaxPixels,
    ModelName,
    PrecisionOption,
)
from densekit.cli.output import is_printing, show, show_json, show_notes

if TYPE_CHECKING:
    from densekit.infer.model import Opened


def explain(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="An artifact, a run, or weights (--model)."),
    ],
    files: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="IMAGES...", help="Images, or folders of them."),
    ] = None,
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("-o", "--output", metavar="DIR", help="A new or empty folder."),
    ] = None,
    method: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--method", metavar="cam|gradcam++|occlusion", help="Default cam."),
    ] = None,
    topk: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--topk", metavar="N", min=1, help="Maps of each image's top N classes; default 3."
        ),
    ] = None,
    wanted: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--class", metavar="NAME", help="Maps of this class instead; repeatable."),
    ] = None,
    feature_reuse: Annotated[
        bool,
        typer.Option("--feature-reuse", help="Draw how much each layer reads of earlier ones."),
    ] = False,
    model: ModelName = None,
    classes: Classes = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    precision: PrecisionOption = "fp32",
    engine: Engine = "auto",
    max_pixels: MaxPixels = None,
    json: AsJson = False,
) -> None:
    """Show what predictions rest on: maps over the images, as PNG and on one page.

    Exits with 1 if some images are unreadable.

    [bold]cam[/] is exact for a DenseNet and takes no longer than predicting.
    [bold]gradcam++[/] and [bold]occlusion[/] need densekit\\[explain];
    occlusion runs about 170 predictions per image.

    [bold]Examples[/]

      densekit explain runs/pets/best photo.jpg more-photos/ -o explained
      densekit explain runs/pets/best photos/ -o why-cat --class cat --method occlusion
      densekit explain runs/pets/best --feature-reuse -o reuse
    """
    from pathlib import Path

    from densekit.config import UserError
    from densekit.data.bit_depth import dark_files
    from densekit.infer.model import open_path

    if output is None:
        raise UserError("say where to write: -o DIR")
    if not is_printing():  # one rank explains
        return
    if feature_reuse:
        of_images = {
            "FILES": files, "--method": method, "--topk": topk, "--class": wanted,
            "--batch-size": batch_size, "--max-pixels": max_pixels, "--device": device != "auto",
            "--precision": precision != "fp32", "--engine": engine != "auto",
        }  # fmt: skip
        for option, given in of_images.items():
            if given:
                raise UserError(f"{option}: --feature-reuse uses the weights only; leave it out")
        opened = open_path(source, model, classes)
        show_notes(opened.notes)
        draw_reuse(opened, source, output, json)
        return
    if not files:
        raise UserError(
            "name the images to explain: files, or folders of them; or use --feature-reuse"
        )
    if topk and wanted:
        raise UserError("--topk and --class: choose one")
    from densekit.explain.gallery import write_gallery
    from densekit.explain.images import Wanted, explain_images, find_classes, method_of
    from densekit.infer.classifier import Classifier
    from densekit.infer.inputs import image_names
    from densekit.infer.model import device_of
    from densekit.precision import FLAG, keep_freed_memory, resolve
    from densekit.progress import bar

    keep_freed_memory()
    chosen, images = method_of(method or "cam"), list(image_names(files))
    opened = open_path(source, model, classes)
    show_notes([*opened.notes, *dark_files(images)])
    formats = resolve(device_of(source, device), precision, typed=FLAG)
    classifier = Classifier(opened, formats, max_pixels, engine)
    asked = Wanted(chosen, topk or 3, find_classes(classifier, wanted or []), batch_size or 32)
    found = bar(explain_images(classifier, images, asked), len(images), "explaining")
    name = f"{opened.name}, {source}"
    written = write_gallery(Path(output).expanduser(), found, chosen, name, classifier.classes)
    failed = [row for row in written["rows"] if row["error"] is not None]
    if json:
        show_json(written)
    else:
        for row in failed:
            show(f"{row['file']}  error: {row['error']}")
        show(f"{output}/{written['page']}: {len(images) - len(failed):,} of {len(images):,} images")
    raise typer.Exit(1 if failed else 0)


def draw_reuse(opened: Opened, source: str, output: str, as_json: bool) -> None:
    """The figure and its numbers."""
    from pathlib import Path

    from densekit.explain.reuse import write_reuse

    found = write_reuse(Path(output).expanduser(), opened.model, f"{opened.name}, {source}")
    if as_json:
        show_json(found)
    else:
        show(f"{output}/{found['figure']}")
