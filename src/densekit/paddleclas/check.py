"""Every key of a PaddleClas tree against the table: unknown ones and refused ones stop it."""

from __future__ import annotations

from typing import Any

from densekit.config import PathKey, dotted, nearest
from densekit.paddleclas.keys import KEYS, below
from densekit.paddleclas.translation import Translation


def check_keys(translation: Translation) -> None:
    """Raises UserError for a key that is unknown, with the nearest one, or refused."""
    _check(translation, translation.source.tree, ())


def _check(translation: Translation, node: Any, path: tuple[PathKey, ...]) -> None:
    pattern = dotted("*" if isinstance(step, int) else step for step in path)
    row = KEYS.get(pattern)
    if row is not None:
        if row.kind == "refused" and not _among(node, row.harmless):
            shown = f"{path[-1]}={node!r}" if not isinstance(node, (dict, list)) else path[-1]
            translation.fail(dotted(path), f"{shown} is not translated: {row.says}")
    elif isinstance(node, dict) and "*" not in below(pattern):
        _check_names(translation, node, path, below(pattern))
        for key, value in node.items():
            _check(translation, value, (*path, key))
    elif isinstance(node, list) and "*" in below(pattern):
        for index, item in enumerate(node):
            _check_item(translation, item, (*path, index))
    elif node is not None:
        names = below(f"{pattern}.*" if "*" in below(pattern) else pattern)
        form = "a list of" if "*" in below(pattern) else "keys, of"
        translation.fail(dotted(path), f"expected {form} {', '.join(names)}; got {node!r}")


def _check_names(
    translation: Translation, node: dict[str, Any], path: tuple[PathKey, ...], known: list[str]
) -> None:
    for key in node:
        if str(key) not in known:
            inner = dotted((*path, key))
            translation.fail(inner, f'unknown key "{key}"{nearest(str(key), known)}')


def _check_item(translation: Translation, item: Any, path: tuple[PathKey, ...]) -> None:
    """Of a list of operations, losses or metrics: one name, with its parameters below it."""
    if not isinstance(item, dict) or len(item) != 1:
        names = " and ".join(map(str, item)) if isinstance(item, dict) else repr(item)
        translation.fail(dotted(path), f"expected one name with its parameters below, got {names}")
    _check(translation, item, path)


def _among(value: Any, harmless: tuple[Any, ...]) -> bool:
    """Whether `value` is one of them, True and 1 apart."""
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in harmless
    )
