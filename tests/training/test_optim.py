from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from densekit.config import UserError, build, read_yaml, to_yaml
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.training.optim import (
    OptimConfig,
    Schedule,
    create_optimizer,
    lr_factor,
    parameter_groups,
    set_rates,
)
from densekit.training.recipe import Recipe, load_recipe


def small() -> DenseNet:
    return DenseNet(
        DenseNetConfig(
            growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=3, stem="cifar"
        )
    )


def test_the_papers_imagenet_schedule() -> None:
    config = OptimConfig(schedule="step", milestones=(30, 60), gamma=0.1)
    rates = [
        config.lr * lr_factor(config, epoch * 5005, 5005, 90 * 5005) for epoch in (0, 29, 30, 60)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001], rel=1e-12)
    assert lr_factor(config, 30 * 5005 - 1, 5005, 90 * 5005) == 1.0  # falls at the epoch's 1st step


@given(
    st.sampled_from(["cosine", "linear"]), st.integers(1, 50), st.integers(2, 20), st.floats(0, 1)
)
def test_smooth_schedules_fall_from_the_peak_to_the_minimum(
    schedule: str, per_epoch: int, epochs: int, low: float
) -> None:
    config = OptimConfig(schedule=schedule, min_lr_ratio=low, warmup_epochs=1, warmup_start=0.1)
    steps = per_epoch * epochs
    factors = [lr_factor(config, step, per_epoch, steps) for step in range(steps)]
    warm, rest = factors[:per_epoch], factors[per_epoch:]
    assert warm == sorted(warm)
    assert warm[-1] == pytest.approx(1.0)
    assert rest == sorted(rest, reverse=True)
    assert rest[0] == pytest.approx(1.0)
    assert lr_factor(config, steps, per_epoch, steps) == pytest.approx(low, abs=1e-12)


def test_the_rate_scales_linearly_with_the_global_batch() -> None:
    model = small()
    assert parameter_groups(model, OptimConfig(lr=0.1), 512)[0]["peak_lr"] == pytest.approx(0.2)
    unscaled = parameter_groups(model, OptimConfig(lr=0.1, scale_lr=False), 512)
    assert unscaled[0]["peak_lr"] == 0.1


def test_every_trainable_parameter_is_in_one_group_with_its_own_decay() -> None:
    model = small()
    config = OptimConfig(weight_decay=1e-4, norm_weight_decay=0.0, bias_weight_decay=0.5)
    groups = parameter_groups(model, config, 256)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(model.classifier.bias)] == 0.5
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert decay[id(module.weight)] == decay[id(module.bias)] == 0.0
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            assert decay[id(module.weight)] == 1e-4


def test_fine_tuning_freezes_stages_and_gives_the_head_its_own_rate() -> None:
    model = small()
    model.freeze("block1")
    optimizer = create_optimizer(model, OptimConfig(lr=0.01, head_lr=0.1), 256)
    ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(model.features.conv0.weight) not in ids
    assert all(id(p) not in ids for p in model.features.denseblock1.parameters())
    set_rates(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.classifier.weight)] == pytest.approx(0.05)
    assert rates[id(model.features.norm5.weight)] == pytest.approx(0.005)


def test_sgd_is_the_papers_update() -> None:
    """v = m v + (g + wd w); w -= lr (g + wd w + m v): Nesterov without dampening, in float64."""
    model = small().double()
    config = OptimConfig(lr=0.1, nesterov=True, weight_decay=1e-2)
    optimizer = create_optimizer(model, config, 256)
    weight = model.features.conv0.weight
    w, v = weight.detach().clone(), torch.zeros_like(weight)
    for step in range(3):
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        set_rates(optimizer, 1.0)
        g = weight.grad + 1e-2 * w
        optimizer.step()
        v = 0.9 * v + g
        w = w - 0.1 * (g + 0.9 * v)
        torch.testing.assert_close(weight.detach(), w, rtol=1e-12, atol=1e-14)


def test_a_schedule_by_epoch_lists_changes_and_samples_smooth_schedules() -> None:
    step = Schedule(OptimConfig(), 256, 10, 90).by_epoch()
    assert [epoch for epoch, _ in step] == [1, 31, 61]
    assert [rate for _, rate in step] == pytest.approx([0.1, 0.01, 0.001])
    smooth = Schedule(OptimConfig(schedule="cosine"), 256, 10, 90).by_epoch()
    assert len(smooth) == 6
    assert smooth[0][0] == 1
    assert smooth[-1][0] == 90


def test_rates_by_epoch_takes_no_longer_for_a_thousand_million_epochs() -> None:
    found = Schedule(OptimConfig(warmup_epochs=2), 256, 5005, 10**9).by_epoch()
    assert [epoch for epoch, _ in found] == [1, 3, 31, 61]
    smooth = Schedule(OptimConfig(schedule="cosine"), 256, 5005, 10**9).by_epoch()
    assert len(smooth) == 6
    assert smooth[-1][1] < 1e-6


@pytest.mark.parametrize("bad", [{"nesterov": True, "momentum": 0.0}, {"milestones": (60, 30)},
                                 {"milestones": (-1, 30)}, {"lr": math.inf},
                                 {"betas": (0.9, 1.0)}])  # fmt: skip
def test_options_that_do_not_go_together_are_errors(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"optim\.|Input should be"):
        OptimConfig(**bad)


