"""A step on a device of its own, as a GPU is: on "meta", which knows devices and computes nothing.

There a number that the host asks for is an error, and so is a tensor of the host among the others.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from densekit.bench.compare import as_options
from densekit.ops import refusals
from densekit.precision import Precision
from densekit.training.ema import MovingAverage
from densekit.training.optim import OptimConfig, create_optimizer
from densekit.training.recipe import load_recipe
from densekit.training.step import create_learner, train_step

META = torch.device("meta")
IMAGES, SIDE, CLASSES = 4, 32, 10
OPTIONS = {
    "plain": [],
    "all that a step may do": [
        "loop.ema=0.99", "optim.clip_norm=1", "loop.accumulation=2", "loop.label_smoothing=0.1",
        "data.augment.mixup=0.5", "data.augment.cutmix=0.5",
    ],
    "several classes": ["model.task=multilabel", "loop.ema=0.99", "loop.focal_gamma=2"],
}  # fmt: skip


class Operations(TorchDispatchMode):
    """The names of torch's operations; and copies between devices for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        self.names.append(name)
        if name in ("_to_copy", "copy_"):
            given = args[0] if name == "_to_copy" else args[1]
            later = (kwargs or {}).get("non_blocking", name == "copy_" and args[2:3] == (True,))
            if given.device != found.device and not later:
                self.waits.append(f"{name} of {list(given.shape)}")
        return found


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(refusals, "LEAN_DEVICES", (META.type,))
    monkeypatch.setattr(Precision, "autocast", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # meta has none
    return META


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("recompute", "plain"),
        ("reference", "all that a step may do"),
        *(("lean", o) for o in OPTIONS),
    ],
)
def test_the_host_never_waits_within_a_step(device: torch.device, op: str, name: str) -> None:
    small = [*as_options("densenet_bc_10_4", SIDE, IMAGES), f"model.num_classes={CLASSES}"]
    recipe = load_recipe(None, [*small, f"model.op={op}", *OPTIONS[name]])
    learner = create_learner(recipe, Precision(device))
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    if recipe.model.task == "multilabel":
        labels = torch.zeros(IMAGES, CLASSES, dtype=torch.int8)
    images = torch.zeros(IMAGES, 3, SIDE, SIDE, dtype=torch.uint8)
    for step in range(2):  # the first makes the optimizer's state
        with Operations() as seen:
            parts = zip(*(t.chunk(recipe.loop.accumulation) for t in (images, labels)), strict=True)
            sums = train_step(learner, list(parts), IMAGES, step)
        assert not seen.waits
        assert sums.device == device


# Few launches -------------------------------------------------------------------------------


def test_the_average_and_the_norm_are_a_few_launches_whatever_the_network() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(9)))
    average = MovingAverage(model, 0.9)
    average.update_parameters(model)
    with Operations() as seen:
        average.update_parameters(model)
    computing = [name for name in seen.names if name not in ("detach", "_local_scalar_dense")]
    assert computing == ["_foreach_lerp_", "_foreach_copy_", "add_"]  # the last of the count
    gradients: list[Tensor] = [torch.ones_like(p) for p in model.parameters()]
    with Operations() as seen:
        nn.utils.get_total_norm(gradients)
    assert seen.names == ["_foreach_norm", "stack", "linalg_vector_norm"]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_are_fused_on_a_gpu(name: Any) -> None:
    with FakeTensorMode():
        model = nn.Linear(3, 3)
        model.weight, model.bias = (
            nn.Parameter(torch.zeros(p.shape, device="cuda")) for p in model.parameters()
        )
        optimizer = create_optimizer(model, OptimConfig(name=name), 256)
    assert optimizer.defaults["fused"]
