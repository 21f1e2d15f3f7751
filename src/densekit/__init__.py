"""densekit: train, evaluate, predict with, export and serve DenseNets.

import densekit
model = densekit.create_model("densenet121", num_classes=10)
classifier = densekit.load("runs/quickstart/best")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from densekit.api import create_model, list_models, load, train

__version__ = "0.1.0"
__all__ = ["create_model", "list_models", "load", "train"]


def __getattr__(name: str) -> object:
    """The functions of densekit.api, imported when first used: torch takes seconds to load."""
    if name in __all__:
        from densekit import api

        return getattr(api, name)
    raise AttributeError(f"module 'densekit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
