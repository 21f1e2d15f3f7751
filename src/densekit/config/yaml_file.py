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


MOST_VALUES, DEEPEST, LONGEST = 100_000, 50, 4_000_000  # of a document; characters


class CoreLoader(yaml.SafeLoader):
    """YAML 1.2 core-schema scalars (`1e-4` a float, `no` a string); keys are text, each once.

    A document that would not end in bounded time and memory is refused where it goes too far: an
    anchor within itself, aliases that unfold to too many values, values nested too deep.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.values = 0
        self.heights: list[int] = []  # of the nodes that are open, from the root inwards
        self.whole: dict[yaml.Node, tuple[int, int]] = {}  # values in it, and its height

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self.values
        if len(self.heights) > DEEPEST:
            raise _refusal(event, f"values nested more than {DEEPEST} deep")
        self.values += 1
        self.heights.append(0)
        node = super().compose_node(parent, index)
        height = self.heights.pop()
        if isinstance(event, yaml.AliasEvent):
            if node not in self.whole:
                raise _refusal(event, f"the anchor {event.anchor} refers to itself")
            size, height = self.whole[node]
            self.values += size
        elif node is not None:
            self.whole[node] = self.values - before, height
        if self.values > MOST_VALUES:
            raise _refusal(event, f"more than {MOST_VALUES:,} values, aliases unfolded")
        if len(self.heights) + height > DEEPEST:
            raise _refusal(event, f"values nested more than {DEEPEST} deep")
        if self.heights:
            self.heights[-1] = max(self.heights[-1], height + 1)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _refusal(node, "expected `key: value` lines")
        mapping: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refusal(key_node, "a key must be text, not a list or a map")
            if key_node.value in mapping:
                raise _refusal(key_node, f'the key "{key_node.value}" is given twice')
            mapping[key_node.value] = self.construct_object(value_node, deep=deep)
        return mapping


def _refusal(at: yaml.Node | yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    mark: Any = at.start_mark
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    try:
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    except ValueError as error:  # one with a tag, or of thousands of digits
        raise _refusal(node, f"{_shown(text)} is no whole number") from error


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node))
    try:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError as error:
        raise _refusal(node, f"{_shown(text)} is no number") from error


def _boolean(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    text = str(loader.construct_scalar(node))
    if text.lower() not in ("true", "false"):
        raise _refusal(node, f"{_shown(text)} is neither true nor false")
    return text.lower() == "true"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


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
CoreLoader.yaml_constructors = {  # no dates, sets or bytes, which no option takes
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "str", "seq", "map")
}
CoreLoader.add_constructor("tag:yaml.org,2002:bool", _boolean)
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


def parse_yaml(text: str, source: str) -> tuple[Any, yaml.Node | None]:
    """The value of a document and its node, or None twice where it is empty.

    Raises UserError that begins with `source` and the line.
    """
    if len(text) > LONGEST:
        raise UserError(f"{source}: {len(text):,} characters are no recipe")
    try:
        loader = CoreLoader(text)
        node = loader.get_single_node()
        return (loader.construct_document(node) if node is not None else None), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = str(error.problem or error.context)
        if problem.startswith("but"):  # of two documents
            problem = f"{error.context}, {problem}"
        raise UserError(f"{source}{line}: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = f":{text.count(chr(10), 0, error.position) + 1}"
        raise UserError(
            f"{source}{line}: holds the character {chr(error.character)!r}, which text may not"
        ) from error


def read_yaml(path: Path, text: str | None = None) -> ConfigSource:
    """Reads a YAML file of one mapping. Raises UserError with file:line."""
    if text is None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from error
    tree, node = parse_yaml(text, str(path))
    if node is None:
        return ConfigSource({})
    if not isinstance(tree, dict):
        raise UserError(f"{path}:1: expected `key: value` lines at the top level")
    places: dict[tuple[PathKey, ...], str] = {}
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
