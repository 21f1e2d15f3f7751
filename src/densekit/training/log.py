"""What the steps report: read one step late, averaged over windows, written to log.jsonl.

The sums of a step are copied to the host while the next step runs, so the device never waits for
the log, and a stop or a number that is not finite is known one step after it happened, on every
rank at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from densekit import distributed
from densekit.data.dataset import BadImage
from densekit.files import write_atomically
from densekit.training.plan import Plan
from densekit.training.progress import EpochBars, duration
from densekit.training.run_folder import RunFolder
from densekit.training.state import Progress
from densekit.training.step import SUMS

LONG = 600.0  # seconds: a run that takes longer says so at its beginning
PADDLE_SCHEDULES = {
    "step": "PiecewiseDecay",
    "cosine": "CosineAnnealingDecay",
    "linear": "PolynomialDecay",
    "constant": "LRScheduler",
}


@dataclass
class Reading:
    """A step's sums on their way to the host, and what is needed to explain them."""

    step: int
    sums: Tensor
    rate: float
    waited: float
    batches: Sequence[Any]
    ended: float
    """When the host had queued the step, in seconds."""
    arrived: torch.cuda.Event | None = None

    def values(self) -> dict[str, float]:
        """What train_step returned, by the names in SUMS."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(SUMS, self.sums.tolist(), strict=True))


def read_later(step: int, sums: Tensor, rate: float, waited: float, batches: Sequence) -> Reading:
    """Starts the copy of `sums` to the host."""
    ended = time.perf_counter()
    if sums.device.type != "cuda":
        return Reading(step, sums, rate, waited, batches, ended)
    host = sums.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return Reading(step, host, rate, waited, batches, ended, arrived)


@dataclass
class Window:
    """The steps since the last line of the log."""

    sums: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("loss", "top1", "top5", "count"), 0.0)
    )
    images: float = 0.0
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    ended: float = 0.0

    def add(self, values: dict[str, float], waited: float, ended: float) -> None:
        """A step's sums; it waited for data for so long and ended at `ended`, in seconds."""
        for name in self.sums:
            self.sums[name] += values[name]
        self.images += values["count"]
        self.waited += waited
        self.ended = ended

    def restart_clock(self) -> None:
        """The time since the last step was not training."""
        self.images, self.waited, self.started = 0.0, 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return max(self.ended - self.started, 1e-9)

    def means(self) -> dict[str, float]:
        count = max(self.sums["count"], 1.0)
        return {name: self.sums[name] / count for name in ("loss", "top1", "top5")}

    def line(self, step: int, epoch: float, rate: float, images_left: float) -> dict[str, Any]:
        """A `train` line of log.jsonl. Rates are images per second."""
        ips = self.images / self.seconds
        return {
            "kind": "train",
            "step": step,
            "epoch": epoch,
            **self.means(),
            "lr": rate,
            "ips": ips,
            "ips_rank": ips / distributed.world_size(),
            "data_wait": self.waited / self.seconds,
            "eta": images_left / max(ips, 1e-9),
        }


