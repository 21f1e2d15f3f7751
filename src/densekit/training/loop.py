"""Training: set-up under headings, then the epochs, from a recipe to the run it describes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densekit import distributed
from densekit.data.decoded import decoded_images
from densekit.data.holdout import Sides
from densekit.data.listing import Examples
from densekit.data.loader import eval_batches, resolve_reading
from densekit.data.run_images import OwnImages, open_checked
from densekit.data.transforms import Preprocessing
from densekit.infer.evaluate import evaluate, logits_of
from densekit.models import artifact
from densekit.ops.choose import op_of_run
from densekit.precision import Precision, keep_freed_memory, resolve
from densekit.stop import StopRequest
from densekit.training import curves, nonfinite
from densekit.training.fine_tuning import thaw
from densekit.training.graph import resolve_graph
from densekit.training.log import read_later
from densekit.training.monitor import epoch_report, evaluated, for_images, score
from densekit.training.nonfinite import NonFinite
from densekit.training.notes import recipe_notes
from densekit.training.plan import Plan
from densekit.training.recipe import Recipe
from densekit.training.recipe_checks import check, check_batches
from densekit.training.run import Run, begin, roll_back, save
from densekit.training.run_folder import RunFolder
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
    keep_freed_memory()
    with StopRequest() as stop:
        # Set-up: the recipe against machine and data, the network, the folder, the state --------
        plan = make_plan(recipe, images=images)
        learner = create_learner(plan.recipe, plan.precision)
        with RunFolder.opened(plan.recipe, plan.digest) as folder:
            state, known = folder.starting_point(plan.recipe, plan.digest)
            if known is not None:  # loop.accept_data_change: the images are others now
                plan = make_plan(recipe, known, images)
            run = Run(plan, learner, folder, stop)
            begin(run, state)
            if run.over:
                return Outcome(folder.path, plan, run.progress, already_finished=True)

            # Epochs -----------------------------------------------------------------------------
            with run.log.bars:
                while not run.over:
                    try:
                        if not train_epoch(run):
                            return Outcome(folder.path, plan, run.progress, stopped=True)
                        finish_epoch(run)
                    except NonFinite as event:
                        roll_back(run, event.reading)
            return Outcome(folder.path, plan, run.progress)


def make_plan(recipe: Recipe, known: Sides | None = None, images: OwnImages | None = None) -> Plan:
    """Starts the process group and looks at the data; what is held out of the training list stays
    on the side where it is `known` to be. Raises UserError, alike on all ranks.

    `images` opens those of a program, in place of the recipe's.
    """
    check(recipe, distributed.world_size())
    model, loop = recipe.model, recipe.loop
    rank = distributed.local_rank()
    formats = resolve(loop.device, loop.precision, loop.memory_format, local_rank=rank)
    distributed.start(formats.device, loop.rank_timeout)
    threads = distributed.set_threads(loop.threads)
    train, val, counts, notes = open_checked(
        recipe.data, model.task, model.num_classes, known, images
    )
    recipe, of_recipe = _resolve_recipe(recipe, formats, train, val, counts)
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


def _resolve_recipe(
    recipe: Recipe, formats: Precision, train: Examples, val: Examples, counts: np.ndarray
) -> tuple[Recipe, list[str]]:
    """`recipe` with every `auto` and every null that the data or the machine decides filled in;
    and what a person should know of it."""
    model, data, loop = recipe.model, recipe.data, recipe.loop
    device = formats.device
    op, no_lean = distributed.from_main(lambda: op_of_run(model.op, device, formats.dtype))
    graph, no_graph = resolve_graph(recipe, device)
    reading, of_cache = resolve_reading(data, train, val, device.type, loop.epochs)
    of_loop = {
        "device": device.type,
        "precision": formats.name,
        "memory_format": formats.memory_format_name,
        "cuda_graph": graph,
        **for_images(loop, model.task, train, counts),
    }
    resolved = recipe.model_copy(
        update={
            "model": model.model_copy(update={"num_classes": len(counts), "op": op}),
            "data": reading,
            "loop": loop.model_copy(update=of_loop),
        }
    )
    check_batches(resolved, len(train), distributed.world_size())
    return resolved, [*no_lean, *no_graph, *of_cache, *recipe_notes(resolved, train, val)]


def train_epoch(run: Run) -> bool:
    """The steps that the epoch still has. Returns whether all are done: no rank asked to stop."""
    plan, progress, recipe, learner = run.plan, run.progress, run.plan.recipe, run.learner
    thaw(learner, recipe, progress.epochs)
    run.log.start_epoch()
    for step in range(progress.step, (progress.epochs + 1) * plan.steps_per_epoch):
        distributed.at_step(step)
        began = time.perf_counter()
        batches, count = next(run.steps)
        waited = time.perf_counter() - began
        rate = plan.schedule.set(learner.optimizer, step)
        sums = train_step(
            learner,
            recipe.loop,
            [(b.images, b.labels) for b in batches] if step not in progress.skipped else [],
            count,
            step,
            clip_norm=recipe.optim.clip_norm,
            asks=run.asks,
        )
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
        rate = plan.schedule.rate(run.learner.optimizer, progress.step - 1)
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
        curves.draw(run.folder.lines(), title, run.folder.path / "curves.png")
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
