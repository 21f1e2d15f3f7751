"""YAML by the 1.2 core schema: read into a tree that knows its lines, and written."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from densekit.config.section import UserError

PathKey = str | int
"""One step of the way to a value: a mapping's key or a list's index."""
Tree = dict[str, Any]


class CoreLoader(yaml.SafeLoader):
    """YAML 1.2 core-schema scalars (`1e-4` a float, `no` a string); a key given twice fails."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in seen:
                problem = f'the key "{key}" is given twice'
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(
        str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan")
    )


_CORE = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
CoreLoader.yaml_implicit_resolvers = {}  # its own, without those of YAML 1.1
for _tag, _pattern in _CORE.items():
    CoreLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(f"^(?:{_pattern})$"),
        None,
    )
CoreLoader.add_constructor("tag:yaml.org,2002:int", _integer)
CoreLoader.add_constructor("tag:yaml.org,2002:float", _float)


class CoreDumper(yaml.SafeDumper):
    """Writes what CoreLoader reads back as the same values."""

    yaml_implicit_resolvers = CoreLoader.yaml_implicit_resolvers

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_list(dumper: yaml.SafeDumper, value: Sequence[Any]) -> yaml.SequenceNode:
    flow = all(isinstance(item, (str, int, float, bool)) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow)


def _represent_str(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    breaks = any(c in value for c in "\x85\u2028\u2029")  # PyYAML folds them unless escaped
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if breaks else None)


CoreDumper.add_representer(float, _represent_float)
CoreDumper.add_representer(str, _represent_str)
CoreDumper.add_representer(list, _represent_list)
CoreDumper.add_representer(tuple, _represent_list)


def to_yaml(tree: Tree) -> str:
    return yaml.dump(tree, Dumper=CoreDumper, sort_keys=False, allow_unicode=True, width=100)


def to_flow(value: Any) -> str:
    """A value on one line, as it may stand behind `-o key=`."""
    text = yaml.dump(value, Dumper=CoreDumper, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


@dataclass(frozen=True)
class ConfigSource:
    """What a user wrote, and where each key of it stands, so that an error can name the place."""

    tree: Tree
    places: dict[tuple[PathKey, ...], str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What the user should know of it: which keys were given by an old name."""

    def place(self, path: tuple[PathKey, ...]) -> str:
        """`file:line` or the option as typed, of the key or its nearest parent."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return ""


def read_yaml(path: Path, text: str | None = None) -> ConfigSource:
    """Reads a YAML file of one mapping. Raises UserError with file:line."""
    if text is None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from error
    try:
        loader = CoreLoader(text)
        node = loader.get_single_node()
        tree = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}:1: expected `key: value` lines at the top level")
    places: dict[tuple[PathKey, ...], str] = {}
    if node is not None:
        _note_lines(node, (), str(path), places)
    return ConfigSource(tree, places)


def _note_lines(
    node: yaml.Node, path: tuple[PathKey, ...], file: str, places: dict[tuple[PathKey, ...], str]
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            inner = (*path, str(key_node.value))
            places[inner] = f"{file}:{key_node.start_mark.line + 1}"
            _note_lines(value, inner, file, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            item = (*path, index)
            places[item] = f"{file}:{value.start_mark.line + 1}"
            _note_lines(value, item, file, places)
