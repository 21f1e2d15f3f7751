"""A translation in progress: their tree as it was read, the recipe's tree as it grows, notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from densekit.config import ConfigSource, PathKey, Tree, UserError
from densekit.config.paths import expand_home


@dataclass
class Translation:
    """What is read of `source` and what is set of the recipe."""

    source: ConfigSource
    processes: int
    """Cards, in their words."""
    tree: Tree = field(default_factory=dict)
    """The recipe: sections of keys."""
    notes: dict[str, str] = field(default_factory=dict)
    """By densekit's dotted key: what is otherwise than there, and why."""
    places: dict[tuple[PathKey, ...], str] = field(default_factory=dict)
    """By densekit's key: where its value stands in their file."""
    refusals: list[str] = field(default_factory=list)
    """Sentences: what stops the translation, once all of it has been looked at."""

    def value(self, path: str, default: Any = None) -> Any:
        """Of a dotted path; `default` where there is none, or null."""
        node: Any = self.source.tree
        for key in as_path(path):
            if isinstance(node, dict) and key in node:
                node = node[str(key)]
            elif isinstance(node, (list, tuple)) and isinstance(key, int) and key < len(node):
                node = node[key]
            else:
                return default
        return default if node is None else node

    def number(self, path: str, default: float) -> float:
        """A number, or a fraction such as 1.0/255.0, which they evaluate. Raises UserError."""
        value = self.value(path, default)
        parts = str(value).split("/")
        try:
            numbers = [float(part) for part in parts]
            if isinstance(value, bool) or len(numbers) > 2:
                raise ValueError
            return numbers[0] / numbers[1] if len(numbers) == 2 else numbers[0]
        except (ValueError, ZeroDivisionError):
            self.fail(path, f"expected a number, got {value!r}")

    def numbers(self, path: str) -> list[float]:
        """A list of numbers; empty where there is none. Raises UserError."""
        values = self.value(path, [])
        if not isinstance(values, list):
            self.fail(path, f"expected a list of numbers, got {values!r}")
        return [self.number(f"{path}.{index}", 0.0) for index in range(len(values))]

    def whole(self, path: str, default: int) -> int:
        """A whole number from 1 on. Raises UserError."""
        value = self.value(path, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.fail(path, f"expected a whole number from 1 on, got {value!r}")
        return value

    def text(self, path: str, default: str = "") -> str:
        return str(self.value(path, default))

    def place(self, path: str) -> Path:
        """A file or folder. Raises UserError for a name that no disk takes."""
        try:
            return Path(expand_home(self.text(path)))
        except ValueError as error:
            self.fail(path, str(error))

    def is_on(self, path: str, default: bool = False) -> bool:
        """True or False. Raises UserError: their `false` in -o is a text, and on."""
        value = self.value(path, default)
        if not isinstance(value, bool):
            self.fail(path, f"expected True or False, got {value!r}")
        return value

    def set(self, key: str, value: Any, path: str = "", note: str = "") -> None:
        """The recipe's `key`, which stands at `path` of theirs."""
        keys, node = tuple(key.split(".")), self.tree
        for section in keys[:-1]:
            node = node.setdefault(section, {})
        node[keys[-1]] = value
        if path:
            self.places[keys] = self.named(path)
        if note:
            self.note(key, note)

    def note(self, key: str, text: str) -> None:
        self.notes[key] = f"{self.notes[key]}; {text}" if key in self.notes else text

    def named(self, path: str) -> str:
        """`file:line (their.key)`, or the option as typed."""
        place = self.source.place(as_path(path))
        return place if place.startswith("-o") else f"{place} ({path})" if place else path

    def typed(self, path: str) -> bool:
        """Whether the key's value was given by -o, of its own."""
        return self.source.places.get(as_path(path), "").startswith("-o")

    def fail(self, path: str, text: str) -> NoReturn:
        """Stops the part of the translation that runs."""
        raise UserError(f"{self.named(path)}: {text}", shared=True)

    def refuse(self, path: str, text: str) -> None:
        """The same without stopping: the whole fails at `raise_refusals`."""
        self.refusals.append(f"{self.named(path)}: {text}")

    def attempt(self, *parts: Callable[[Translation], None]) -> None:
        """Runs parts that need nothing of each other; a failure of one is kept as a refusal."""
        for part in parts:
            try:
                part(self)
            except UserError as failure:
                self.refusals.append(str(failure))

    def raise_refusals(self) -> None:
        """Raises one UserError of all refusals so far; nothing where there are none."""
        if self.refusals:
            raise UserError("\n".join(dict.fromkeys(self.refusals)), shared=True)


def as_path(path: str) -> tuple[PathKey, ...]:
    return tuple(int(part) if part.isdecimal() else part for part in path.split("."))
