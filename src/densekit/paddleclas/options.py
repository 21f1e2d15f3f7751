"""-o for a PaddleClas file: its own keys, Python's None, keys that are taken out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from densekit.config import ConfigSource, PathKey, override, parse_override
from densekit.training.recipe import Recipe


def is_ours(option: str) -> bool:
    """Whether it is one of densekit's own keys, such as optim.scale_lr=false."""
    return re.split(r"[.=]", option, maxsplit=1)[0].strip() in Recipe.model_fields


def apply_options(file: ConfigSource, options: list[str]) -> ConfigSource:
    """`file` with the options; one such as -o Arch.use_ssld=null takes the key out of the file."""
    changed = override(file, options)
    tree = _with_none(changed.tree)
    removed = [path for path, value in map(parse_override, options) if value in (None, "None")]
    for path in sorted(removed, key=lambda path: [f"{key:>9}" for key in path], reverse=True):
        if path in file.places:  # a key that the file does not have may be misspelt
            tree = _without(tree, path)
    return replace(changed, tree=tree)


def _without(node: Any, path: tuple[PathKey, ...]) -> Any:
    """`node` without what is at `path`; a list's item whose one name goes, goes with it."""
    if not path:
        return None
    head, rest = path[0], path[1:]
    if isinstance(node, dict) and head in node:
        below = _without(node[str(head)], rest) if rest else None
        return {k: below if k == head else v for k, v in node.items() if rest or k != head}
    if isinstance(node, list) and isinstance(head, int) and head < len(node):
        item = _without(node[head], rest) if rest else None
        return [*node[:head], *([item] if item else []), *node[head + 1 :]]
    return node


def _with_none(node: Any) -> Any:
    """Python's spelling of null, which -o may use."""
    if isinstance(node, dict):
        return {key: _with_none(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_none(value) for value in node]
    return None if node == "None" else node
