"""LoopConfig and one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from densekit import distributed
from densekit.config import Section
from densekit.infer.metrics import correct
from densekit.precision import DeviceName, MemoryFormatName, Precision, PrecisionName

NO_NUMBER: dict[str, Any] = {"changes_no_number": True}  # a resumed run may change such a field


class LoopConfig(Section):
    """How long, how exactly, on what, and what is kept."""

    epochs: int = Field(90, ge=1)
    """Passes over the training images."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches per optimizer step: less memory, the same batch (BatchNorm sees the parts)."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the weights' exponential moving average; > 0: it is evaluated and kept as best."""
    seed: int = Field(0, ge=0)
    """Of initial weights, order, augmentation and dropout."""

    device: DeviceName = "auto"
    """auto: cuda, else mps, else cpu."""
    precision: PrecisionName = "auto"
    """Of training; auto: the table in densekit.precision."""
    eval_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of evaluation within training."""
    memory_format: MemoryFormatName = "auto"
    """auto: the table in densekit.precision."""
    threads: int | None = Field(None, ge=1)
    """CPU threads per rank; null: OMP_NUM_THREADS, else cores / local ranks."""

    output_dir: str | None = Field(None, json_schema_extra=NO_NUMBER)
    """The run's folder; null: runs/<recipe name>."""
    resume: str = Field("auto", json_schema_extra=NO_NUMBER)
    """auto: go on from the folder's newest state; never: only a new folder; or the state file or
    run folder that a new folder starts from."""
    save_every: int | str = Field("10 minutes", json_schema_extra=NO_NUMBER)
    """Steps, or "N minutes", between training states; the end of each epoch saves one too."""
    keep: int = Field(2, ge=1, json_schema_extra=NO_NUMBER)
    """Newest training states that are kept."""
    log_every: int = Field(10, ge=1, json_schema_extra=NO_NUMBER)
    """Steps per line of log.jsonl."""
    log_format: Literal["densekit", "paddleclas"] = Field("densekit", json_schema_extra=NO_NUMBER)
    """paddleclas: each such line on the terminal, too, as PaddleClas writes it."""
    eval_every: int = Field(1, ge=1)
    """Epochs between evaluations; the last epoch is always evaluated."""
    eval_from: int = Field(1, ge=1)
    """The first epoch that is evaluated."""
    rank_timeout: float = Field(600, gt=0, json_schema_extra=NO_NUMBER)
    """Seconds that ranks wait for one that does not come before the run stops."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = Field("stop", json_schema_extra=NO_NUMBER)
    """A loss or gradient that is not finite: stop and keep the batch for a look; skip its update;
    or go back to the newest state and leave the batch out."""
    max_skips: int = Field(10, ge=0, json_schema_extra=NO_NUMBER)
    """skip, rollback: batches that may be left out before the run stops."""

    def evaluates(self, epoch: int) -> bool:
        """Whether `epoch`, from 1, ends with an evaluation."""
        due = epoch >= self.eval_from and epoch % self.eval_every == 0
        return due or epoch == self.epochs

    @field_validator("save_every")
    @classmethod
    def _steps_or_minutes(cls, value: int | str) -> int | str:
        number, _, unit = str(value).partition(" ")
        if (isinstance(value, int) and value > 0) or (
            unit in ("minute", "minutes") and number.isdecimal() and int(number) > 0
        ):
            return value
        raise ValueError('loop.save_every is a number of steps or "N minutes", such as 10 minutes')


@dataclass
class Learner:
    """What a step changes, and how it computes."""

    model: nn.Module
    """The network whose parameters are trained."""
    forward: nn.Module
    """The same, or DistributedDataParallel around it."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    precision: Precision
    prepare: Callable[[Tensor], Tensor]
    """uint8 images [n, C, H, W] -> normalised floats on the device."""
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Such images and labels [n] -> the same, or mixed ones and their soft labels [n, K]."""

    def no_sync(self) -> AbstractContextManager[None]:
        """Gradients of all but the last micro-batch stay on their rank."""
        if isinstance(self.forward, DistributedDataParallel):
            return self.forward.no_sync()
        return nullcontext()


SUMS = ("loss", "top1", "top5", "count", "stop", "save", "bad")
"""What train_step returns: over the step's images; what ranks ask for; whether it went wrong."""


def train_step(
    learner: Learner,
    config: LoopConfig,
    shares: Sequence[tuple[Tensor, Tensor]],
    count: int,
    step: int,
    *,
    clip_norm: float | None = None,
    asks: tuple[bool, bool] = (False, False),
) -> Tensor:
    """One update from this rank's share, (uint8 images, labels), of each micro-batch of a step.

    The loss is the sum over images divided by `count`, the step's images on all ranks, and
    gradients are summed over ranks, so neither depends on who has how many. `asks` is whether
    this rank wants to stop, and to save. Returns SUMS, [7], over all ranks, still on the device.
    """
    device, may_skip = learner.precision.device, config.on_nonfinite == "skip"
    before = [buffer.clone() for buffer in learner.model.buffers()] if may_skip else []
    sums = torch.zeros(len(SUMS), dtype=sums_dtype(device), device=device)
    learner.optimizer.zero_grad(set_to_none=True)
    for micro, (images, labels) in enumerate(shares):
        torch.manual_seed(_draws_seed(config.seed, step, micro, distributed.rank()))
        labels = labels.to(device, non_blocking=True)
        inputs, targets = learner.mix(learner.prepare(images), labels)
        with nullcontext() if micro == len(shares) - 1 else learner.no_sync():
            with learner.precision.autocast():
                logits = learner.forward(inputs)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(
                logits, targets, label_smoothing=config.label_smoothing, reduction="sum"
            )
            learner.scaler.scale(loss / count).backward()
        sums[0] += loss.detach()
        sums[1:3] += correct(logits.detach(), labels)
        sums[3] += len(images)
    for place, asked in enumerate(asks, start=4):  # numbers, not a tensor: a copy would wait
        sums[place] += asked
    distributed.reduce_sum(sums)
    finite = sums[0].isfinite() & _gradients_finite(learner, clip_norm)
    sums[6] = ~finite
    if may_skip and not finite:  # the forward pass has spoilt the running statistics
        for buffer, value in zip(learner.model.buffers(), before, strict=True):
            buffer.copy_(value)
    elif shares:
        learner.scaler.step(learner.optimizer)
        if learner.ema is not None:
            learner.ema.update_parameters(learner.model)
        learner.scaler.update()
    return sums


def _gradients_finite(learner: Learner, clip_norm: float | None) -> Tensor:
    """Clips, and says whether the gradients' norm is finite. fp16's scaler sees to its own."""
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if clip_norm is not None and gradients:
        learner.scaler.unscale_(learner.optimizer)
    norm = nn.utils.get_total_norm(gradients).to(learner.precision.device)
    if clip_norm is not None and gradients:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm.isfinite() | learner.scaler.is_enabled()


def sums_dtype(device: torch.device) -> torch.dtype:
    """float64, which MPS lacks."""
    return torch.float32 if device.type == "mps" else torch.float64


def _draws_seed(*position: int) -> int:
    """Of mixing and dropout: f(seed, step, micro-step, rank), so that neighbours share nothing."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> 1)
