"""`densekit train`, and what it prints."""

from __future__ import annotations

import signal
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from densekit.cli.options import AsJson, Config, DryRun, Options, OwnFolder, Resume, ShortModel
from densekit.cli.output import new_table, number, show, show_json, show_notes

if TYPE_CHECKING:
    from densekit.training.loop import Outcome
    from densekit.training.recipe import Recipe

STOPPED = 75  # EX_TEMPFAIL: run it again to resume


def train(
    config: Config = None,
    option: Options = None,
    data: OwnFolder = None,
    model: ShortModel = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Train a DenseNet.

    [bold]Examples[/]

      densekit train -c quickstart
      densekit train --data ~/pets --model densenet121
      densekit train -c imagenet/densenet121 -o data.root=/imagenet
      torchrun --nproc-per-node=4 -m densekit train -c imagenet/densenet121 -o data.root=/imagenet
    """
    from densekit import distributed
    from densekit.paddleclas.open import open_recipe
    from densekit.training.loop import train as run

    options = list(option or [])
    options += [f"model.name={model}"] if model else []
    options += [f"loop.resume={resume}"] if resume else []
    with distributed.session():
        opened = open_recipe(config, options, folder=data)
        show_notes(opened.notes)
        if dry_run:
            print_rehearsal(opened.recipe, as_json=json)
            return
        outcome = run(opened.recipe)
        conclude(outcome, as_json=json)
    if outcome.stopped:
        raise typer.Exit(STOPPED)


def conclude(outcome: Outcome, as_json: bool) -> None:
    """After a run whose state is saved: its report, if asked for, and its results."""
    if not outcome.stopped:
        from densekit.report.end_of_run import report_run

        report_run(outcome)  # may take minutes, during which SIGTERM ends the process
    # everything is saved; launchers and schedulers repeat the signal that stopped the run
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print_outcome(outcome, as_json)


def print_outcome(outcome: Outcome, as_json: bool) -> None:
    """The results table, and the run's folder."""
    from densekit import distributed, precision
    from densekit.models import variants

    progress, plan = outcome.progress, outcome.plan
    device = precision.describe_device(plan.precision.device, distributed.world_size())
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
        show(
            f"stopped after step {progress.step} of {plan.steps}; the state is saved: the same "
            f"command resumes"
        )
        return
    if outcome.already_finished:
        show(f"{outcome.folder} is finished: nothing to train")
    one = plan.recipe.model.task == "multiclass"
    columns = {"Top1": "top1", "Top5": "top5"} if one else {"AUROC": "auroc", "F1": "f1"}
    table = new_table("Model", "Device", *columns, "ips", right=(*columns, "ips"))
    best = progress.best or progress.last
    measured = (number(best[key]) for key in columns.values())
    table.add_row(variants.label(plan.recipe.model), device, *measured, f"{outcome.ips:.0f}")
    show(table)
    if progress.last:
        name, key = ("top-1", "top1") if one else ("AUROC", "auroc")
        show(
            f"best: epoch {best['epoch']} of {plan.recipe.loop.epochs}, in {outcome.folder}/best; "
            f"last epoch: {name} {number(progress.last[key])}"
        )


def print_rehearsal(asked: Recipe, as_json: bool) -> None:
    """The output of --dry-run: recipe, data, model, schedule, time."""
    from densekit.config import to_yaml
    from densekit.data.groups import group_counts
    from densekit.models import variants
    from densekit.training.progress import duration
    from densekit.training.rehearsal import rehearse

    found = rehearse(asked)
    plan, recipe = found.plan, found.plan.recipe
    model = variants.describe_variant(recipe.model.name, plan.architecture)
    schedule = [{"epoch": epoch, "lr": rate} for epoch, rate in plan.schedule.by_epoch()]
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
                "groups": group_counts(plan.train, plan.val),
                "warnings": found.notes,
                "seconds": found.seconds,
            }
        )
        return
    show(to_yaml(recipe.model_dump(mode="json")))
    show(
        f"model     {model.name}: {model.parameters:,} parameters, "
        f"{model.multiply_adds / 1e9:.2f} G multiply-adds at {model.image_size} x "
        f"{model.image_size}"
    )
    show(
        f"data      {len(plan.train):,} training images from {plan.train.origin}, "
        f"{len(plan.val):,} validation images from {plan.val.origin}"
    )
    show(
        f"          {len(plan.counts)} classes of {plan.counts.min():,} to "
        f"{plan.counts.max():,} training images"
    )
    for text in found.notes:
        show(f"          {text}")
    show(
        f"schedule  {recipe.loop.epochs} epochs of {plan.steps_per_epoch:,} steps; lr by epoch: "
        + ", ".join(f"{row['epoch']}: {row['lr']:.4g}" for row in schedule)
    )
    show(
        f"time      about {duration(found.seconds)} h of training steps, by one step of "
        f"{found.images} images per rank, without reading images and evaluation"
    )
    show("nothing was trained: --dry-run")
