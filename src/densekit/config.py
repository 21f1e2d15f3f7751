"""Sections, YAML files and dotted overrides: how what a user writes becomes typed, frozen values.

A section is declared beside the code that reads it; this file knows none of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class UserError(ValueError):
    """A mistake of the user's: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits 2; any other exception is a bug of
    ours, keeps its traceback and exits 3. `shared` says that every rank raises the same one, so
    that one of them prints it.
    """

    def __init__(self, message: str, shared: bool = False) -> None:
        super().__init__(message)
        self.shared = shared


class Section(BaseModel):
    """Base of every config section: frozen, no unknown keys; a field's docstring is its help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )


S = TypeVar("S", bound=Section)
Key = str | int
Tree = dict[str, Any]


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean "x"?` for the choice nearest to `word`, else the choices."""
    choices = [str(choice) for choice in choices]
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known: {', '.join(choices)}" if choices else ""


# YAML 1.2 core schema -----------------------------------------------------------------------


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


@dataclass(frozen=True)
class Source:
    """What a user wrote, and where each key of it stands, so that an error can name the place."""

    tree: Tree
    places: dict[tuple[Key, ...], str] = field(default_factory=dict)

    def place(self, path: tuple[Key, ...]) -> str:
        """`file:line` or the option as typed, of the key or its nearest parent."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return ""


def read_yaml(path: Path, text: str | None = None) -> Source:
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
    places: dict[tuple[Key, ...], str] = {}
    if node is not None:
        _note_lines(node, (), str(path), places)
    return Source(tree, places)


def _note_lines(
    node: yaml.Node, path: tuple[Key, ...], file: str, places: dict[tuple[Key, ...], str]
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


# Overrides ----------------------------------------------------------------------------------


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


def parse_override(option: str) -> tuple[tuple[Key, ...], Any]:
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


def override(source: Source, options: Iterable[str]) -> Source:
    """`source` with each `a.b=value` applied. Keys are checked when the section is built."""
    tree, places = source.tree, dict(source.places)
    for option in options:
        path, value = parse_override(option)
        tree = _set(tree, path, value, f"-o {option}")
        places = {p: at for p, at in places.items() if p[: len(path)] != path}
        places[path] = f"-o {option}"
    return Source(tree, places)


def _set(node: Any, path: tuple[Key, ...], value: Any, option: str) -> Any:
    """A copy of `node` with `value` at `path`."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(node, (list, tuple)):
        if not isinstance(head, int) or head >= len(node):
            raise UserError(f'{option}: "{head}" must be an index from 0 to {len(node) - 1}')
        return [_set(v, rest, value, option) if i == head else v for i, v in enumerate(node)]
    if isinstance(node, dict) or node is None:
        node, key = node or {}, str(head)
        return {**node, key: _set(node.get(key), rest, value, option)}
    raise UserError(f'{option}: "{head}" stands below a plain value, {node!r}')


def build(section: type[S], source: Source) -> S:
    """The section that `source` describes. Raises one UserError that lists every mistake."""
    try:
        return section.model_validate(source.tree)
    except ValidationError as invalid:
        mistakes: dict[tuple[Key, ...], list[dict[str, Any]]] = {}
        for error in invalid.errors():
            path = _of_field(section, error["loc"])
            mistakes.setdefault(path, []).append(dict(error))
        lines = [_explain(section, source, path, errors) for path, errors in mistakes.items()]
        raise UserError("\n".join(lines)) from invalid


def _of_field(section: type[Section], location: tuple[Key, ...]) -> tuple[Key, ...]:
    """`location` without the names of a union's members, which pydantic appends."""
    here: Any = section
    for depth, key in enumerate(location):
        fields = getattr(here, "model_fields", None)
        if fields is None and not isinstance(key, int):
            return location[:depth]
        here = fields[key].annotation if fields and key in fields else None
    return location


def _explain(
    section: type[Section], source: Source, path: tuple[Key, ...], errors: list[dict[str, Any]]
) -> str:
    """One sentence: where, what is wrong, the value. A union has an error for each member."""
    place, dotted, first = source.place(path), ".".join(map(str, path)), errors[0]
    where = place if place.startswith("-o") else f"{place}: {dotted}" if place else dotted
    if first["type"] == "extra_forbidden":
        return f'{where}: unknown key "{path[-1]}"{nearest(str(path[-1]), _keys(section, path))}'
    messages = [error["msg"].removeprefix("Value error, ") for error in errors]
    if first["type"] == "value_error":
        return f"{where}: {messages[0]}" if where else messages[0]
    expected = " or ".join(message.removeprefix("Input should be ") for message in messages)
    return f"{where}: expected {expected}, got {first['input']!r}"


def _keys(section: type[Section], path: tuple[Key, ...]) -> list[str]:
    """The keys that the section at the parent of `path` has."""
    here: Any = section
    for key in path[:-1]:
        info = getattr(here, "model_fields", {}).get(str(key))
        here = info.annotation if info else None
    return list(getattr(here, "model_fields", {}))
