"""Dotted overrides, `-o a.2.b=value`, on top of what a file says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from densekit.config.renamed import moved_keys, rename, renamed_note
from densekit.config.section import Section, UserError
from densekit.config.trees import replace_value
from densekit.config.yaml_file import ConfigSource, CoreLoader, PathKey


def parse_override(option: str) -> tuple[tuple[PathKey, ...], Any]:
    """`a.2.b=value` -> (("a", 2, "b"), value). The value is YAML; it may contain `=`."""
    dotted, equals, text = option.partition("=")
    segments = dotted.strip().split(".")
    if not equals or not all(segments):
        raise UserError(f'-o {option}: expected key.key=value, such as "-o optim.lr=0.05"')
    try:
        loader = CoreLoader(text)
        value = loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(
            f"-o {option}: {text!r} is not a YAML value; quote it if it is text"
        ) from error
    return tuple(int(s) if s.isdecimal() else s for s in segments), value


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
