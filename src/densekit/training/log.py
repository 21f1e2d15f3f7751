"""What the steps report: read one step late, averaged over windows, logged.

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
from densekit.training.step import SUMS


class NonFinite(Exception):  # noqa: N818 (an event of training, handled by loop.on_nonfinite)
    """A step whose loss or gradient is not finite."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(f"step {reading.step}")
        self.reading = reading


@dataclass
class Reading:
    """A step's sums on their way to the host, and what is needed to explain them."""

    step: int
    sums: Tensor
    lr: float
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


def read_later(step: int, sums: Tensor, lr: float, waited: float, batches: Sequence) -> Reading:
    """Starts the copy of `sums` to the host."""
    ended = time.perf_counter()
    if sums.device.type != "cuda":
        return Reading(step, sums, lr, waited, batches, ended)
    host = sums.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return Reading(step, host, lr, waited, batches, ended, arrived)


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

    def line(self, step: int, epoch: float, lr: float, images_left: float) -> dict[str, Any]:
        """A `train` line of log.jsonl. Rates are images per second."""
        ips = self.images / self.seconds
        return {
            "kind": "train",
            "step": step,
            "epoch": epoch,
            **self.means(),
            "lr": lr,
            "ips": ips,
            "ips_rank": ips / distributed.world_size(),
            "data_wait": self.waited / self.seconds,
            "eta": images_left / max(ips, 1e-9),
        }
