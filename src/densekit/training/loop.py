"""A run in progress: its steps, its epochs, its states."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from densekit import distributed
from densekit import progress as display
from densekit.config import UserError
from densekit.data.loader import Step, TrainStream, eval_batches
from densekit.data.transforms import Preprocessing
from densekit.infer.evaluate import evaluate, logits_of
from densekit.models import artifact
from densekit.models.artifact import ArtifactConfig, Described
from densekit.progress import EpochBars
from densekit.training import curves, nonfinite, optim
from densekit.training.learner import (
    create_learner,
    evaluated_model,
    learner_state,
    load_learner_state,
)
from densekit.training.log import NonFinite, Reading, Window, read_later
from densekit.training.run_folder import RunFolder
from densekit.training.setup import Plan
from densekit.training.state import State
from densekit.training.step import train_step
from densekit.training.stop import StopRequest

Metrics = dict[str, Any]
STATE_FORMAT = 1
CURVES_EVERY = 60.0  # seconds


@dataclass
class Progress:
    """Where a run stands: with the learner's, all that a training state holds."""

    step: int = 0
    """Optimizer steps done."""
    epochs: int = 0
    """Epochs that are trained and evaluated."""
    last: Metrics = field(default_factory=dict)
    best: Metrics = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    """Steps without an update: their loss or gradient was not finite."""
    images: float = 0.0
    seconds: float = 0.0
    """Of training alone: with images, the run's images per second."""
    window: Metrics = field(default_factory=dict)
    """Sums of the steps since the last line of the log."""
    lines: int = 0
    """Of log.jsonl: a resumed run cuts it back to these."""


