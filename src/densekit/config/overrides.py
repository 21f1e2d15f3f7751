"""Dotted overrides, `-o a.2.b=value`, on top of what a file says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from densekit.config.renamed import moved_keys, rename, renamed_note
from densekit.config.section import Section, UserError
from densekit.config.trees import replace_value
from densekit.config.yaml_file import ConfigSource, PathKey, parse_yaml


def parse_override(option: str) -> tuple[tuple[PathKey, ...], Any]:
    """`a.2.b=value` -> (("a", 2, "b"), value). The value is YAML; it may contain `=`."""
    dotted, equals, text = option.partition("=")
    segments = dotted.strip().split(".")
    shown = option if len(option) <= 200 else f"{option[:197]}..."
    if not equals or not all(segments):
        raise UserError(f'-o {shown}: expected key.key=value, such as "-o optim.lr=0.05"')
    path = tuple(int(s) if s.isdecimal() and len(s) < 10 else s for s in segments)
    if any("\ud800" <= character <= "\udfff" for character in text):
        return path, text  # a path whose bytes are of another encoding, which YAML cannot hold
    try:
        return path, parse_yaml(text, "")[0]
    except UserError as error:
        problem = str(error).partition(": ")[2]
        raise UserError(
            f"-o {shown}: not a YAML value ({problem}); quote it if it is text"
        ) from error


def override(
    source: ConfigSource, options: Iterable[str], section: type[Section] | None = None
) -> ConfigSource:
    """`source` with each `a.b=value` applied. Keys are checked when the section is built.

    Old names of `section` are read as today's. Raises UserError for both names of one key with
    different values.
    """
    tree, places, notes = source.tree, dict(source.places), list(source.notes)
    moves = moved_keys(section) if section else {}
    given: dict[tuple[PathKey, ...], tuple[str, Any, bool]] = {}
    for option in options:
        path, value = parse_override(option)
        old = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in moves), None)
        if old:
            path = moves[old] + path[len(old) :]
            notes.append(renamed_note(f"-o {option}", old, moves[old]))
        before = given.setdefault(path, (option, value, bool(old)))
        if before[1] != value and before[2] != bool(old):
            raise UserError(f"-o {before[0]} and -o {option} set one option; leave one of them")
        tree = replace_value(tree, path, value, f"-o {option}")
        places = {p: at for p, at in places.items() if p[: len(path)] != path}
        places[path] = f"-o {option}"
    changed = ConfigSource(tree, places, tuple(notes))
    return rename(section, changed) if section else changed  # a value may be a map of old names
