"""Which op computes a dense block. Plain Python at call time, so torch.compile traces through it.

An op takes a block's input and its layers and returns the block's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from densekit.config import UserError, nearest
from densekit.ops import reference

DenseBlockOp = Callable[[Tensor, Iterable[nn.Module]], Tensor]

NAMES = ("auto", "reference")


def choose(name: str) -> DenseBlockOp:
    """The op that model.op=`name` stands for; auto is the reference, the only one there is."""
    if name not in NAMES:
        raise UserError(f'model.op: unknown op "{name}"{nearest(name, NAMES)}')
    return reference.dense_block