class Run:
    """A run in progress: steps, epochs, states."""

    def __init__(self, plan: Plan, folder: RunFolder, stop: StopRequest) -> None:
        self.plan, self.folder, self.stop = plan, folder, stop
        self.config = plan.recipe.loop
        self.bars = EpochBars(self.config.epochs, plan.steps_per_epoch)
        self.learner, said = create_learner(plan)
        scaled = optim.scaling_note(plan.recipe.optim, plan.recipe.data.batch_size)
        self.notes = [*plan.warnings, *said, *([scaled] if scaled else [])]
        for text in self.notes:
            self.bars.say(text)
        self.progress, self.window = Progress(), Window()
        self.saved_at, self.drawn_at = time.monotonic(), 0.0

    @property
    def finished(self) -> bool:
        return self.progress.epochs == self.config.epochs

    def go(self) -> bool:
        """To the last epoch's end. Returns whether it was asked to stop before."""
        while not self.finished:
            try:
                if self.train_epoch():
                    self.save()
                    return True
                self.close_epoch()
            except NonFinite as event:
                self.go_back(event.reading)
        return False

    # Steps ----------------------------------------------------------------------------------

    def train_epoch(self) -> bool:
        """The steps that the epoch still has. Returns whether the ranks agreed to stop."""
        progress, per_epoch = self.progress, self.plan.steps_per_epoch
        end = (progress.epochs + 1) * per_epoch
        self.bars.start(progress.epochs, per_epoch - (end - progress.step))
        self.window.restart_clock()
        pending: Reading | None = None
        for step in range(progress.step, end):
            reading = self.step(step)
            asked = self.note(pending) if pending else set()
            pending, progress.step = reading, step + 1
            if asked or self.save_is_due():
                asked |= self.note(pending)
                pending = None
                if "stop" in asked:
                    return True
                self.save()
        if pending:
            self.note(pending)
        return False

    def step(self, step: int) -> Reading:
        """One update, its sums not yet read."""
        recipe, began = self.plan.recipe, time.perf_counter()
        distributed.at_step(step)
        batches, count = next(self.stream)
        waited = time.perf_counter() - began
        lr = self.set_lr(step)
        left_out = step in self.progress.skipped
        sums = train_step(
            self.learner,
            self.config,
            [] if left_out else [(batch.images, batch.labels) for batch in batches],
            count,
            step,
            clip_norm=recipe.optim.clip_norm,
            asks=(self.stop.asked, distributed.is_main() and self.minutes_are_up()),
        )
        return read_later(step, sums, lr, waited, batches)

    def set_lr(self, step: int) -> float:
        """Rates are a function of the step alone."""
        config, per_epoch = self.plan.recipe.optim, self.plan.steps_per_epoch
        factor = optim.lr_factor(config, step, per_epoch, self.plan.steps)
        return optim.set_lr(self.learner.optimizer, factor)

    def note(self, reading: Reading) -> set[str]:
        """Counts and logs a step's sums; what a rank asked for in it, "stop" or "save"."""
        values = reading.values()
        if values["bad"] and self.config.on_nonfinite == "rollback":
            raise NonFinite(reading)
        if values["bad"]:
            self.log({**self.leave_out(reading, "skipped"), "step": reading.step + 1})
        else:
            self.window.add(values, reading.waited, reading.ended)
        done = reading.step + 1
        due = done % self.config.log_every == 0 or done % self.plan.steps_per_epoch == 0
        # a window whose steps were all left out has no line
        text = self.log_window(done, reading.lr) if due and self.window.sums["count"] else None
        self.bars.advance(done - self.progress.epochs * self.plan.steps_per_epoch, text)
        return {name for name in ("stop", "save") if values[name]}

    def log_window(self, done: int, lr: float) -> str:
        """Writes a `train` line, the means since the last one; returns it for people."""
        recipe, per_epoch = self.plan.recipe, self.plan.steps_per_epoch
        left = (self.plan.steps - done) * recipe.data.batch_size
        line = self.window.line(done, done / per_epoch, lr, left)
        if recipe.data.mixes:  # of mixed images no answer is right
            del line["top1"], line["top5"]
        self.log(line)
        if self.config.log_format == "paddleclas":
            numbers = self.config.epochs, per_epoch, recipe.data.batch_size
            self.bars.say(display.as_paddleclas(line, *numbers, recipe.optim.schedule))
        self.progress.images += self.window.images
        self.progress.seconds += self.window.seconds
        self.window = Window(started=self.window.ended)
        return display.for_people(line)

    def log(self, line: Metrics) -> None:
        self.progress.lines += 1
        if distributed.is_main():
            self.folder.log(line)

    def open_stream(self) -> Iterator[Step]:
        """This rank's share of every step that is left, read by workers that live as long."""
        stream = TrainStream(
            self.plan.train,
            self.plan.recipe.data,
            seed=self.config.seed,
            epochs=self.config.epochs,
            accumulation=self.config.accumulation,
            rank=distributed.rank(),
            world=distributed.world_size(),
            pin_memory=self.plan.precision.device.type == "cuda",
        )
        return stream.from_step(self.progress.step)

    # Epochs ---------------------------------------------------------------------------------

    def close_epoch(self) -> None:
        """Evaluates where that is due, saves the state, draws the curves."""
        self.progress.epochs += 1
        due = self.config.evaluates(self.progress.epochs)
        text = self.keep_networks(self.evaluate()) if due else "not evaluated"
        self.bars.finish(self.progress.epochs - 1, text)
        self.save()
        if distributed.is_main() and self.curves_are_due():
            title = f"{self.plan.recipe.name}: {self.plan.recipe.model.name}"
            curves.draw(self.folder.lines(), title, self.folder.path / "curves.png")
            self.drawn_at = time.monotonic()

    def keep_networks(self, metrics: Metrics) -> str:
        """Logs an evaluation and keeps the last and the best network; says so to people."""
        progress = self.progress
        progress.last = {"epoch": progress.epochs, **metrics}
        lr = self.set_lr(progress.step - 1)
        self.log({"kind": "eval", "step": progress.step, **progress.last, "lr": lr})
        better = metrics["top1"] > progress.best.get("top1", -1.0)
        if better and math.isfinite(metrics["loss"]):
            progress.best = progress.last
            self.write_artifact(self.folder.best, metrics)
        self.write_artifact(self.folder.last, metrics)
        best = "  (best)" if progress.best == progress.last else ""
        return f"val loss {metrics['loss']:.4f}  top-1 {metrics['top1']:.4f}{best}"

    def curves_are_due(self) -> bool:
        return self.finished or time.monotonic() - self.drawn_at > CURVES_EVERY

    def evaluate(self) -> Metrics:
        """count, top1, top5 and loss of the evaluated weights over the validation images."""
        data, precision = self.plan.recipe.data, self.plan.eval_precision
        model = evaluated_model(self.learner)
        distributed.broadcast_buffers(model)
        preprocessing = Preprocessing.from_config(data)
        batches = eval_batches(
            self.plan.val,
            preprocessing,
            data.eval_batch_size,
            int(data.workers),
            *(distributed.rank(), distributed.world_size()),
            precision.device.type == "cuda",
        )
        return evaluate(logits_of(model, preprocessing, precision), batches).summary

    def write_artifact(self, folder: Path, metrics: Metrics) -> None:
        if not distributed.is_main():
            return
        recipe, plan = self.plan.recipe, self.plan
        config = ArtifactConfig(
            model=Described(name=recipe.model.name, architecture=plan.architecture),
            preprocessing=Preprocessing.from_config(recipe.data),
            classes=tuple(plan.classes),
            metrics=metrics,
            data=recipe.data.model_dump(mode="json"),
            provenance=artifact.provenance(recipe.model_dump(mode="json")),
        )
        artifact.write(folder, config, evaluated_model(self.learner).state_dict())

    # States ---------------------------------------------------------------------------------

    def save_is_due(self) -> bool:
        every = self.config.save_every
        return isinstance(every, int) and self.progress.step % every == 0

    def minutes_are_up(self) -> bool:
        every = self.config.save_every
        minutes = float(every.split()[0]) if isinstance(every, str) else math.inf
        return time.monotonic() - self.saved_at > 60 * minutes

    def save(self) -> None:
        """A training state of now: whole on the disk some time later, or not there at all.

        Every step up to here has been read, so its loss is known to be finite.
        """
        self.saved_at = time.monotonic()
        if distributed.is_main():
            self.folder.sync_log()
            self.progress.window = dict(self.window.sums)
            self.folder.states.save(
                self.progress.step,
                {
                    "format": STATE_FORMAT,
                    "data": self.plan.digest,
                    "environment": self.plan.environment,
                    "progress": asdict(self.progress),
                    "learner": learner_state(self.learner),
                },
            )

    def restore(self, state: State | None) -> None:
        """Goes to where `state` was saved; None: to step 0, whose state is saved."""
        if state is not None:
            for key, value in self.plan.environment.items():
                before = state["environment"][key]
                if before != value:
                    self.bars.say(
                        f"{key} was {before} and is now {value}: the run goes on, but "
                        f"its numbers are not bit for bit what they would have been"
                    )
            load_learner_state(self.learner, state["learner"])
            self.progress = Progress(**state["progress"])
        if distributed.is_main():
            self.folder.cut_log(self.progress.lines)
        self.window = Window(dict(self.progress.window or Window().sums))
        if state is None:
            start = {"event": "start", "notes": self.notes, **self.plan.environment}
            self.log({"kind": "event", "step": 0, **start})
            self.save()
        self.stream = self.open_stream()

    # Numbers that are not finite ------------------------------------------------------------

    def leave_out(self, reading: Reading, what: str) -> Metrics:
        """Counts a step that makes no update; returns its log line. UserError at one too many."""
        named = nonfinite.files(reading, self.plan.train)
        text = nonfinite.describe(reading, named, self.plan.steps_per_epoch)
        skipped, allowed = self.progress.skipped, self.config.max_skips
        if self.config.on_nonfinite == "stop" or len(skipped) >= allowed:
            kept = nonfinite.keep_batch(reading, self.plan.train, self.folder.path)
            self.folder.states.wait()
            newest = self.folder.states.newest_file() if distributed.is_main() else None
            raise UserError(
                f"{text}\nits images are kept in {kept}; the last good state is {newest}\n"
                + (
                    "go on with a lower optim.lr in a new folder, or leave such batches out with "
                    "loop.on_nonfinite=skip or rollback"
                    if self.config.on_nonfinite == "stop"
                    else f"loop.max_skips={allowed} batches have been left out before it"
                ),
                shared=True,
            )
        skipped.append(reading.step)
        self.bars.say(f"{text}: {what}")
        return {"kind": "event", "event": what, "bad_step": reading.step + 1, "files": named}

    def go_back(self, reading: Reading) -> None:
        """To the newest state; the replay leaves the step's batch out, and the state says so."""
        self.folder.states.wait()
        event = self.leave_out(reading, "left out of the replay")
        skipped = self.progress.skipped
        self.restore(distributed.from_main(self.folder.states.newest))
        self.progress.skipped = sorted({*skipped, *self.progress.skipped})
        self.log({**event, "step": self.progress.step})
        self.save()
