"""The relu of the reference: in place like torchvision's, unless a backward hook forbids it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReLU(nn.ReLU):
    """nn.ReLU(inplace=True), which also works next to a module with a full backward hook.

    torch passes the inputs and outputs of such a module through a function of its own that returns
    them as views, and autograd refuses to write to those. A copy is made instead; the numbers are
    the same. torchvision's network fails here, which is why Grad-CAM tools cannot hook its norms.
    """

    def __init__(self) -> None:
        super().__init__(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        # torch.compile and torch.fx cannot trace _is_view, and need no in-place operations
        traced = torch.compiler.is_compiling() or not isinstance(x, Tensor)
        return F.relu(x, self.inplace and not (traced or x._is_view()))
