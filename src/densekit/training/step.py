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
from densekit.infer.engines import preparing
from densekit.infer.metrics import correct
from densekit.models.densenet import DenseNet
from densekit.precision import Precision
from densekit.training.ema import MovingAverage
from densekit.training.graph import forward_of
from densekit.training.loss import Loss, make_loss
from densekit.training.optim import create_optimizer
from densekit.training.recipe import Recipe
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
    """Of the loss, which fp16's gradients need; does nothing in fp32 and bf16."""
    ema: AveragedModel | None
    precision: Precision
    prepare: Callable[[Tensor], Tensor]
    """uint8 images [n, C, H, W] -> normalised floats on the device."""
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Such images and labels -> the same and their targets, or mixed ones."""
    loss: Loss
    seed: int = 0
    """Of what mixing and dropout draw."""
    clip_norm: float | None = None
    """Largest norm of all gradients together."""
    skips: bool = False
    """Whether a step whose loss or gradient is not finite makes no update."""
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
    loop = recipe.loop
    torch.manual_seed(loop.seed)
    model, notes = create_network(recipe.model)
    model.freeze(recipe.optim.freeze, recipe.optim.freeze_norm)
    precision.place(model)
    prepare = preparing(recipe.data.mean, recipe.data.std, precision)
    return Learner(
        model=model,
        forward=forward_of(model, prepare, recipe, precision),
        optimizer=create_optimizer(model, recipe.optim, recipe.data.batch_size),
        scaler=torch.amp.GradScaler(precision.device.type, enabled=precision.name == "fp16"),
        ema=MovingAverage(model, loop.ema) if loop.ema else None,
        precision=precision,
        prepare=prepare,
        mix=mixing(recipe.data, model.config.num_classes),
        loss=make_loss(loop, recipe.model.task, precision.device),
        seed=loop.seed,
        clip_norm=recipe.optim.clip_norm,
        skips=loop.on_nonfinite == "skip",
        notes=notes,
    )


def train_step(
    learner: Learner,
    shares: Sequence[tuple[Tensor, Tensor]],
    count: int,
    step: int,
    asks: tuple[bool, bool] = (False, False),
) -> Tensor:
    """One update from this rank's share, (uint8 images, labels), of each micro-batch of a step.

    The loss is the sum over images divided by `count`, the step's images on all ranks, and
    gradients are summed over ranks, so neither depends on who has how many. `asks` is whether
    this rank wants to stop, and to save. Returns SUMS, [7], over all ranks, still on the device.
    """
    device = learner.precision.device
    before = [buffer.clone() for buffer in learner.model.buffers()] if learner.skips else []
    dtype = torch.float32 if device.type == "mps" else torch.float64  # which MPS lacks
    sums = torch.zeros(len(SUMS), dtype=dtype, device=device)
    learner.optimizer.zero_grad(set_to_none=True)
    for micro, (images, labels) in enumerate(shares):
        # of mixing and dropout: hashed, so that neighbours share nothing
        draws = np.random.SeedSequence((learner.seed, step, micro, distributed.rank()))
        torch.manual_seed(int(draws.generate_state(1, np.uint64)[0]) >> 1)
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
    finite = sums[0].isfinite() & _gradients_finite(learner)
    sums[6] = ~finite
    if not shares:
        return sums
    if learner.skips and not finite:  # the forward pass has spoilt the running statistics
        for buffer, value in zip(learner.model.buffers(), before, strict=True):
            buffer.copy_(value)
    else:
        learner.scaler.step(learner.optimizer)
        if learner.ema is not None:
            learner.ema.update_parameters(learner.model)
    learner.scaler.update()
    return sums


def _gradients_finite(learner: Learner) -> Tensor:
    """Unscales, clips, and says whether the gradients' norm is finite.

    fp16's scaler sees to gradients that are not: it skips the update and lowers the scale.
    """
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        learner.scaler.unscale_(learner.optimizer)
    norm = nn.utils.get_total_norm(gradients).to(learner.precision.device)
    if learner.clip_norm is not None and gradients:
        nn.utils.clip_grads_with_norm_(parameters, learner.clip_norm, norm)
    return norm.isfinite() | learner.scaler.is_enabled()
