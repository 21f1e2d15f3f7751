"""Plain trees of maps and lists, changed by copying: what stands at a path, and in its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from densekit.config.section import UserError
from densekit.config.yaml_file import PathKey, Tree


def merge(base: Tree, over: Tree) -> Tree:
    """`over` on top of `base`: mappings merge key by key, anything else replaces."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def replace_value(node: Any, path: tuple[PathKey, ...], value: Any, option: str) -> Any:
    """A copy of `node` with `value` at `path`. Raises UserError that begins with `option`."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(node, (list, tuple)):
        if not isinstance(head, int) or head >= len(node):
            raise UserError(f'{option}: "{head}" must be an index from 0 to {len(node) - 1}')
        return [
            replace_value(v, rest, value, option) if i == head else v for i, v in enumerate(node)
        ]
    if isinstance(node, dict) or node is None:
        node, key = node or {}, str(head)
        return {**node, key: replace_value(node.get(key), rest, value, option)}
    raise UserError(f'{option}: "{head}" stands below a plain value, {node!r}')


def has_value(tree: Any, path: tuple[PathKey, ...]) -> bool:
    """Whether the map at the parent of `path` has its last key."""
    parent = get_value(tree, path[:-1])
    return isinstance(parent, dict) and path[-1] in parent


def get_value(tree: Any, path: tuple[PathKey, ...]) -> Any:
    """What stands at a path of maps' keys; None where there is nothing."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def without_value(tree: Tree, path: tuple[PathKey, ...]) -> Tree:
    """A copy of `tree` without the key at `path`, which it has."""
    head, rest = str(path[0]), path[1:]
    if not rest:
        return {key: value for key, value in tree.items() if key != head}
    return {**tree, head: without_value(tree[head], rest)}


def dotted(path: Iterable[PathKey]) -> str:
    """As a user writes it: `a.2.b`."""
    return ".".join(map(str, path))
