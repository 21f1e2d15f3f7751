"""What commands print: tables for people by rich, JSON for scripts, always on stdout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from densekit import distributed, precision
from densekit.bench import compare as bench_ops
from densekit.config import to_yaml
from densekit.models import variants
from densekit.training import optim
from densekit.training.recipe import shipped
from densekit.training.run_training import Outcome
from densekit.training.setup import Plan

CLASSES_SHOWN = 20
CLASS_NUMBERS = ("Precision", "Recall")


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _show(table: Table | str) -> None:
    if distributed.is_main():
        Console(highlight=False).print(table, soft_wrap=isinstance(table, str), markup=False)


def show_json(value: Any) -> None:
    if distributed.is_main():
        print(json.dumps(value, indent=2))


def print_outcome(outcome: Outcome, as_json: bool) -> None:
    """The results line of a model card, and where the run is."""
    progress, plan = outcome.progress, outcome.plan
    device = precision.describe(plan.precision.device, distributed.world_size())
    if as_json:
        show_json(
            {
                "model": variants.label(plan.recipe.model),
                "device": device,
                "best": progress.best,
                "last": progress.last,
                "ips": outcome.ips,
                "folder": str(outcome.folder),
                "stopped": outcome.stopped,
                "steps": progress.step,
            }
        )
        return
    if outcome.stopped:
        _show(
            f"stopped after step {progress.step} of {plan.steps}; the state is saved: the same "
            f"command goes on"
        )
        return
    if outcome.already_finished:
        _show(f"{outcome.folder} is finished: nothing to train")
    columns = ("Model", "Device", "Top1", "Top5", "ips")
    table = _table(*columns, right=columns[2:])
    best = progress.best or progress.last
    table.add_row(
        variants.label(plan.recipe.model),
        device,
        f"{best['top1']:.4f}",
        f"{best['top5']:.4f}",
        f"{outcome.ips:.0f}",
    )
    _show(table)
    if progress.last:
        _show(
            f"best: epoch {best['epoch']} of {plan.recipe.loop.epochs}, in {outcome.folder}/best; "
            f"last epoch: top-1 {progress.last['top1']:.4f}"
        )


def print_plan(plan: Plan, as_json: bool) -> None:
    """What --dry-run says: the recipe, the data, the model, the schedule."""
    recipe = plan.recipe
    model = variants.describe(recipe.model.name, plan.architecture)
    schedule = [
        {"epoch": epoch, "lr": lr}
        for epoch, lr in optim.rates_by_epoch(
            recipe.optim, recipe.data.batch_size, recipe.loop.epochs, plan.steps_per_epoch
        )
    ]
    if as_json:
        show_json(
            {
                "recipe": recipe.model_dump(mode="json"),
                "model": asdict(model),
                "schedule": schedule,
                "steps_per_epoch": plan.steps_per_epoch,
                "train": len(plan.train),
                "val": len(plan.val),
                "counts": plan.counts.tolist(),
                "warnings": plan.warnings,
            }
        )
        return
    _show(to_yaml(recipe.model_dump(mode="json")))
    _show(
        f"model     {model.name}: {model.parameters:,} parameters, "
        f"{model.multiply_adds / 1e9:.2f} G multiply-adds at {model.image_size} x "
        f"{model.image_size}"
    )
    _show(
        f"data      {len(plan.train):,} training images from {plan.train.origin}, "
        f"{len(plan.val):,} validation images from {plan.val.origin}"
    )
    _show(
        f"          {len(plan.counts)} classes of {plan.counts.min():,} to "
        f"{plan.counts.max():,} training images"
    )
    for text in plan.warnings:
        _show(f"          {text}")
    _show(
        f"schedule  {recipe.loop.epochs} epochs of {plan.steps_per_epoch:,} steps; lr by epoch: "
        + ", ".join(f"{row['epoch']}: {row['lr']:.4g}" for row in schedule)
    )
    _show("nothing was trained: --dry-run")


def print_evaluation(found: dict[str, Any], as_json: bool) -> None:
    """The results line, and per class where the classes fit on a screen."""
    if as_json:
        show_json(found)
        return
    columns = ("Images", "Top1", "Top5", "Loss", "ECE", "Balanced", "AUROC", "ips")
    table = _table(*columns, right=columns)
    numbers = (found[key] for key in ("top1", "top5", "loss", "ece", "balanced_accuracy", "auroc"))
    table.add_row(f"{found['count']:,}", *map(_number, numbers), f"{found['ips']:.0f}")
    _show(table)
    rows = [row for row in found["per_class"] if row["count"]]
    if len(rows) <= CLASSES_SHOWN:
        table = _table("Class", "Images", "Precision", "Recall", right=columns[:1] + CLASS_NUMBERS)
        for row in rows:
            cells = map(_number, (row["precision"], row["recall"]))
            table.add_row(row["label"], f"{row['count']:,}", *cells)
        _show("")
        _show(table)
    steps = found["preprocessing"]
    resized = "" if steps["resize"] is None else f"short side to {steps['resize']}, "
    _show(
        f"\npreprocessing: {resized}centre {steps['crop']}, "
        f"{steps['interpolation']}, antialias {str(steps['antialias']).lower()}, "
        f"rounding as {steps['rounding']}'s; "
        f"precision {found['precision']}; all of it with --json"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def print_notes(notes: Sequence[str]) -> None:
    """What a person should know, on stderr."""
    if distributed.is_main():
        console = Console(stderr=True, highlight=False)
        for note in notes:
            console.print(note, markup=False, soft_wrap=True)


def print_bench(found: bench_ops.Report, as_json: bool) -> None:
    """A row for each op, and what auto takes."""
    if as_json:
        show_json(found.model_dump(mode="json"))
        return
    _show(
        f"training {found.model}, {found.batch_size} images of {found.image_size} x "
        f"{found.image_size} at once, {found.precision}, {found.device}"
    )
    columns = ("Op", "img/s", "(range)", "Activations", "Largest batch")
    table = _table(*columns, right=(columns[1], *columns[3:]))
    for op in found.ops:
        rate, held = op.images_per_second, op.activation_bytes
        table.add_row(
            op.taken or op.op,
            f"{rate.median:.1f}" if rate else "-",
            f"({rate.low:.1f} - {rate.high:.1f})" if rate else "-",
            "-" if held is None else f"{held / 2**30:.2f} GiB",
            "-" if op.largest_batch is None else f"{op.largest_batch:,}",
        )
    _show(table)
    for op in found.ops:
        if op.reason:
            _show(f"{op.op}: {op.reason}")
        if op.found:
            _show(f"{op.op}: largest batch {op.found}")
    if found.free_bytes is not None:
        _show(
            f"largest batches in {bench_ops.ROOM:.0%} of the {found.free_bytes / 2**30:.1f} GiB "
            f"that were free"
        )
    _show(f"model.op=auto takes {found.auto}" + (f": {found.why}" if found.why else ""))


def print_models(as_json: bool) -> None:
    """A row for each variant."""
    rows = [variants.describe(name, config) for name, config in variants.VARIANTS.items()]
    if as_json:
        show_json([asdict(row) for row in rows])
        return
    columns = ("Model", "Parameters", "Multiply-adds", "Input", "Classes")
    table = _table(*columns, right=columns[1:])
    for row in rows:
        table.add_row(
            row.name,
            f"{row.parameters:,}",
            f"{row.multiply_adds / 1e9:.2f} G",
            f"{row.image_size} x {row.image_size}",
            f"{row.num_classes:,}",
        )
    _show(table)
    _show("by the same pattern: densenet_L_k and densenet_bc_L_k, depth L, growth rate k")


def print_recipes() -> None:
    """The shipped recipes and the first comment line of each."""
    table = _table("Recipe", "What it trains")
    for name, file in shipped().items():
        table.add_row(name, file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# "))
    _show(table)
