"""Every key of a PaddleClas tree against the table: unknown ones and refused ones stop it."""

from __future__ import annotations

from typing import Any

from densekit.config import PathKey, dotted, nearest
from densekit.paddleclas.keys import KEYS, below
from densekit.paddleclas.translation import Translation


def check_keys(translation: Translation) -> None:
    """Refuses each key that is unknown, with the nearest one, and each that cannot be translated.

    Raises UserError, of all of them, where an unknown key or a value of another form leaves no
    file that can be translated.
    """
    if not _check(translation, translation.source.tree, ()):
        translation.raise_refusals()


def _check(t: Translation, node: Any, path: tuple[PathKey, ...]) -> bool:
    """Whether the rest of the translation can read what is at `path`."""
    pattern = dotted("*" if isinstance(step, int) else step for step in path)
    row, known = KEYS.get(pattern), below(pattern)
    if row is not None:
        if row.kind == "refused" and not _among(node, row.harmless):
            shown = f"{path[-1]}={node!r}" if not isinstance(node, (dict, list)) else path[-1]
            t.refuse(dotted(path), f"{shown} is not translated: {row.says}")
        return True
    if isinstance(node, dict) and "*" not in known:
        readable = [_check_key(t, node, path, key) for key in node]
        return all(readable)
    if isinstance(node, list) and "*" in known:
        readable = [_check_item(t, item, (*path, index)) for index, item in enumerate(node)]
        return all(readable)
    if node is not None:
        names = below(f"{pattern}.*") if "*" in known else known
        form = "a list of" if "*" in known else "keys, of"
        t.refuse(dotted(path), f"expected {form} {', '.join(names)}; got {node!r}")
        return False
    return True


def _check_key(t: Translation, node: dict[str, Any], path: tuple[PathKey, ...], key: str) -> bool:
    inner = (*path, key)
    known = below(dotted("*" if isinstance(step, int) else step for step in path))
    if str(key) in known:
        return _check(t, node[key], inner)
    t.refuse(dotted(inner), f'unknown key "{key}"{nearest(str(key), known)}')
    return False


def _check_item(t: Translation, item: Any, path: tuple[PathKey, ...]) -> bool:
    """Of a list of operations, losses or metrics: one name, with its parameters below it."""
    if isinstance(item, dict) and len(item) == 1:
        return _check(t, item, path)
    names = " and ".join(map(str, item)) if isinstance(item, dict) else repr(item)
    t.refuse(dotted(path), f"expected one name with its parameters below, got {names}")
    return False


def _among(value: Any, harmless: tuple[Any, ...]) -> bool:
    """Whether `value` is one of them, True and 1 apart."""
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in harmless
    )