@pytest.mark.parametrize(
    "options",
    [
        ["optim.name=adamw", "optim.momentum=0.5"], ["optim.name=adamw", "optim.nesterov=true"],
        ["optim.betas=[0.8, 0.9]"], ["optim.alpha=0.5"], ["optim.eps=1e-4"],
        ["optim.schedule=cosine", "optim.gamma=0.5"], ["optim.milestones=[]", "optim.gamma=0.5"],
        ["optim.schedule=cosine", "optim.milestones=[10]"],
        ["optim.schedule=cosine", "optim.values=[0.1, 0.01]"], ["optim.min_lr_ratio=0.1"],
        ["optim.warmup_start=0.1"], ["optim.schedule=constant", "optim.by_epoch=true"],
        ["optim.scale_lr=false", "optim.reference_batch=64"],
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused_as_typed(options: list[str]) -> None:
    with pytest.raises(UserError, match=re.escape(f"-o {options[-1]}: has no effect with optim.")):
        load_recipe(None, options)


def test_an_option_that_switches_off_what_a_shipped_recipe_says_passes() -> None:
    found = load_recipe("cifar/densenet_40_12", ["optim.name=adam", "optim.schedule=cosine"]).optim
    assert (found.nesterov, found.milestones) == (False, (30, 60))
    again = build(Recipe, read_yaml(Path("recipe.yaml"), to_yaml({"optim": found.model_dump()})))
    assert again.optim == found


# PaddleClas' schedules and optimizers ----------------------------------------------------------


def test_values_are_the_rates_between_the_milestones() -> None:
    config = OptimConfig(lr=0.4, milestones=(2, 3), values=(0.4, 0.1, 0.07))
    rates = [0.4 * lr_factor(config, step, 10, 50) for step in range(50)]
    assert rates == pytest.approx([0.4] * 20 + [0.1] * 10 + [0.07] * 20, rel=1e-15)


@pytest.mark.parametrize(
    "fields",
    [
        {"values": (0.1, 0.01)},
        {"values": (0.2, 0.1, 0.01)},
    ],
)
def test_values_that_do_not_fit(fields: dict) -> None:
    with pytest.raises(ValueError, match=r"optim\.values"):
        OptimConfig(lr=0.1, milestones=(2, 3), **fields)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "step"])
def test_by_epoch_moves_at_first_steps_only(schedule: str) -> None:
    smooth = OptimConfig(schedule=schedule, warmup_epochs=2, milestones=(3,))
    stairs = smooth.model_copy(update={"by_epoch": True})
    for step in range(50):
        first = step // 10 * 10
        assert lr_factor(stairs, step, 10, 50) == lr_factor(smooth, first, 10, 50)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_the_formula(name: str) -> None:
    """adam's decay adds to the gradient, adamw's shrinks the weight."""
    config = OptimConfig(name=name, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.01)
    model = nn.Module()
    model.classifier = nn.Linear(3, 1, bias=False).double()
    optimizer = create_optimizer(model, config, 256)
    weight = model.classifier.weight.detach().numpy().copy()
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    rng = np.random.default_rng(0)
    for step, factor in enumerate((1.0, 0.5, 0.25), start=1):
        gradient = rng.normal(size=weight.shape)
        model.classifier.weight.grad = torch.tensor(gradient)
        rate = set_rates(optimizer, factor)
        optimizer.step()
        if name == "adam":
            gradient = gradient + 0.01 * weight
        else:
            weight = weight * (1 - rate * 0.01)
        mean, square = 0.8 * mean + 0.2 * gradient, 0.9 * square + 0.1 * gradient**2
        root = np.sqrt(square / (1 - 0.9**step)) + 1e-6
        weight = weight - rate * mean / (1 - 0.8**step) / root
        np.testing.assert_allclose(model.classifier.weight.detach().numpy(), weight, rtol=1e-12)


def test_rmsprop_is_the_formula() -> None:
    config = OptimConfig(name="rmsprop", momentum=0.9, alpha=0.95, eps=1e-6, weight_decay=0.01)
    model = nn.Module()
    model.classifier = nn.Linear(3, 1, bias=False).double()
    optimizer = create_optimizer(model, config, 256)
    weight = model.classifier.weight.detach().numpy().copy()
    square, buffer = np.zeros_like(weight), np.zeros_like(weight)
    rng = np.random.default_rng(0)
    for factor in (1.0, 0.5, 0.25):
        gradient = rng.normal(size=weight.shape)
        model.classifier.weight.grad = torch.tensor(gradient)
        rate = set_rates(optimizer, factor)
        optimizer.step()
        gradient = gradient + 0.01 * weight
        square = 0.95 * square + 0.05 * gradient**2
        buffer = 0.9 * buffer + gradient / (np.sqrt(square) + 1e-6)
        weight = weight - rate * buffer
        np.testing.assert_allclose(model.classifier.weight.detach().numpy(), weight, rtol=1e-12)


def test_named_parameters_without_weight_decay() -> None:
    model = small()
    config = OptimConfig(no_weight_decay=("norm1", "classifier"))
    groups = {group["name"]: group for group in parameter_groups(model, config, 256)}
    names = {id(p): name for name, p in model.named_parameters()}
    spared = {names[id(p)] for g in groups.values() if not g["weight_decay"] for p in g["params"]}
    assert spared == {n for n in names.values() if "norm1" in n or "classifier" in n}
    assert spared < set(names.values())
