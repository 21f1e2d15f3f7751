"""Training: set-up under headings, then the epochs, from a recipe to the run it describes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from densekit import distributed
from densekit.data.loader import Step, TrainStream, eval_batches
from densekit.data.transforms import Preprocessing
from densekit.infer.evaluate import evaluate, logits_of
from densekit.models import artifact
from densekit.precision import keep_freed_memory
from densekit.progress import waiting
from densekit.stop import StopRequest
from densekit.training import curves, nonfinite
from densekit.training.fine_tuning import thaw
from densekit.training.log import Reading, RunLog, Window, read_later
from densekit.training.monitor import epoch_report, evaluated, score
from densekit.training.nonfinite import NonFinite
from densekit.training.progress import EpochBars
from densekit.training.recipe import Recipe
from densekit.training.run_folder import RunFolder
from densekit.training.setup import OwnImages, Plan, make_plan
from densekit.training.state import STATE_FORMAT, Progress, State
from densekit.training.step import (
    Learner,
    create_learner,
    learner_state,
    load_learner_state,
    train_step,
)

CURVES_EVERY = 60.0  # seconds
REHEARSED = {"cpu": 8, "mps": 16, "cuda": 64}  # images in a rehearsal's step


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


@dataclass
class Run:
    """What the functions below share."""

    plan: Plan
    learner: Learner
    folder: RunFolder
    stop: StopRequest
    log: RunLog
    progress: Progress
    steps: Iterator[Step]
    """This rank's share of every step that is left."""
    saved_at: float
    """When, by time.monotonic()."""
    drawn_at: float = -math.inf

    @property
    def over(self) -> bool:
        """Whether the last epoch is done, or loop.patience evaluations were no better."""
        loop, progress = self.plan.recipe.loop, self.progress
        patient = loop.patience is None or progress.stale < loop.patience
        return progress.epochs == loop.epochs or not patient


def train(recipe: Recipe, images: OwnImages | None = None) -> Outcome:
    """Trains by `recipe`, from the start or from where its folder's newest state stands.

    `images` opens those of a program, in place of the recipe's. Raises UserError for a recipe,
    data or folder that does not fit, and for numbers that are not finite.
    """
    with StopRequest() as stop:
        # Set-up: the recipe against machine and data, the network, the folder, the state --------
        keep_freed_memory()
        plan = make_plan(recipe, images=images)
        learner, notes = create_learner(plan.recipe, plan.precision)
        with RunFolder.opened(plan.recipe, plan.digest) as folder:
            state = distributed.from_main(lambda: folder.starting_state(plan.recipe, plan.digest))
            if state is not None and state["data"] != plan.digest:  # loop.accept_data_change
                plan = make_plan(recipe, distributed.from_main(folder.known_sides), images)
            folder.keep_split(plan.train, plan.val, plan.recipe.data)
            bars = EpochBars(plan.recipe.loop.epochs, plan.steps_per_epoch)
            notes = [*folder.notes, *folder.states.corrupt.values(), *plan.warnings, *notes]
            for note in notes:
                bars.say(note)
            run = resume(plan, learner, folder, stop, bars, state)
            if state is None:
                run.log.write({"kind": "event", "step": 0, "event": "start", "notes": notes,
                               **plan.environment})  # fmt: skip
                save(run)
            if run.over:
                return Outcome(folder.path, plan, run.progress, already_finished=True)

            # Epochs -----------------------------------------------------------------------------
            with bars:
                while not run.over:
                    try:
                        if train_epoch(run):
                            save(run)
                            return Outcome(folder.path, plan, run.progress, stopped=True)
                        finish_epoch(run)
                    except NonFinite as event:
                        run = roll_back(run, event.reading)
            return Outcome(folder.path, plan, run.progress)


def train_epoch(run: Run) -> bool:
    """The steps that the epoch still has. Returns whether the ranks agreed to stop."""
    plan, progress, recipe = run.plan, run.progress, run.plan.recipe
    thaw(run.learner, recipe, progress.epochs)
    run.log.start_epoch()
    pending: Reading | None = None  # a step's sums are read while the next step runs
    for step in range(progress.step, (progress.epochs + 1) * plan.steps_per_epoch):
        distributed.at_step(step)
        began = time.perf_counter()
        batches, count = next(run.steps)
        waited = time.perf_counter() - began
        rate = plan.schedule.set(run.learner.optimizer, step)
        sums = train_step(
            run.learner,
            recipe.loop,
            [(b.images, b.labels) for b in batches] if step not in progress.skipped else [],
            count,
            step,
            clip_norm=recipe.optim.clip_norm,
            asks=(run.stop.asked, distributed.is_main() and minutes_are_up(run)),
        )
        asked = note(run, pending)
        pending, progress.step = read_later(step, sums, rate, waited, batches), step + 1
        if asked or progress.step % recipe.loop.save_steps == 0:
            asked |= note(run, pending)
            pending = None
            if "stop" in asked:
                return True
            save(run)
    note(run, pending)
    return False


