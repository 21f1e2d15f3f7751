"""Training: from a recipe to the run it describes, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from densekit import distributed
from densekit.config import UserError
from densekit.precision import keep_freed_memory
from densekit.training.loop import STATE_FORMAT, Progress, Run
from densekit.training.recipe import Recipe
from densekit.training.run_folder import RunFolder
from densekit.training.setup import Plan, make_plan
from densekit.training.state import State
from densekit.training.stop import StopRequest


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


def train(recipe: Recipe) -> Outcome:
    """Trains by `recipe`, from the start or from where its folder's newest state stands.

    Raises UserError for a recipe, data or folder that does not fit, and for numbers that are not
    finite.
    """
    with StopRequest() as stop:
        keep_freed_memory()
        plan = make_plan(recipe)
        folder = RunFolder(plan.recipe.output_dir, plan.recipe.loop.keep)
        distributed.from_main(lambda: folder.open_(plan.recipe))
        distributed.on_every_rank(lambda: folder.hold(distributed.rank()))
        try:
            run = Run(plan, folder, stop)
            run.restore(distributed.from_main(lambda: starting_state(plan, folder)))
            if run.finished:
                return Outcome(folder.path, plan, run.progress, already_finished=True)
            with run.bars:
                stopped = run.go()
            return Outcome(folder.path, plan, run.progress, stopped)
        finally:
            folder.close()


def starting_state(plan: Plan, folder: RunFolder) -> State | None:
    """The state that loop.resume names; None begins at step 0. Raises UserError."""
    resume = plan.recipe.loop.resume
    if resume not in ("auto", "never") and not folder.states.files():
        folder.adopt(Path(resume), plan.recipe)
    state = folder.states.newest()
    if state is not None and state["format"] != STATE_FORMAT:
        raise UserError(
            f"{folder.path}: its state has format {state['format']}, this densekit reads format "
            f"{STATE_FORMAT}; go on with the densekit that wrote it, or set loop.output_dir"
        )
    if state is not None and state["data"] != plan.digest:
        raise UserError(
            f"{folder.path}: its state was trained on other lists of images than "
            f"{plan.train.origin} and {plan.val.origin}; to start anew, set loop.output_dir"
        )
    return state
