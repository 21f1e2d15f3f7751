"""The learner (network, optimizer, scaler, moving average) and one optimizer step of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from densekit import distributed
from densekit.data.mix import mixing
from densekit.data.transforms import Preprocessing
from densekit.infer.metrics import correct
from densekit.models import variants
from densekit.models.densenet import DenseNet
from densekit.precision import Precision
from densekit.training import optim
from densekit.training.graph import forward_of
from densekit.training.loss import Loss, make_loss
from densekit.training.recipe import LoopConfig, Recipe
from densekit.training.state import State
from densekit.weights.pretrained import start_from

SUMS = ("loss", "top1", "top5", "count", "stop", "save", "bad")
"""What train_step returns: over the step's images; what ranks ask for; whether it went wrong."""


@dataclass
class Learner:
    """What a step changes, and how it computes."""

    model: nn.Module
    """The network whose parameters are trained."""
    forward: nn.Module
    """The same, or DistributedDataParallel or a CUDA graph around it."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    precision: Precision
    prepare: Callable[[Tensor], Tensor]
    """uint8 images [n, C, H, W] -> normalised floats on the device."""
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Such images and labels -> the same and their targets, or mixed ones."""
    loss: Loss

    @property
    def evaluated(self) -> DenseNet:
        """The network that is evaluated and kept: the moving average where there is one."""
        model = self.model if self.ema is None else self.ema.module
        assert isinstance(model, DenseNet)
        return model

    def no_sync(self) -> AbstractContextManager[None]:
        """Gradients of all but the last micro-batch stay on their rank."""
        if isinstance(self.forward, DistributedDataParallel):
            return self.forward.no_sync()
        return nullcontext()


def create_learner(recipe: Recipe, precision: Precision) -> tuple[Learner, list[str]]:
    """The learner before the first step, the same on every rank; and notes on its weights.

    `recipe.model.num_classes` is a number here. Raises UserError for weights and stages that do
    not fit the network.
    """
    torch.manual_seed(recipe.loop.seed)
    model = variants.create(recipe.model)
    notes = start_from(model, recipe.model.pretrained) if recipe.model.pretrained else []
    model.freeze(recipe.optim.freeze, recipe.optim.freeze_norm)
    precision.place(model.train())
    preprocessing, side = Preprocessing.from_config(recipe.data), recipe.data.train_side
    blank = torch.zeros(1, recipe.data.channels, side, side, dtype=torch.uint8)

    def prepare(images: Tensor) -> Tensor:
        return preprocessing.normalize(precision.send(images))

    return Learner(
        model=model,
        forward=forward_of(model, prepare(blank), recipe, precision),
        optimizer=optim.create_optimizer(model, recipe.optim, recipe.data.batch_size),
        scaler=precision.scaler(),
        ema=moving_average(model, recipe.loop.ema) if recipe.loop.ema else None,
        precision=precision,
        prepare=prepare,
        mix=mixing(recipe.data, model.config.num_classes),
        loss=make_loss(recipe.loop, recipe.model.task, precision.device),
    ), notes


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
            loss = learner.loss(logits, targets)
            learner.scaler.scale(loss / count).backward()
        sums[0] += loss.detach()
        if labels.ndim == 1:  # one class an image
            sums[1:3] += correct(logits.detach(), labels)
        sums[3] += len(images)
    for place, asked in enumerate(asks, start=4):  # numbers, not a tensor: a copy would wait
        sums[place] += asked
    distributed.reduce_sum(sums)
    finite = sums[0].isfinite() & _gradients_finite(learner, clip_norm)
    sums[6] = ~finite
    if not shares:
        return sums
    if may_skip and not finite:  # the forward pass has spoilt the running statistics
        for buffer, value in zip(learner.model.buffers(), before, strict=True):
            buffer.copy_(value)
    else:
        learner.scaler.step(learner.optimizer)
        if learner.ema is not None:
            learner.ema.update_parameters(learner.model)
    learner.scaler.update()
    return sums


def _gradients_finite(learner: Learner, clip_norm: float | None) -> Tensor:
    """Unscales, clips, and says whether the gradients' norm is finite.

    fp16's scaler sees to gradients that are not: it skips the update and lowers the scale.
    """
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
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
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0]) >> 1


# Moving average -----------------------------------------------------------------------------


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of weights and BatchNorm's running statistics.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), as TensorFlow's and PaddleClas'
    moving averages have it, so that the initial weights are soon forgotten. Counters (BatchNorm's
    num_batches_tracked) are the network's own.
    """

    @torch.no_grad()
    def update(averages: PARAM_LIST, currents: PARAM_LIST, updates: Tensor | int) -> None:
        if averages[0].is_floating_point():
            n = int(average.n_averaged)  # the host's, where `updates` may be on the device
            get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, currents, updates)
        else:
            torch._foreach_copy_(averages, currents)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average


# What a training state holds ----------------------------------------------------------------


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
