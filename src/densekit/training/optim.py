"""Optimizers, parameter groups, and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from densekit.config import OFF, ON, Other, Section, when
from densekit.models.parts import rates_by_name

Beta = Annotated[float, Field(ge=0, lt=1)]
Epoch = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]

NORMS = nn.modules.batchnorm._NormBase, nn.GroupNorm
MORE_THAN_HEAD = Other("norm5")  # of optim.freeze, so that more than the classifier is trained
LOOKED_AT = 1000  # epochs of which the rate is computed to describe a schedule


class OptimConfig(Section):
    """The optimizer, its learning rate schedule, and fine-tuning."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd"
    """sgd, adam, rmsprop: weight decay adds to the gradient, as in the paper; adamw: decoupled."""
    lr: float = Field(0.1, ge=0)
    """Peak learning rate at a global batch of reference_batch."""
    reference_batch: Annotated[int, when(scale_lr=True)] = Field(256, ge=1)
    """The global batch that lr was chosen for."""
    scale_lr: bool = True
    """Scale lr by data.batch_size / reference_batch (Goyal et al., 2017)."""
    momentum: Annotated[float, when(name=("sgd", "rmsprop"))] = Field(0.9, ge=0, lt=1)
    """Share of the previous update that is kept."""
    nesterov: Annotated[bool, when(name="sgd")] = False
    """Nesterov momentum."""
    betas: Annotated[tuple[Beta, Beta], when(name=("adam", "adamw"))] = (0.9, 0.999)
    """Decay of the running means of gradients and of their squares."""
    alpha: Annotated[float, when(name="rmsprop")] = Field(0.99, ge=0, lt=1)
    """Decay of the running mean of squared gradients."""
    eps: Annotated[float, when(name=("adam", "adamw", "rmsprop"))] = Field(1e-8, gt=0)
    """Added to the root in the denominator."""
    weight_decay: float = Field(1e-4, ge=0)
    """For convolutions and the classifier, and for the next two options if they are null."""
    norm_weight_decay: float | None = Field(None, ge=0)
    """For BatchNorm's scales and shifts; null: weight_decay, as in the paper's code."""
    bias_weight_decay: float | None = Field(None, ge=0)
    """For the classifier's bias; null: weight_decay."""
    no_weight_decay: tuple[str, ...] = ()
    """No weight decay for parameters whose name contains one of these, such as [norm5, bias]."""
    clip_norm: float | None = Field(None, gt=0)
    """Clip the global norm of the gradients to this; null: no clipping."""

    schedule: Literal["step", "cosine", "linear", "constant"] = "step"
    """How the learning rate falls after the warm-up."""
    milestones: Annotated[tuple[Epoch, ...], when(schedule="step")] = (30, 60)
    """Epochs at whose first step the rate is multiplied by gamma."""
    gamma: Annotated[float, when(schedule="step", values=OFF, milestones=ON)] = Field(0.1, gt=0)
    """The factor at each milestone."""
    values: Annotated[tuple[Rate, ...], when(schedule="step")] = ()
    """The rates before, between and after the milestones (one more than milestones), instead of
    gamma; the first must be lr."""
    min_lr_ratio: Annotated[float, when(schedule=("cosine", "linear"))] = Field(0.0, ge=0, le=1)
    """The last rate, as a share of the peak."""
    warmup_epochs: float = Field(0.0, ge=0)
    """Epochs in which the rate rises linearly."""
    warmup_start: Annotated[float, when(warmup_epochs=ON)] = Field(0.0, ge=0, le=1)
    """The first rate of the warm-up, as a share of the peak."""
    by_epoch: Annotated[
        bool, when(schedule=("step", "cosine", "linear")), when(warmup_epochs=ON)
    ] = False
    """Change the rate only at the first step of an epoch."""

    freeze: str | None = None
    """Fine-tuning: freeze everything up to and including this stage (stem, block1, transition1,
    ... norm5)."""
    freeze_norm: Annotated[bool, when(freeze=MORE_THAN_HEAD, **{"/model.pretrained": ON})] = False
    """Fine-tuning: BatchNorm stays in evaluation mode, with the statistics of the weights that the
    run begins with; its scales and shifts are trained."""
    head_lr: float | None = Field(None, gt=0)
    """Fine-tuning: the classifier's own lr; null: lr."""
    head_epochs: Annotated[int, when(freeze=MORE_THAN_HEAD)] = Field(0, ge=0)
    """Fine-tuning: epochs that train only the classifier; the rest keeps its weights and
    BatchNorm statistics."""
    unfreeze_epochs: Annotated[int, when(head_epochs=ON)] = Field(0, ge=0)
    """Fine-tuning: after head_epochs, unfreeze one more block every N epochs, from the last to the
    stem (Howard and Ruder, 2018); 0: all at once."""
    layer_decay: Annotated[float, when(freeze=MORE_THAN_HEAD)] = Field(1.0, gt=0, le=1)
    """Fine-tuning: the rate of a block (with its transition) as a share of the next block's; the
    last block has lr, the stem the lowest."""

    @property
    def fine_tunes(self) -> bool:
        """Whether parts of the network are trained otherwise than others."""
        parts = self.freeze or self.freeze_norm or self.head_epochs or self.head_lr
        return bool(parts) or self.layer_decay != 1

    @model_validator(mode="after")
    def _fits(self) -> OptimConfig:
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"optim.milestones must increase, got {list(self.milestones)}")
        if self.nesterov and self.name == "sgd" and not self.momentum:
            raise ValueError("optim.nesterov=true needs optim.momentum > 0")
        if self.schedule != "step":
            return self
        if self.values and len(self.values) != len(self.milestones) + 1:
            raise ValueError(
                f"optim.values: {len(self.milestones)} milestones part {len(self.milestones) + 1} "
                f"rates, got {len(self.values)}"
            )
        if self.values and (self.values[0] != self.lr or not self.lr):
            raise ValueError(
                f"optim.values begins with optim.lr={self.lr}, above 0; got {self.values[0]}"
            )
        return self


