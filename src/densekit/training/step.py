"""The learner (network, optimizer, scaler, moving average) and one optimizer step of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from densekit import distributed
from densekit.data.mix import mixing
from densekit.data.transforms import Preprocessing
from densekit.infer.engines import preparing
from densekit.infer.metrics import correct
from densekit.models.densenet import DenseNet
from densekit.precision import Precision
from densekit.training.ema import MovingAverage
from densekit.training.graph import forward_of
from densekit.training.loss import Loss, make_loss
from densekit.training.optim import create_optimizer
from densekit.training.recipe import LoopConfig, Recipe
from densekit.weights.pretrained import create_network

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
    notes: list[str] = field(default_factory=list)
    """What a person should know of the weights that it begins with."""

    @property
    def evaluated(self) -> DenseNet:
        """The network that is evaluated and kept: the moving average where there is one."""
        model = self.model if self.ema is None else self.ema.module
        assert isinstance(model, DenseNet)
        return model


def create_learner(recipe: Recipe, precision: Precision) -> Learner:
    """The learner before the first step, the same on every rank.

    `recipe.model.num_classes` is a number here. Raises UserError for weights and stages that do
    not fit the network.
    """
    torch.manual_seed(recipe.loop.seed)
    model, notes = create_network(recipe.model)
    model.freeze(recipe.optim.freeze, recipe.optim.freeze_norm)
    precision.place(model)
    prepare = preparing(Preprocessing.from_config(recipe.data), precision)
    return Learner(
        model=model,
        forward=forward_of(model, prepare, recipe, precision),
        optimizer=create_optimizer(model, recipe.optim, recipe.data.batch_size),
        scaler=precision.scaler(),
        ema=MovingAverage(model, recipe.loop.ema) if recipe.loop.ema else None,
        precision=precision,
        prepare=prepare,
        mix=mixing(recipe.data, model.config.num_classes),
        loss=make_loss(recipe.loop, recipe.model.task, precision.device),
        notes=notes,
    )


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
    dtype = torch.float32 if device.type == "mps" else torch.float64  # which MPS lacks
    sums = torch.zeros(len(SUMS), dtype=dtype, device=device)
    learner.optimizer.zero_grad(set_to_none=True)
    for micro, (images, labels) in enumerate(shares):
        torch.manual_seed(_draws_seed(config.seed, step, micro, distributed.rank()))
        labels = labels.to(device, non_blocking=True)
        inputs, targets = learner.mix(learner.prepare(images), labels)
        if isinstance(learner.forward, DistributedDataParallel):  # ranks sum the last gradients
            learner.forward.require_backward_grad_sync = micro == len(shares) - 1
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


def _draws_seed(*position: int) -> int:
    """Of mixing and dropout: f(seed, step, micro-step, rank), so that neighbours share nothing."""
    return int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0]) >> 1
