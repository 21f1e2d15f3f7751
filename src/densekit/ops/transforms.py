"""Who else wants to see torch's operations: the transforms and tracers that ops have no rules for.

torch.compile and torch.export are not among them: lean's operators have rules for both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

FX, TRACE, FUNC = "torch.fx", "torch.jit.trace", "torch.func"
FORWARD = "forward-mode differentiation"
TRACERS = (FX, TRACE)
"""To whom a map's size is no number."""
NOT_UNDER = {"lean": (FX, TRACE, FUNC, FORWARD), "recompute": (FX, FUNC, FORWARD)}
"""Of each op."""


def transform_of(x: Any) -> str | None:
    """What transforms or traces a call with `x`, by the name that a person knows; None: nothing."""
    if torch.compiler.is_compiling():
        return None
    if not isinstance(x, Tensor):
        return FX  # it is a Proxy
    if torch.jit.is_tracing():
        return TRACE
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return FUNC
    return FORWARD if forward_ad._current_level >= 0 else None
