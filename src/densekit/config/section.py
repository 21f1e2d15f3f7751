"""What every config section is, and the error that a user's mistake is.

A section is declared beside the code that reads it; this room knows none of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class UserError(ValueError):
    """A mistake of the user's: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits 2; any other exception is a bug of
    ours, keeps its traceback and exits 3. `shared` says that every rank raises the same one, so
    that one of them prints it.
    """

    def __init__(self, message: str, shared: bool = False) -> None:
        super().__init__(message)
        self.shared = shared


NO_NUMBER: dict[str, Any] = {"changes_no_number": True}
"""json_schema_extra of a field that a resumed run may change."""


def when_absent(value: Any) -> dict[str, Any]:
    """json_schema_extra of a field whose default is not what was computed before there was such a
    field: `value` was."""
    return {"when_absent": value}


class Section(BaseModel):
    """Base of every config section: frozen, no unknown keys, finite numbers; a field's docstring
    is its help."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )
    renamed: ClassVar[Mapping[str, str]] = {}
    """Old names that are still read -> today's, dotted where the field is in a section below."""

    def out_of_reach(self) -> Iterator[OutOfReach]:
        """Values that others, of any section below this one, leave without what they ask for."""
        return iter(())


@dataclass(frozen=True)
class OutOfReach:
    """A value that cannot do what it asks for beside another: refused as typed, said in a file."""

    path: tuple[str, ...]
    why: str


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean "x"?` for the choice nearest to `word`, else the choices."""
    choices = [str(choice) for choice in choices]
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known: {', '.join(choices)}" if choices else ""
