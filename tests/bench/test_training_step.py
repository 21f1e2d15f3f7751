"""The step that is measured is that of training."""

from __future__ import annotations

import torch

from densekit.bench.training_step import training_step
from densekit.training.recipe import Recipe, load_recipe

TINY = ["model.name=densenet_bc_10_4", "data.image_size=32", "loop.device=cpu"]


def recipe(*options: str) -> Recipe:
    return load_recipe(None, [*TINY, *options, "data.batch_size=2"])


def test_the_op_is_the_one_that_computes_the_blocks() -> None:
    step = training_step(recipe("model.op=lean"))
    assert step.op.startswith("lean (")
    step.learner.model.features.denseblock2.op = "recompute"  # type: ignore[union-attr]
    assert step.op.partition(" (")[0] == "lean"
    assert step.op.endswith(", recompute")
    assert training_step(recipe("model.op=reference")).op == "reference"


def test_the_learner_is_the_one_that_training_makes() -> None:
    """Down to the moving average; only the weights' origin is left out, which costs no time."""
    options = ["loop.ema=0.9", "model.pretrained=torchvision", "optim.name=adamw"]
    step = training_step(recipe(*options))
    assert step.learner.ema is not None
    assert isinstance(step.learner.optimizer, torch.optim.AdamW)
    before = [p.clone() for p in step.learner.model.parameters()]
    assert step()[0] > 0  # the loss
    assert step()[0] > 0
    after = step.learner.model.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
