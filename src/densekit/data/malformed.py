"""Collects the malformed lines of a list or table, to report them together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from densekit.config import UserError

MOST_LINES = 1000  # malformed lines after which reading stops: it is another kind of file
LINES_SHOWN = 20


class MalformedLines(UserError):  # noqa: N818 (what is raised is what is wrong)
    """`said`: what is wrong with each line, in order, with file and line."""

    def __init__(self, said: list[str]) -> None:
        first, *others = said
        shown = "".join(f"\n  {text}" for text in others[: LINES_SHOWN - 1])
        more = f"\n  and {len(said) - LINES_SHOWN:,} more" if len(said) > LINES_SHOWN else ""
        if len(said) >= MOST_LINES:
            more += ", where reading stopped"
        super().__init__(first + shown + more)
        self.said = said

    def __reduce__(self) -> tuple[type[MalformedLines], tuple[list[str]]]:
        return type(self), (self.said,)  # so that it survives pickling


class Malformed:
    """The malformed lines found so far."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def line(self) -> Iterator[None]:
        """Around the parsing of a line: collects the UserError that it may raise."""
        try:
            yield
        except UserError as error:
            self.said.append(str(error))
            if len(self.said) == MOST_LINES:
                self.refuse()

    def refuse(self) -> None:
        """Raises MalformedLines if there are any."""
        if self.said:
            raise MalformedLines(self.said)
