"""`densekit bench`, and what it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from densekit.cli.options import AsJson, Config, ImageSize, Options, ShortBatchSize, ShortModel
from densekit.cli.output import new_table, show, show_json, show_notes

if TYPE_CHECKING:
    from densekit.bench.compare import Report


def bench(
    config: Config = None,
    option: Options = None,
    model: ShortModel = None,
    image_size: ImageSize = None,
    batch_size: ShortBatchSize = None,
    ops: Annotated[
        str, typer.Option(metavar="OP,OP,...", help="Ops to compare.")
    ] = "reference,recompute,lean",
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Timed steps of each op.")] = 5,
    json: AsJson = False,
) -> None:
    """Compare the ops on this machine: training speed, memory, the largest batch that fits.

    [bold]Example[/]

      densekit bench -c imagenet/densenet121 --batch-size 16 --ops reference,lean
    """
    from densekit.bench import compare as bench_ops
    from densekit.paddleclas.open import open_recipe

    options = [*(option or []), *bench_ops.as_options(model, image_size, batch_size)]
    names, opened = bench_ops.parse_ops(ops), open_recipe(config, options)
    show_notes(opened.notes)
    print_bench(bench_ops.measure(opened.recipe, names, steps), as_json=json)


def print_bench(found: Report, as_json: bool) -> None:
    """A row for each op, and auto's choice."""
    from densekit.bench.compare import ROOM

    if as_json:
        show_json(found.model_dump(mode="json"))
        return
    show(
        f"training {found.model}, {found.batch_size} images of {found.image_size} x "
        f"{found.image_size} per batch, {found.precision}, {found.device}"
    )
    columns = ("Op", "img/s", "(range)", "Activations", "Largest batch")
    table = new_table(*columns, right=(columns[1], *columns[3:]))
    for op in found.ops:
        rate, held = op.images_per_second, op.activation_bytes
        table.add_row(
            op.taken or op.op,
            f"{rate.median:.1f}" if rate else "-",
            f"({rate.low:.1f} - {rate.high:.1f})" if rate else "-",
            "-" if held is None else f"{held / 2**30:.2f} GiB",
            "-" if op.largest_batch is None else f"{op.largest_batch:,}",
        )
    show(table)
    for op in found.ops:
        if op.reason:
            show(f"{op.op}: {op.reason}")
        if op.found:
            show(f"{op.op}: largest batch {op.found}")
    if found.free_bytes is not None:
        show(
            f"largest batches in {ROOM:.0%} of the {found.free_bytes / 2**30:.1f} GiB "
            f"that were free"
        )
    show(f"model.op=auto takes {found.auto}" + (f": {found.why}" if found.why else ""))
