"""`densekit data pack`, and what it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from densekit.cli.options import AsJson
from densekit.cli.output import new_table, show, show_json, show_notes

if TYPE_CHECKING:
    from densekit.data.shards.pack import Packed


def data_pack(
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="What data.train may be: a folder, a list, a CSV.")
    ],
    dst: Annotated[str, typer.Argument(metavar="DST", help="A folder for the shards.")],
    split: Annotated[
        Optional[str],  # noqa: UP045 (typer on Python 3.10 reads it at run time)
        typer.Option(
            "--split", metavar="train|val", help="Which split SRC is; default: all splits in SRC."
        ),
    ] = None,
    task: Annotated[
        str,
        typer.Option("--task", metavar="multiclass|multilabel|binary", help="How labels are read."),
    ] = "multiclass",
    shard_images: Annotated[
        int, typer.Option("--shard-images", metavar="N", min=1, help="Images per shard.")
    ] = 1024,
    resize: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--resize", metavar="PIXELS", min=1, help="Shrink to this short side, as JPEG."
        ),
    ] = None,
    quality: Annotated[
        int,
        typer.Option("--quality", metavar="N", min=1, max=100, help="JPEG quality of --resize."),
    ] = 90,
    threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--threads", metavar="N", min=1, help="Shards written at once; default one per core."
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Pack images and labels into shards: WebDataset's tar files, and an index.

    For object storage, or a disk that is slow with small files. If killed, run
    the same command to resume. Files are stored unchanged unless --resize
    shrinks them.

    [bold]Examples[/]

      densekit data pack /imagenet /shards/imagenet
      densekit data pack /imagenet /shards/imagenet-256 --resize 256 --quality 90
      densekit train -c imagenet/densenet121 -o data.root=/shards/imagenet
    """
    from pathlib import Path

    from densekit.data.shards.pack import PackOptions, pack_splits

    options = PackOptions(shard_images, resize, quality)
    packed, notes = pack_splits(src, Path(dst).expanduser(), split, task, options, threads)
    show_notes(notes)
    print_packed(dst, packed, as_json=json)


def print_packed(folder: str, packed: list[Packed], as_json: bool) -> None:
    """A row for each split."""
    if as_json:
        show_json([split._asdict() for split in packed])
        return
    columns = ("Split", "Images", "Shards", "MiB", "Written now", "Seconds")
    table = new_table(*columns, right=columns[1:])
    for each in packed:
        table.add_row(
            each.split, f"{each.images:,}", f"{each.shards:,}", f"{each.bytes / 2**20:,.1f}",
            f"{each.written:,}", f"{each.seconds:.1f}",
        )  # fmt: skip
    show(table)
    show(f"\ntrain with -o data.root={folder}")
