"""loop.cuda_graph: where it is refused and why; on a GPU, that it changes no number."""

from __future__ import annotations

import pytest
import torch

from densekit import distributed
from densekit.bench.compare import as_options
from densekit.bench.training_step import training_step
from densekit.config import UserError
from densekit.training.graph import resolve_graph
from densekit.training.recipe import load_recipe

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def resolved(graph: str, device: torch.device = CUDA, *options: str) -> tuple[str, list[str]]:
    small = as_options("densenet_bc_22_12", 32, 8)
    recipe = load_recipe(None, [*small, f"loop.cuda_graph={graph}", *options])
    return resolve_graph(recipe, device)


def test_it_is_taken_where_it_is_asked_for() -> None:
    assert resolved("on") == ("on", [])
    assert resolved("off") == ("off", [])


def test_auto_leaves_it_until_it_is_measured_and_says_so_on_a_gpu() -> None:
    assert resolved("auto", CPU) == ("off", [])
    taken, (why,) = resolved("auto")
    assert taken == "off"
    assert why == "loop.cuda_graph=auto takes no graph: it has not been measured on this GPU"


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("loop.accumulation=2", "micro-batches cannot add to them"),
        ("model.op=recompute", "keeps the state of random numbers"),
        ("model.drop_rate=0.1", "dropout draws anew"),
    ],
)
def test_it_is_refused_with_the_reason(option: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"loop.cuda_graph=on: .*{reason}.*; leave it at auto"):
        resolved("on", CUDA, option)


def test_it_is_refused_without_a_gpu() -> None:
    with pytest.raises(UserError, match="graphs are of a GPU, and this run is on cpu"):
        resolved("on", CPU)


def test_it_is_refused_of_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="several ranks exchange gradients"):
        resolved("on")


@pytest.mark.gpu
@pytest.mark.parametrize("op", ["reference", "lean"])
def test_a_captured_step_is_the_step_bit_for_bit(op: str) -> None:
    """Losses, weights and running statistics after four steps."""
    found = []
    for graph in ("off", "on"):
        options = [*as_options("densenet_bc_22_12", 32, 8), "model.num_classes=10"]
        options += [f"model.op={op}", "loop.device=cuda", f"loop.cuda_graph={graph}"]
        step = training_step(load_recipe(None, options))
        losses = [step() for _ in range(4)]
        found.append([*map(torch.as_tensor, losses), *step.learner.model.state_dict().values()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
