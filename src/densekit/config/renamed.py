"""Keys that were renamed: the old names are read for one version, each with a note.

A section lists its own in `renamed`, beside its fields. Names are changed in what the user wrote,
before anything is merged into it or compared with it.
"""

from __future__ import annotations

from dataclasses import replace

from densekit.config.section import Section, UserError
from densekit.config.trees import dotted, get_value, has_value, replace_value, without_value
from densekit.config.yaml_file import ConfigSource, PathKey

Path = tuple[PathKey, ...]


def moved_keys(section: type[Section], at: Path = ()) -> dict[Path, Path]:
    """Old path -> today's, of all that `section` and the sections below it have renamed."""
    moves: dict[Path, Path] = {
        (*at, old): (*at, *new.split(".")) for old, new in section.renamed.items()
    }
    for name, below in section.model_fields.items():
        if isinstance(below.annotation, type) and issubclass(below.annotation, Section):
            moves.update(moved_keys(below.annotation, (*at, name)))
    return moves


def rename(section: type[Section], source: ConfigSource) -> ConfigSource:
    """`source` with today's names, and a note for each old one.

    Raises UserError for both names of one key with different values.
    """
    tree, places, notes = source.tree, source.places, list(source.notes)
    for old, new in moved_keys(section).items():
        if not has_value(tree, old):
            continue
        value, where = get_value(tree, old), source.place(old)
        if has_value(tree, new) and get_value(tree, new) != value:
            raise UserError(
                f"{where or dotted(old)}: {dotted(old)} is now {dotted(new)}, which is also set "
                f"to another value ({source.place(new) or dotted(new)}); leave one of them"
            )
        tree = replace_value(without_value(tree, old), new, value, where)
        places = {
            new + path[len(old) :] if path[: len(old)] == old else path: at
            for path, at in places.items()
        }
        notes.append(renamed_note(where, old, new))
    return replace(source, tree=tree, places=places, notes=tuple(notes))


def renamed_note(where: str, old: Path, new: Path) -> str:
    text = f"{dotted(old)} is now {dotted(new)}; the old name works for this version"
    return f"{where}: {text}" if where else text
