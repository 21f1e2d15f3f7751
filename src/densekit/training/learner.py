"""Builds what a step changes: network, optimizer, scaler, moving average."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from densekit import distributed
from densekit.data.mix import mixing
from densekit.data.transforms import Preprocessing
from densekit.models import variants
from densekit.models.densenet import DenseNet
from densekit.training import optim
from densekit.training.setup import Plan
from densekit.training.state import State
from densekit.training.step import Learner
from densekit.weights.pretrained import start_from


def create_learner(plan: Plan) -> tuple[Learner, list[str]]:
    """The learner at step 0, alike on all ranks, and what loading the weights had to say."""
    recipe, precision = plan.recipe, plan.precision
    torch.manual_seed(recipe.loop.seed)
    model = variants.create(recipe.model)
    said = start_from(model, recipe.model.pretrained) if recipe.model.pretrained else []
    if recipe.optim.freeze:
        model.freeze(recipe.optim.freeze)
    precision.place(model.train())
    ema = None
    if recipe.loop.ema:
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.loop.ema))
    preprocessing, side = Preprocessing.from_config(recipe.data), recipe.data.train_side
    shape = (recipe.data.channels, side, side)

    def prepare(images: Tensor) -> Tensor:
        return preprocessing.normalize(precision.send(images))

    return Learner(
        model=model,
        forward=distributed.wrap(model, prepare(torch.zeros(1, *shape, dtype=torch.uint8))),
        optimizer=optim.create_optimizer(model, recipe.optim, recipe.data.batch_size),
        scaler=precision.scaler(),
        ema=ema,
        precision=precision,
        prepare=prepare,
        mix=mixing(recipe.data, model.config.num_classes),
    ), said


def evaluated_model(learner: Learner) -> DenseNet:
    """The weights that evaluation and artifacts take: the moving average where there is one."""
    model = learner.model if learner.ema is None else learner.ema.module
    assert isinstance(model, DenseNet)
    return model


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
