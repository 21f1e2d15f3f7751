"""A section from what a user wrote, or one error that lists every mistake and its place."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from densekit.config.renamed import rename
from densekit.config.section import Section, UserError, nearest
from densekit.config.trees import dotted
from densekit.config.yaml_file import ConfigSource, PathKey

S = TypeVar("S", bound=Section)


def build(section: type[S], source: ConfigSource) -> S:
    """The section that `source` describes. Raises one UserError that lists every mistake."""
    source = rename(section, source)
    try:
        return section.model_validate(source.tree)
    except ValidationError as invalid:
        mistakes: dict[tuple[PathKey, ...], list[dict[str, Any]]] = {}
        for error in invalid.errors():
            path = _of_field(section, error["loc"])
            mistakes.setdefault(path, []).append(dict(error))
        lines = [_explain(section, source, path, errors) for path, errors in mistakes.items()]
        raise UserError("\n".join(lines)) from invalid


def _of_field(section: type[Section], location: tuple[PathKey, ...]) -> tuple[PathKey, ...]:
    """`location` without the names of a union's members, which pydantic appends."""
    here: Any = section
    for depth, key in enumerate(location):
        fields = getattr(here, "model_fields", None)
        if fields is None and not isinstance(key, int):
            return location[:depth]
        here = fields[key].annotation if fields and key in fields else None
    return location


def named_place(source: ConfigSource, path: tuple[PathKey, ...]) -> str:
    """The key and where it stands: `file:line: a.b`, or the option as typed."""
    place, key = source.place(path), dotted(path)
    if place.startswith("-"):  # an option says the key itself
        return place
    return f"{place}: {key}" if place else key


def _explain(
    section: type[Section],
    source: ConfigSource,
    path: tuple[PathKey, ...],
    errors: list[dict[str, Any]],
) -> str:
    """One sentence: where, what is wrong, the value. A union has an error for each member."""
    where, first = named_place(source, path), errors[0]
    if first["type"] == "extra_forbidden":
        return f'{where}: unknown key "{path[-1]}"{nearest(str(path[-1]), _keys(section, path))}'
    messages = [error["msg"].removeprefix("Value error, ") for error in errors]
    if first["type"] == "value_error":
        return f"{where}: {messages[0]}" if where else messages[0]
    expected = " or ".join(message.removeprefix("Input should be ") for message in messages)
    return f"{where}: expected {expected}, got {first['input']!r}"


def _keys(section: type[Section], path: tuple[PathKey, ...]) -> list[str]:
    """The keys that the section at the parent of `path` has."""
    here: Any = section
    for key in path[:-1]:
        info = getattr(here, "model_fields", {}).get(str(key))
        here = info.annotation if info else None
    return list(getattr(here, "model_fields", {}))
