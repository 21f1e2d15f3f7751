"""Training: set-up under headings, then the epochs, from a recipe to the run it describes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densekit import distributed
from densekit.data.decoded import decoded_images
from densekit.data.holdout import Sides
from densekit.data.loader import eval_batches
from densekit.data.run_images import OwnImages, open_checked
from densekit.data.transforms import Preprocessing
from densekit.infer.evaluate import evaluate, logits_of
from densekit.models import artifact
from densekit.precision import resolve
from densekit.stop import StopRequest
from densekit.training import curves, nonfinite
from densekit.training.autos import resolve_recipe
from densekit.training.fine_tuning import thaw
from densekit.training.log import read_later
from densekit.training.monitor import epoch_report, evaluated, score
from densekit.training.nonfinite import NonFinite
from densekit.training.plan import Plan
from densekit.training.recipe import Recipe
from densekit.training.recipe_checks import check
from densekit.training.run import Run, begin, rolling_back, save
from densekit.training.state import Progress
from densekit.training.step import Learner, create_learner, train_step

CURVES_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    folder: Path
    plan: Plan
    progress: Progress
    stopped: bool = False
    """Asked to stop before its last step; its state is saved."""
    already_finished: bool = False

    @property
    def ips(self) -> float:
        """Training images per second over all ranks."""
        return self.progress.images / max(self.progress.seconds, 1e-9)


def train(recipe: Recipe, images: OwnImages | None = None) -> Outcome:
    """Trains by `recipe`, from the start or from where its folder's newest state stands.

    `images` opens those of a program, in place of the recipe's. Raises UserError for a recipe,
    data or folder that does not fit, and for numbers that are not finite.
    """
    with StopRequest() as stop:
        # Set-up: the recipe against machine and data, the network, the run's folder and state ----
        plan = make_plan(recipe, images=images)
        run = Run(plan, create_learner(plan.recipe, plan.precision), stop)
        with begin(run, replan=lambda known: make_plan(recipe, known, images)):
            if run.over:
                return Outcome(run.folder.path, run.plan, run.progress, already_finished=True)

            # Epochs -----------------------------------------------------------------------------
            with run.log.bars:
                while not run.over:
                    with rolling_back(run):
                        if not train_epoch(run):
                            return Outcome(run.folder.path, run.plan, run.progress, stopped=True)
                        finish_epoch(run)
            return Outcome(run.folder.path, run.plan, run.progress)


def make_plan(recipe: Recipe, known: Sides | None = None, images: OwnImages | None = None) -> Plan:
    """Starts the process group and looks at the data; what is held out of the training list stays
    on the side where it is `known` to be. Raises UserError, alike on all ranks.

    `images` opens those of a program, in place of the recipe's.
    """
    check(recipe)
    model, loop = recipe.model, recipe.loop
    rank = distributed.local_rank()
    formats = resolve(loop.device, loop.precision, loop.memory_format, local_rank=rank)
    threads = distributed.start(formats.device, loop.rank_timeout, loop.threads)
    train, val, counts, notes = open_checked(
        recipe.data, model.task, model.num_classes, known, images
    )
    recipe, of_recipe = resolve_recipe(recipe, formats, train, val, counts)
    return Plan(
        recipe=recipe,
        train=train,
        val=val,
        counts=counts,
        warnings=[*notes, *of_recipe],
        precision=formats,
        eval_precision=resolve(formats.device.type, loop.eval_precision, local_rank=rank),
        threads=threads,
    )


def train_epoch(run: Run) -> bool:
    """The steps that the epoch still has. Returns whether all are done: no rank asked to stop."""
    recipe, learner, progress = run.plan.recipe, run.learner, run.progress
    thaw(learner, recipe, progress.epochs)
    run.log.start_epoch()
    for step in range(progress.step, (progress.epochs + 1) * run.schedule.steps_per_epoch):
        (batches, count), waited = next(run.steps)
        rate = run.schedule.set(learner.optimizer, step)
        shares = [(batch.images, batch.labels) for batch in batches]
        left_out = step in progress.skipped
        sums = train_step(learner, [] if left_out else shares, count, step, run.asks)
        asked = note(run)  # of the step before: this one runs meanwhile
        run.pending, progress.step = read_later(step, sums, rate, waited, batches), step + 1
        if asked or progress.step % recipe.loop.save_steps == 0:
            asked |= note(run)
            save(run)
            if "stop" in asked:
                return False
    note(run)
    return True


def note(run: Run) -> set[str]:
    """Counts and logs the sums of the step that is pending; what a rank asked for in it, "stop" or
    "save".
    """
    reading, run.pending = run.pending, None
    if reading is None:
        return set()
    values = reading.values()
    if values["bad"]:
        if run.plan.recipe.loop.on_nonfinite == "rollback":
            raise NonFinite(reading)
        event = nonfinite.leave_out(reading, run.log, "skipped")
        run.log.write({**event, "step": reading.step + 1})
    run.log.step(reading, values)
    return {name for name in ("stop", "save") if values[name]}


def finish_epoch(run: Run) -> None:
    """Evaluates where that is due, keeps the last and the best network, draws the curves."""
    plan, progress, loop = run.plan, run.progress, run.plan.recipe.loop
    text = "not evaluated"
    if loop.evaluates(progress.epochs + 1):
        save(run)  # an evaluation may take long, and the epoch's steps are done
        metrics = evaluate_epoch(plan, run.learner)
        progress.last = {"epoch": progress.epochs + 1, **metrics}
        rate = run.schedule.rate(run.learner.optimizer, progress.step - 1)
        run.log.evaluation(progress.last, rate)
        progress.stale += 1
        if math.isfinite(metrics["loss"]) and score(metrics, loop) > score(progress.best, loop):
            progress.best, progress.stale = progress.last, 0
            keep(run, run.folder.best)
        keep(run, run.folder.last)
        text = evaluated(metrics) + ("" if progress.stale else "  (best)")
    progress.epochs += 1
    run.log.bars.finish(progress.epochs - 1, text)
    if run.over:
        run.log.write({"kind": "event", "step": progress.step, "event": "end"})
    save(run)
    if run.over and progress.epochs < loop.epochs:
        run.log.bars.say(
            f"loop.patience={loop.patience}: no better {loop.monitor} since epoch "
            f"{progress.best.get('epoch', 0)}, so the run ends after epoch {progress.epochs}"
        )
    if distributed.is_main() and (run.over or time.monotonic() - run.drawn_at > CURVES_EVERY):
        title = f"{plan.recipe.name}: {plan.recipe.model.name}"
        curves.draw(run.folder.log_file.lines(), title, run.folder.path / "curves.png")
        run.drawn_at = time.monotonic()


def evaluate_epoch(plan: Plan, learner: Learner) -> dict[str, Any]:
    """Of the evaluated network over the validation images: the task's summary (count, loss, top1
    and top5), and what the epoch's report says."""
    data, precision, model = plan.recipe.data, plan.eval_precision, learner.evaluated
    distributed.broadcast_buffers(model)
    preprocessing = Preprocessing.from_config(data)
    batches = eval_batches(
        plan.val,
        preprocessing,
        data.evaluate.batch_size,
        int(data.workers),
        *(distributed.rank(), distributed.world_size()),
        precision.device.type == "cuda",
        data.max_pixels,
        decoded_images(plan.val, data),
    )
    logits = logits_of(model, preprocessing, precision)
    found = evaluate(logits, batches, plan.recipe.model.task, epoch_report(plan.recipe))
    return {**found.summary, **found.report}


def keep(run: Run, folder: Path) -> None:
    """Writes an artifact of the evaluated network, with the last evaluation's metrics."""
    if distributed.is_main():
        config = run.plan.artifact(run.progress.last)
        artifact.write_artifact(folder, config, run.learner.evaluated.state_dict())
