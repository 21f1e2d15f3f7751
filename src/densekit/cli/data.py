"""`densekit data check` and `data bench`, and what they print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from densekit.cli.options import AsJson, Config, Options
from densekit.cli.output import new_table, show, show_json, show_notes
from densekit.cli.pack import data_pack
from densekit.cli.plain_help import PlainCommand, PlainGroup

if TYPE_CHECKING:
    from densekit.bench.reading import InputReport
    from densekit.data.malformed import MalformedLines
    from densekit.data.survey import Copies, Fault, PixelRange, Survey

MISTAKES_LISTED = 5  # per kind; --json has all
CLASSES_LISTED = 20

data_app = typer.Typer(
    name="data",
    cls=PlainGroup,
    help="Check a data set, measure how fast it is read, pack it into shards.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
OwnData = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="As for [cyan]densekit train --data[/]: a folder, a list, a CSV."
    ),
]


@data_app.command("check", cls=PlainCommand)
def data_check(
    path: OwnData,
    config: Config = None,
    option: Options = None,
    threads: Annotated[
        Optional[int],  # noqa: UP045 (typer on Python 3.10 reads it at run time)
        typer.Option(
            "--threads", metavar="N", min=1, help="Images decoded at once; default one per core."
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Decode every image; find duplicates, also across training and validation; count classes.

    Exits with 1 for malformed lines, unreadable files, labels out of range,
    training images that are also validation images, and duplicates with different
    labels. Duplicates are found by their pixels.

    [bold]Examples[/]

      densekit data check ~/pets
      densekit data check train_list.txt -o data.val=val_list.txt --json
    """
    from densekit.data.malformed import MalformedLines
    from densekit.data.survey import open_all, survey
    from densekit.paddleclas.open import open_recipe

    try:
        opened = open_recipe(config, option or [], folder=path)
        data, model = opened.recipe.data, opened.recipe.model
        train, val = open_all(data, model.task)
    except MalformedLines as error:
        print_malformed(error, as_json=json)
        raise typer.Exit(1) from error
    show_notes(opened.notes)
    found = survey(train, val, data, model.num_classes, threads)
    print_survey(found, as_json=json)
    if found.is_wrong:
        raise typer.Exit(1)


def print_malformed(error: MalformedLines, as_json: bool) -> None:
    """The malformed lines of a list."""
    if as_json:
        show_json({"ok": False, "malformed": error.said})
        return
    show(f"{len(error.said):,} lines of a list are malformed:")
    show(str(error))
    show("fix these before training")


def print_survey(found: Survey, as_json: bool) -> None:
    """Tables of sizes and classes, then notes, then errors."""
    if as_json:
        show_json({"ok": not found.is_wrong, "malformed": [], **found.model_dump(mode="json")})
        return
    images = found.train + found.val
    show(
        f"{found.train:,} training and {found.val:,} validation images, "
        f"{found.file_bytes / 2**20:,.0f} MiB, decoded in {found.seconds:.1f} s "
        f"({images / found.seconds:,.0f} a second)"
    )
    columns = ("Pixels", "smallest", "median", "largest")
    table = new_table(*columns, right=columns[1:])
    for name, of in (("width", found.width), ("height", found.height)):
        table.add_row(name, *_pixels(of))
    table.add_row("short side", *_pixels(found.short_side))
    show(table)
    show("")
    columns = ("Class", "", "train", "val")
    table = new_table(*columns, right=("Class", *columns[2:]))
    for one in found.classes[:CLASSES_LISTED]:
        table.add_row(str(one.label), one.name, f"{one.train:,}", f"{one.val:,}")
    show(table)
    if len(found.classes) > CLASSES_LISTED:
        show(f"and {len(found.classes) - CLASSES_LISTED:,} more classes (--json has all)")
    show("")
    if found.enlarged:
        show(f"{found.enlarged:,} images are smaller than the network's input and are enlarged")
    for note in found.notes:
        show(f"note: {note}")
    _show_copies("duplicates (each copy counts)", found.repeated)
    _show_faults("cannot be read", found.unreadable)
    _show_faults("have a label out of range", found.mislabelled)
    _show_copies("training images are also validation images", found.leaked)
    _show_copies("images have different labels", found.contradictory)
    show("fix these before training" if found.is_wrong else "no errors found")


