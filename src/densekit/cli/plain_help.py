"""Commands whose --help names what an option takes, and no Python type.

typer 0.29 writes <bool> beside a switch, which takes nothing, and <str> beside an argument that has
a name; older ones still do so beside arguments.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


def without_types(params: list[Any]) -> list[Any]:
    """The same parameters, which are not described by a type."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
        elif param.param_type_name == "argument" and hasattr(param, "display_type_rich"):
            param.display_type_rich = lambda ctx: None
    return params


class PlainCommand(TyperCommand):
    """A command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """With --help."""
        return without_types(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """Commands under one name."""

    def get_params(self, ctx: Any) -> list[Any]:
        """With --help."""
        return without_types(super().get_params(ctx))