def peak_rates(config: OptimConfig, batch_size: int) -> tuple[float, float]:
    """Of the last block and of the classifier, at this global batch."""
    scale = batch_size / config.reference_batch if config.scale_lr else 1.0
    head_lr = config.lr if config.head_lr is None else config.head_lr
    return config.lr * scale, head_lr * scale


def unscaled(config: OptimConfig, rate: float, batch_size: int) -> float:
    """The optim.lr that scale_lr scales to `rate`."""
    return rate * config.reference_batch / batch_size if config.scale_lr else rate


def scaling_notes(config: OptimConfig, batch_size: int) -> list[str]:
    """What a person should know of the scaled rate; nothing where it is not scaled."""
    peak, _ = peak_rates(config, batch_size)
    if peak == config.lr:
        return []
    return [
        f"optim.lr={config.lr:g} is for a batch of {config.reference_batch}; for "
        f"data.batch_size={batch_size} it is scaled to {peak:g} "
        f"(optim.scale_lr=false leaves it)"
    ]


def lr_factor(config: OptimConfig, step: int, steps_per_epoch: int, steps: int) -> float:
    """The rate at `step` (from 0) of `steps`, as a share of the peak."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if config.by_epoch:
        step -= step % steps_per_epoch
    if step < warmup:
        return config.warmup_start + (1 - config.warmup_start) * (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        passed = sum(step >= round(m * steps_per_epoch) for m in config.milestones)
        return config.values[passed] / config.lr if config.values else config.gamma**passed
    done = (step - warmup) / max(1, steps - warmup)
    fall = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * fall


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a run: a pure function of the step, so that no state holds it."""

    config: OptimConfig
    batch_size: int
    steps_per_epoch: int
    epochs: int

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def factor(self, step: int) -> float:
        """The rate at `step` (from 0) as a share of the peak."""
        return lr_factor(self.config, step, self.steps_per_epoch, self.steps)

    def set(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Sets the rates of `step`; returns the body's."""
        return set_rates(optimizer, self.factor(step))

    def rate(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """What `set` returns, without setting it."""
        return optimizer.param_groups[0]["peak_lr"] * self.factor(step)

    def by_epoch(self) -> list[tuple[int, float]]:
        """(epoch from 1, the rate at its first step) wherever that changes; of many changes 6."""
        peak, _ = peak_rates(self.config, self.batch_size)

        def rate(epoch: int) -> float:
            return peak * self.factor(epoch * self.steps_per_epoch)

        looked_at: Iterable[int] = range(self.epochs)
        if self.epochs > LOOKED_AT:  # the bends, and some between them
            grid = {round(i * (self.epochs - 1) / LOOKED_AT) for i in range(LOOKED_AT + 1)}
            bends = {math.ceil(at) for at in (*self.config.milestones, self.config.warmup_epochs)}
            looked_at = sorted(grid | {epoch for epoch in bends if epoch < self.epochs})
        changes = [e for e in looked_at if e == 0 or rate(e) != rate(e - 1)]
        if len(changes) > 6:
            changes = sorted({changes[round(i * (len(changes) - 1) / 5)] for i in range(6)})
        return [(epoch + 1, rate(epoch)) for epoch in changes]


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group's rate to `factor` of its peak; returns the body's."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return optimizer.param_groups[0]["lr"]


def parameter_groups(model: nn.Module, config: OptimConfig, batch_size: int) -> list[dict]:
    """Trainable parameters by kind and part; every one of them is in exactly one group, and that
    of the last block is the first."""
    rates = rates_by_name(model, *peak_rates(config, batch_size), config.layer_decay)
    groups: dict[tuple[str, float, str], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind, decay = "weight", None
        if any(part in name for part in config.no_weight_decay):
            kind, decay = "no_decay", 0.0
        elif isinstance(model.get_submodule(name.rpartition(".")[0]), NORMS):
            kind, decay = "norm", config.norm_weight_decay
        elif name.endswith(".bias"):
            kind, decay = "bias", config.bias_weight_decay
        decay = config.weight_decay if decay is None else decay
        place = "head" if name.startswith("classifier.") else "body"
        new = {"name": f"{place}.{kind}", "peak_lr": rates[name], "weight_decay": decay}
        group = groups.setdefault((place, rates[name], kind), {**new, "params": []})
        group["params"].append(parameter)
    grouped = sum(len(group["params"]) for group in groups.values())
    assert grouped == sum(p.requires_grad for p in model.parameters()), "a shared parameter"
    return sorted(groups.values(), key=lambda g: (g["name"].startswith("head"), -g["peak_lr"]))


def create_optimizer(
    model: nn.Module, config: OptimConfig, batch_size: int
) -> torch.optim.Optimizer:
    """The optimizer over `parameter_groups`; its rates are set by `set_rates` before each step."""
    groups = parameter_groups(model, config, batch_size)
    fused = all(parameter.is_cuda for parameter in model.parameters()) or None  # few launches
    if config.name in ("adam", "adamw"):
        kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
        return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    momentum, nesterov = config.momentum, config.nesterov
    if config.name == "rmsprop":
        return torch.optim.RMSprop(groups, config.lr, config.alpha, config.eps, momentum=momentum)
    return torch.optim.SGD(groups, config.lr, momentum, nesterov=nesterov, fused=fused)
