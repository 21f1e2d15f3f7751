"""Dotted overrides, `-o a.2.b=value`, on top of what a file says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from densekit.config.section import UserError
from densekit.config.yaml_file import ConfigSource, CoreLoader, PathKey, Tree


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


def override(source: ConfigSource, options: Iterable[str]) -> ConfigSource:
    """`source` with each `a.b=value` applied. Keys are checked when the section is built."""
    tree, places = source.tree, dict(source.places)
    for option in options:
        path, value = parse_override(option)
        tree = replace_value(tree, path, value, f"-o {option}")
        places = {p: at for p, at in places.items() if p[: len(path)] != path}
        places[path] = f"-o {option}"
    return ConfigSource(tree, places)


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
