"""A run between two steps: how it begins, what a training state holds of it, how it goes back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from densekit import distributed
from densekit.data.holdout import Sides
from densekit.data.loader import Step, TrainStream
from densekit.precision import keep_freed_memory
from densekit.stop import StopRequest
from densekit.training import nonfinite
from densekit.training.log import Reading, RunLog, Window
from densekit.training.nonfinite import NonFinite
from densekit.training.optim import Schedule
from densekit.training.plan import Plan
from densekit.training.progress import EpochBars
from densekit.training.run_folder import RunFolder
from densekit.training.state import STATE_FORMAT, Progress, State
from densekit.training.step import Learner


@dataclass
class Run:
    """What the functions of the loop share; `begin` sets what is not given."""

    plan: Plan
    learner: Learner
    stop: StopRequest
    folder: RunFolder = field(init=False)
    schedule: Schedule = field(init=False)
    log: RunLog = field(init=False)
    progress: Progress = field(init=False)
    steps: Iterator[tuple[Step, float]] = field(init=False)
    """This rank's share of every step that is left, and the seconds that it was waited for."""
    pending: Reading | None = None
    """The last step's sums, which are read while the next step runs."""
    saved_at: float = -math.inf
    """When a state was saved, by time.monotonic()."""
    drawn_at: float = -math.inf
    """When the curves were drawn."""

    @property
    def over(self) -> bool:
        """Whether the last epoch is done, or loop.patience evaluations were no better."""
        loop, progress = self.plan.recipe.loop, self.progress
        patient = loop.patience is None or progress.stale < loop.patience
        return progress.epochs == loop.epochs or not patient

    @property
    def asks(self) -> tuple[bool, bool]:
        """Whether this rank wants to stop, and to save a state."""
        minutes = (time.monotonic() - self.saved_at) / 60
        due = minutes > self.plan.recipe.loop.save_minutes
        return self.stop.asked, distributed.is_main() and due


@contextmanager
def begin(run: Run, replan: Callable[[Sides], Plan]) -> Iterator[None]:
    """Takes the run's folder, which is held until the `with` ends, and sets the run to before its
    first step or to the folder's newest state.

    Under loop.accept_data_change the images may be others than the state's: `replan` then makes
    the plan anew, with what was held out on its side. Raises UserError.
    """
    keep_freed_memory()
    recipe, digest = run.plan.recipe, run.plan.digest
    with RunFolder.opened(recipe, digest) as run.folder:
        state, known = run.folder.starting_point(recipe, digest)
        if known is not None:
            run.plan = replan(known)
        set_out(run, state)
        del state  # a run need not hold its first weights
        yield


def set_out(run: Run, state: State | None) -> None:
    """Before the first step, or where `state` has the run; says what a person should know of it."""
    plan, folder = run.plan, run.folder
    run.schedule = plan.schedule
    folder.keep_split(plan.train, plan.val, plan.recipe.data)
    bars = EpochBars(plan.recipe.loop.epochs, plan.steps_per_epoch)
    notes = [
        *folder.notes, *folder.states.corrupt.values(), *plan.warnings, *run.learner.notes
    ]  # fmt: skip
    for note in notes:
        bars.say(note)
    resume(run, state, bars)
    if state is None:
        start = {"kind": "event", "step": 0, "event": "start", "notes": notes}
        run.log.write({**start, **plan.environment})
        save(run)


def resume(run: Run, state: State | None, bars: EpochBars) -> None:
    """Sets the run to `state`, the log cut back to it; None: to its beginning."""
    plan, progress = run.plan, Progress()
    if state is not None:
        for change in plan.changes_since(state["environment"]):
            bars.say(change)
        load_learner_state(run.learner, state["learner"])
        progress = Progress(**state["progress"])
        if state["data"] != plan.digest:
            before = state.get("steps_per_epoch", plan.steps_per_epoch)
            progress = progress.with_other_images(before, plan.steps_per_epoch)
    if distributed.is_main():
        run.folder.cut_log(progress.lines)
    window = Window(dict(progress.window or Window().sums))
    run.log = RunLog(plan, run.folder, progress, bars, window)
    run.progress, run.pending = progress, None
    loop = plan.recipe.loop
    stream = TrainStream(
        plan.train,
        plan.recipe.data,
        seed=loop.seed,
        epochs=loop.epochs,
        accumulation=loop.accumulation,
        rank=distributed.rank(),
        world=distributed.world_size(),
        device=plan.precision.device,
        bad=progress.bad_images,
        on_bad=run.log.bad_images,
    )
    run.steps, run.saved_at = read_steps(stream, progress.step), time.monotonic()


def read_steps(stream: TrainStream, start: int) -> Iterator[tuple[Step, float]]:
    """The steps from `start` on, and the seconds that each was waited for."""
    steps = stream.from_step(start)
    for number in range(start, stream.steps):
        distributed.at_step(number)
        began = time.perf_counter()
        step = next(steps)
        yield step, time.perf_counter() - began


def save(run: Run) -> None:
    """A training state of now: whole on the disk some time later, or not there at all.

    Every step up to here has been read, so its loss is known to be finite.
    """
    assert run.pending is None
    run.saved_at = time.monotonic()
    if distributed.is_main():
        run.folder.log_file.sync()
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


@contextmanager
def rolling_back(run: Run) -> Iterator[None]:
    """NonFinite sets the run to its newest state: the replay leaves the step's batch out, and the
    state says so."""
    try:
        yield
    except NonFinite as event:
        run.folder.states.wait()
        line = nonfinite.leave_out(event.reading, run.log, "left out of the replay")
        skipped = run.progress.skipped
        state = distributed.from_main(run.folder.states.newest)
        resume(run, state, run.log.bars)
        run.progress.skipped = sorted({*skipped, *run.progress.skipped})
        run.log.write({**line, "step": run.progress.step})
        save(run)


def learner_state(learner: Learner) -> State:
    """All that the steps have changed. Rates are functions of the step and not in it."""
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict()["state"],
        "scaler": learner.scaler.state_dict(),
        "ema": None if learner.ema is None else learner.ema.state_dict(),
    }


def load_learner_state(learner: Learner, state: State) -> None:
    """The inverse of `learner_state`."""
    learner.model.load_state_dict(state["model"])
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
    if learner.scaler.is_enabled():
        learner.scaler.load_state_dict(state["scaler"])
    if learner.ema is not None:
        learner.ema.load_state_dict(state["ema"])