def _pixels(of: PixelRange | None) -> tuple[str, ...]:
    return ("-",) * 3 if of is None else (f"{of.smallest:,}", f"{of.median:,g}", f"{of.largest:,}")


def _show_faults(what: str, faults: Sequence[Fault]) -> None:
    if faults:
        show(f"{len(faults):,} images {what}:")
    for one in faults[:MISTAKES_LISTED]:
        image = one.image
        at = "" if image.place == image.file else f"{image.place}: "
        show(f"  {at}{image.file} ({image.split}, {image.label}): {one.reason}")


def _show_copies(what: str, groups: Sequence[Copies]) -> None:
    if groups:
        show(f"{len(groups):,} {what}:")
    for group in groups[:MISTAKES_LISTED]:
        places = (
            f"{one.place} ({one.split}, {one.label})" for one in group.images[:MISTAKES_LISTED]
        )
        show("  " + " = ".join(places) + (" = ..." if len(group.images) > MISTAKES_LISTED else ""))


@data_app.command("bench", cls=PlainCommand)
def data_bench(
    path: OwnData,
    config: Config = None,
    option: Options = None,
    images: Annotated[int, typer.Option(metavar="N", min=1, help="Training images to read.")] = 512,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rounds; in each, every reader runs once.")
    ] = 3,
    rate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            min=0.001,
            metavar="N",
            help="Images/s that a GPU consumes: prints how many cores can feed it.",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Measure how fast this machine reads your images, compared with torchvision.

    Times each stage and the whole loader, with one worker process and with one
    per core, in turns with torchvision's transforms v2 on images decoded by PIL
    and torchvision.io. Keep the machine otherwise idle.

    [bold]Examples[/]

      densekit data bench ~/pets
      densekit data bench /imagenet -c imagenet/densenet121 --rate 2450
    """
    from densekit.bench.reading import measure_reading
    from densekit.data.survey import open_all
    from densekit.paddleclas.open import open_recipe

    opened = open_recipe(config, option or [], folder=path)
    show_notes(opened.notes)
    data, model = opened.recipe.data, opened.recipe.model
    train, _ = open_all(data, model.task)
    print_reading(measure_reading(train, data, images, rounds, rate), as_json=json)


def print_reading(found: InputReport, as_json: bool) -> None:
    """A row for each stage and reader, and the cores that --rate needs."""
    if as_json:
        show_json(found.model_dump(mode="json"))
        return
    show(f"{found.images:,} training images to {found.side} x {found.side}, on one core")
    table = new_table("Stage", "ms an image", "img/s", right=("ms an image", "img/s"))
    for stage in found.stages:
        table.add_row(stage.name, f"{1000 * stage.seconds:.3f}", f"{1 / stage.seconds:,.0f}")
    show(table)
    show("")
    columns = ("Whole loader", "img/s", "(range)", "densekit is", "(range)")
    table = new_table(*columns, right=("img/s", "densekit is"))
    for each in found.loaders:
        speed, times = each.images_per_second, each.speedup
        table.add_row(
            f"{each.name}, {each.workers} worker{'s' * (each.workers > 1)}",
            f"{speed.median:,.0f}",
            f"({speed.low:,.0f} - {speed.high:,.0f})",
            f"{times.median:.2f} x" if times else "",
            f"({times.low:.2f} - {times.high:.2f})" if times else "",
        )
    show(table)
    for note in found.notes:
        show(note)
    if found.rate is not None:
        show(
            f"{found.rate:,g} images a second need {found.cores_for_rate} such cores, at "
            f"{found.images_per_second_and_core:,.0f} each with a worker on all {found.cores}"
        )


data_app.command("pack", cls=PlainCommand)(data_pack)