def note(run: Run, reading: Reading | None) -> set[str]:
    """Counts and logs a step's sums; what a rank asked for in it, "stop" or "save"."""
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
        run.log.write({"kind": "eval", "step": progress.step, **progress.last, "lr": rate})
        progress.stale += 1
        if math.isfinite(metrics["loss"]) and score(metrics, loop) > score(progress.best, loop):
            progress.best, progress.stale = progress.last, 0
            keep(run, run.folder.best)
        keep(run, run.folder.last)
        text = evaluated(metrics) + ("" if progress.stale else "  (best)")
    progress.epochs += 1
    run.log.bars.finish(progress.epochs - 1, text)
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
    )
    logits = logits_of(model, preprocessing, precision)
    found = evaluate(logits, batches, plan.recipe.model.task, epoch_report(plan.recipe))
    return {**found.summary, **found.report}


def keep(run: Run, folder: Path) -> None:
    """Writes an artifact of the evaluated network, with the last evaluation's metrics."""
    if distributed.is_main():
        config = run.plan.artifact(run.progress.last)
        artifact.write_artifact(folder, config, run.learner.evaluated.state_dict())


# States -------------------------------------------------------------------------------------


def minutes_are_up(run: Run) -> bool:
    return time.monotonic() - run.saved_at > 60 * run.plan.recipe.loop.save_minutes


def save(run: Run) -> None:
    """A training state of now: whole on the disk some time later, or not there at all.

    Every step up to here has been read, so its loss is known to be finite.
    """
    run.saved_at = time.monotonic()
    if distributed.is_main():
        run.folder.sync_log()
        run.progress.window = dict(run.log.window.sums)
        run.folder.states.save(
            run.progress.step,
            {
                "format": STATE_FORMAT,
                "data": run.plan.digest,
                "environment": run.plan.environment,
                "steps_per_epoch": run.plan.steps_per_epoch,
                "progress": asdict(run.progress),
                "learner": learner_state(run.learner),
            },
        )


def resume(
    plan: Plan,
    learner: Learner,
    folder: RunFolder,
    stop: StopRequest,
    bars: EpochBars,
    state: State | None,
) -> Run:
    """The run as `state` has it, the log cut back to it; None: before its first step."""
    progress = Progress()
    if state is not None:
        for change in plan.changes_since(state["environment"]):
            bars.say(change)
        load_learner_state(learner, state["learner"])
        progress = Progress(**state["progress"])
        if state["data"] != plan.digest:
            before = state.get("steps_per_epoch", plan.steps_per_epoch)
            progress = progress.with_other_images(before, plan.steps_per_epoch)
    if distributed.is_main():
        folder.cut_log(progress.lines)
    recipe = plan.recipe
    window = Window(dict(progress.window or Window().sums))
    log = RunLog(plan, folder, progress, bars, window)
    stream = TrainStream(
        plan.train,
        recipe.data,
        seed=recipe.loop.seed,
        epochs=recipe.loop.epochs,
        accumulation=recipe.loop.accumulation,
        rank=distributed.rank(),
        world=distributed.world_size(),
        pin_memory=plan.precision.device.type == "cuda",
        bad=progress.bad_images,
        on_bad=log.bad_images,
    )
    steps, now = stream.from_step(progress.step), time.monotonic()
    return Run(plan, learner, folder, stop, log, progress, steps, saved_at=now)


def roll_back(run: Run, reading: Reading) -> Run:
    """To the newest state; the replay leaves the step's batch out, and the state says so."""
    run.folder.states.wait()
    event = nonfinite.leave_out(reading, run.log, "left out of the replay")
    skipped = run.progress.skipped
    state = distributed.from_main(run.folder.states.newest)
    run = resume(run.plan, run.learner, run.folder, run.stop, run.log.bars, state)
    run.progress.skipped = sorted({*skipped, *run.progress.skipped})
    run.log.write({**event, "step": run.progress.step})
    save(run)
    return run


# --dry-run ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rehearsal:
    """What came of it."""

    plan: Plan
    notes: list[str]
    """What a person should know before the run starts."""
    images: int
    """Images of the step, on each rank."""
    seconds: float
    """That all steps of the run take, by that one."""


def rehearse(recipe: Recipe) -> Rehearsal:
    """Sets a run up as `train` does, but claims no folder, and trains two steps of grey images.

    Raises UserError for whatever `train` would refuse before its first step.
    """
    plan = make_plan(recipe)
    recipe = plan.recipe
    folder_notes = distributed.from_main(lambda: RunFolder.look(recipe, plan.digest))
    learner, notes = create_learner(recipe, plan.precision)
    share = recipe.micro_batch_size // distributed.world_size()
    count = max(2, min(share, REHEARSED[plan.precision.device.type]))
    side = recipe.data.train_side
    images = torch.full((count, recipe.data.channels, side, side), 128, dtype=torch.uint8)
    shares = [(images, torch.from_numpy(plan.train.labels[:1]).repeat_interleave(count, 0))]
    with waiting("one step, to see how long the run will take"):
        for step in range(2):  # of which the first one pays for what happens once
            began = time.perf_counter()
            total = count * distributed.world_size()
            train_step(learner, recipe.loop, shares, total, step).tolist()
            seconds = time.perf_counter() - began
    of_run = len(plan.train) / distributed.world_size() * recipe.loop.epochs
    return Rehearsal(plan, [*plan.warnings, *notes, *folder_notes], count, seconds / count * of_run)
