"""A training step's forward and backward pass as CUDA graphs: a launch each, not hundreds.

Small maps and small batches are bound by how fast Python launches kernels. Unproved on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from densekit import distributed
from densekit.config import UserError
from densekit.models.variants import architecture
from densekit.precision import Precision
from densekit.training.recipe import Recipe


def resolve_graph(recipe: Recipe, device: torch.device) -> tuple[str, list[str]]:
    """Whether steps are captured, on or off, and why auto does not. Raises UserError where they
    cannot be.
    """
    asked, reason = recipe.loop.cuda_graph, why_not_graph(recipe, device)
    if asked == "on" and reason is not None:
        raise UserError(f"loop.cuda_graph=on: {reason}; leave it at auto")
    if asked == "auto" and device.type == "cuda":
        reason = reason or "it has not been measured on this GPU"
        return "off", [f"loop.cuda_graph=auto takes no graph: {reason}"]
    return "on" if asked == "on" else "off", []


def why_not_graph(recipe: Recipe, device: torch.device) -> str | None:
    """Why a step cannot be captured; None where it can."""
    if device.type != "cuda":
        return f"graphs are of a GPU, and this run is on {device.type}"
    if distributed.world_size() > 1:
        return "several ranks exchange gradients while they are computed"
    if recipe.loop.accumulation > 1:
        return "a graph writes its gradients anew, so micro-batches cannot add to them"
    if recipe.optim.head_epochs:
        return "optim.head_epochs changes what is trained, and a graph cannot"
    if recipe.model.op == "recompute":
        return (
            "model.op=recompute keeps the state of random numbers, which cannot be read meanwhile"
        )
    if architecture(recipe.model).drop_rate > 0:
        return "dropout draws anew in each step"
    return None


def forward_of(
    model: nn.Module, prepare: Callable[[Tensor], Tensor], recipe: Recipe, precision: Precision
) -> nn.Module:
    """What a step calls: the model, or DistributedDataParallel or its capture around it."""
    side = recipe.data.train_side
    sample = prepare(torch.zeros(1, recipe.data.channels, side, side, dtype=torch.uint8))
    if recipe.loop.cuda_graph != "on":
        return distributed.wrap(model, sample)
    batch = sample.repeat(recipe.micro_batch_size, 1, 1, 1)
    return CapturedForward(
        model, batch.contiguous(memory_format=precision.memory_format), precision
    )


class CapturedForward(nn.Module):
    """Calls `model`, which trains; inputs like the sample replay what was captured with it."""

    def __init__(self, model: nn.Module, sample: Tensor, precision: Precision) -> None:
        super().__init__()
        self.model, self.shape = model, sample.shape
        kept = [buffer.clone() for buffer in model.buffers()]
        # the cache of autocast would hold casts that are not in the graph
        dtype, mixed = precision.dtype, precision.name != "fp32"
        with torch.autocast(precision.device.type, dtype, enabled=mixed, cache_enabled=False):
            captured = torch.cuda.make_graphed_callables(_Call(model), (sample,))
        assert isinstance(captured, nn.Module)
        self.captured = captured
        with torch.no_grad():  # the steps before the capture moved running statistics
            for buffer, value in zip(model.buffers(), kept, strict=True):
                buffer.copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        replays = x.shape == self.shape
        logits: Tensor = self.captured(x) if replays else self.model(x)
        return logits


class _Call(nn.Module):
    """Whose forward torch replaces, in place of the model's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