@dataclass
class RunLog:
    """A run's lines, in log.jsonl and on the terminal."""

    plan: Plan
    folder: RunFolder
    progress: Progress
    bars: EpochBars
    window: Window
    estimated: bool = False
    """Whether the terminal was told how long the run takes."""

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line to log.jsonl; every rank counts it."""
        self.progress.lines += 1
        if distributed.is_main():
            self.folder.log(line)

    def evaluation(self, found: dict[str, Any], rate: float) -> None:
        """Writes an `eval` line."""
        self.write({"kind": "eval", "step": self.progress.step, **found, "lr": rate})

    def start_epoch(self) -> None:
        """A bar for the epoch that runs now, and a clock that has seen nothing yet."""
        done = self.progress.step - self.progress.epochs * self.plan.steps_per_epoch
        self.bars.start(self.progress.epochs, done)
        self.window.restart_clock()

    def step(self, reading: Reading, values: dict[str, float]) -> None:
        """Counts a step; logs the window where loop.log_every or the epoch's end is reached."""
        per_epoch, done = self.plan.steps_per_epoch, reading.step + 1
        if not values["bad"]:
            self.window.add(values, reading.waited, reading.ended)
        due = done % self.plan.recipe.loop.log_every == 0 or done % per_epoch == 0
        # a window whose steps were all left out has no line
        text = self._close_window(done, reading.rate) if due and self.window.sums["count"] else None
        self.bars.advance(done - self.progress.epochs * per_epoch, text)

    def bad_images(self, new: list[BadImage]) -> None:
        """Says which images were left out, in the log and in bad-images.txt."""
        reasons = [image.reason for image in new]
        event = {"kind": "event", "event": "images left out", "files": reasons}
        self.write({**event, "step": self.progress.step})
        for reason in reasons:
            self.bars.say(f"left out: {reason}")
        if distributed.is_main():
            text = "".join(f"{reason}\n" for reason in self.progress.bad_images.values())
            file = self.folder.path / "bad-images.txt"
            write_atomically(file, text.encode("utf-8", "backslashreplace"))

    def _close_window(self, done: int, rate: float) -> str:
        """Writes a `train` line, the means since the last one; returns it for people."""
        recipe, per_epoch = self.plan.recipe, self.plan.steps_per_epoch
        left = (self.plan.steps - done) * recipe.data.batch_size
        line = self.window.line(done, done / per_epoch, rate, left)
        # of mixed images, and of classes that are there or not, no answer is the right one
        if recipe.data.mixes or recipe.model.task != "multiclass":
            del line["top1"], line["top5"]
        self.write(line)
        if recipe.loop.log_format == "paddleclas":
            numbers = recipe.loop.epochs, per_epoch, recipe.data.batch_size
            self.bars.say(as_paddleclas(line, *numbers, recipe.optim.schedule))
        self._estimate(line)
        self.progress.images += self.window.images
        self.progress.seconds += self.window.seconds
        self.window = Window(started=self.window.ended)
        return for_people(line)

    def _estimate(self, line: dict[str, Any]) -> None:
        """Says once how long the rest of a long run takes, by the first window's steps."""
        if not self.estimated and line["eta"] > LONG:
            self.bars.say(
                f"about {duration(line['eta'])} h to the end of epoch "
                f"{self.plan.recipe.loop.epochs} at {line['ips']:.0f} images per second; Ctrl-C "
                f"saves the state, and the same command resumes"
            )
        self.estimated = True


# A line of the log as text -------------------------------------------------------------------


def for_people(line: dict[str, Any]) -> str:
    """A `train` line of the log, in a few words."""
    top1 = f"top-1 {line['top1']:.4f}  " if "top1" in line else ""
    return f"loss {line['loss']:.4f}  {top1}{line['ips']:.0f} img/s  eta {duration(line['eta'])}"


def as_paddleclas(
    line: dict[str, Any], epochs: int, steps_per_epoch: int, batch_size: int, schedule: str
) -> str:
    """The same as PaddleClas writes it: costs are seconds per step, ips is one rank's."""
    epoch, step = divmod(line["step"] - 1, steps_per_epoch)
    lr = f"lr({PADDLE_SCHEDULES[schedule]}): {line['lr']:.8f}"
    cost = batch_size / max(line["ips"], 1e-9)
    accuracy = "".join(f"{k}: {line[k]:.5f}, " for k in ("top1", "top5") if k in line)
    return (
        f"[Train][Epoch {epoch + 1}/{epochs}][Iter: {step + 1}/{steps_per_epoch}]"
        f"{lr}, {accuracy}CELoss: {line['loss']:.5f}, "
        f"loss: {line['loss']:.5f}, batch_cost: {cost:.5f}s, "
        f"reader_cost: {line['data_wait'] * cost:.5f}, ips: {line['ips_rank']:.5f} samples/s, "
        f"eta: {duration(line['eta'])}"
    )
