"""Parts of a network, for fine-tuning: the stem, a block with its transition, the head."""

from __future__ import annotations

import re

from torch import nn

from densekit.models.densenet import DenseBlock

HEAD_PART = -1


def part_of(stage: str, blocks: int) -> int:
    """Which part a stage of the network belongs to: 0 the stem, 1.. a block with its transition;
    `stage` may be a parameter's name."""
    stage = stage.removeprefix("features.")
    if stage.startswith("classifier"):
        return HEAD_PART
    block = re.match(r"(?:dense)?block(\d+)|transition(\d+)", stage)
    if block:
        return int(block[1] or block[2])
    return blocks if stage.startswith("norm5") else 0


def stage_names(blocks: int) -> list[str]:
    """As DenseNet.stages has them."""
    inner = [f"{kind}{b}" for b in range(1, blocks + 1) for kind in ("block", "transition")]
    return ["stem", *inner[:-1], "norm5"]


def part_rates(blocks: int, last: float, head: float, decay: float) -> dict[int, float]:
    """Each part's learning rate, from the head to the stem; `last` is the last block's."""
    return {HEAD_PART: head, **{b: last * decay ** (blocks - b) for b in range(blocks, -1, -1)}}


def rates_by_name(model: nn.Module, last: float, head: float, decay: float) -> dict[str, float]:
    """Each parameter's."""
    blocks = sum(isinstance(module, DenseBlock) for module in model.modules())
    rates = part_rates(blocks, last, head, decay)
    return {name: rates[part_of(name, blocks)] for name, _ in model.named_parameters()}
