"""Options that have an effect only beside certain values of others.

A field says so where it is declared; `build_effective` refuses what a user set in vain:

    warmup_start: Annotated[float, when(warmup_epochs=ON)] = 0.0
    gamma: Annotated[float, when(schedule="step", values=OFF)] = 0.1
    momentum: Annotated[float, when(name=("sgd", "rmsprop"))] = 0.9
    head_epochs: Annotated[int, when(freeze=Other("norm5"))] = 0

A name is of a field of the same section, or, dotted, of a section below it, or, after a slash
(`/model.task`), of the whole recipe. All that one `when` names must hold; of several `when` on one
field, one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from operator import attrgetter
from typing import Any, TypeVar

from densekit.config.build import build, named_place
from densekit.config.section import Section, UserError
from densekit.config.trees import replace_value
from densekit.config.yaml_file import ConfigSource, PathKey, Tree, to_flow

S = TypeVar("S", bound=Section)


class Switch(Enum):
    """What a neighbour may have to be, whatever its value."""

    ON = "neither null nor false, nor 0 or empty"
    OFF = "one of these"


ON, OFF = Switch.ON, Switch.OFF


@dataclass(frozen=True)
class Other:
    """Any value but this one."""

    than: Any


Fitting = Switch | Other | tuple[Any, ...]


@dataclass(frozen=True)
class When:
    """A mark of a field: it has an effect only where its neighbours have these values."""

    wanted: dict[str, Fitting]

    def unmet(self, section: Section, whole: Section) -> list[str]:
        """The neighbours whose values make the field idle."""
        return [
            name
            for name, values in self.wanted.items()
            if not _fits(_value(name, section, whole), values)
        ]

    def describe(self, prefix: str) -> str:
        """`optim.schedule=step and no optim.values`."""
        named = self.wanted.items()
        return " and ".join(_wanted(_dotted(name, prefix), values) for name, values in named)


def when(**neighbours: Any) -> When:
    """The mark; a value, a tuple of them, ON, OFF or Other for each neighbour."""
    kinds = (Switch, Other, tuple)
    return When({n: v if isinstance(v, kinds) else (v,) for n, v in neighbours.items()})


def marks(section: type[Section], name: str) -> list[When]:
    """Of a field; empty where it always has an effect."""
    return [mark for mark in section.model_fields[name].metadata if isinstance(mark, When)]


@dataclass(frozen=True)
class Idle:
    """An option that differs from its default and has no effect."""

    path: tuple[str, ...]
    default: Any
    switches: tuple[tuple[str, ...], ...]
    """The keys whose values make it idle."""
    why: str


def idle_options(
    section: Section, path: tuple[str, ...] = (), whole: Section | None = None
) -> Iterator[Idle]:
    """Of `section`, which stands at `path` in `whole`, and those below it."""
    whole = section if whole is None else whole
    prefix = "".join(f"{key}." for key in path)
    for name, field in type(section).model_fields.items():
        value, default = getattr(section, name), field.get_default(call_default_factory=True)
        if isinstance(value, Section):
            yield from idle_options(value, (*path, name), whole)
        alternatives = marks(type(section), name)
        unmet = [mark.unmet(section, whole) for mark in alternatives]
        if alternatives and all(unmet) and value != default:
            switches = tuple(dict.fromkeys(key for keys in unmet for key in keys))
            now = " and ".join(
                f"{_dotted(key, prefix)}={to_flow(_value(key, section, whole))}" for key in switches
            )
            needs = ", or ".join(mark.describe(prefix) for mark in alternatives)
            yield Idle(
                (*path, name),
                default,
                tuple(tuple(_dotted(key, prefix).split(".")) for key in switches),
                f"has no effect with {now}; it needs {needs}",
            )


def build_effective(section: type[S], source: ConfigSource, file: Tree) -> S:
    """The section that `source` describes, in which every option has an effect.

    `source` is defaults, suggestions, a file's tree `file` and options, merged. An option that is
    idle goes back to its default where a later layer made it so, as -o optim.schedule=cosine does
    to a file's milestones, and is the user's mistake otherwise. Raises UserError.
    """
    built = build(section, source)
    while idle := list(idle_options(built)):
        mistakes = [
            f"{named_place(source, option.path)}: {option.why}"
            for option in idle
            if _layer(source, file, option.path) > 0
            and max(_layer(source, file, key) for key in option.switches)
            <= _layer(source, file, option.path)
        ]
        if mistakes:
            raise UserError("\n".join(mistakes))
        tree = source.tree
        for option in idle:
            tree = replace_value(tree, option.path, option.default, "")
        source = replace(source, tree=tree)
        built = build(section, source)
    return built


def out_of_reach(section: Section, source: ConfigSource, file: Tree) -> list[str]:
    """What `section` says of values that cannot do what they ask for, a sentence each.

    Raises UserError where an option asks for it.
    """
    found = list(section.out_of_reach())
    typed = [
        f"{named_place(source, each.path)}: {each.why}"
        for each in found
        if _layer(source, file, each.path) == 2
    ]
    if typed:
        raise UserError("\n".join(typed))
    return [f"{named_place(source, each.path)}: {each.why}" for each in found]


def _layer(source: ConfigSource, file: Tree, path: tuple[PathKey, ...]) -> int:
    """Who gave the key: 2 an option, 1 the file, 0 a suggestion or the default."""
    if source.place(path).startswith("-"):
        return 2
    node: Any = file
    for key in path:
        if not isinstance(node, dict) or key not in node:
            return 0
        node = node[str(key)]
    return 1


def _value(name: str, section: Section, whole: Section) -> Any:
    return attrgetter(name.removeprefix("/"))(whole if name.startswith("/") else section)


def _dotted(name: str, prefix: str) -> str:
    """From the top."""
    return name[1:] if name.startswith("/") else prefix + name


def _fits(value: Any, wanted: Fitting) -> bool:
    if isinstance(wanted, tuple):
        return value in wanted
    if isinstance(wanted, Other):
        return bool(value != wanted.than)
    on = any(value) if isinstance(value, (tuple, list)) else bool(value)
    return on == (wanted is ON)


def _wanted(key: str, values: Fitting) -> str:
    if isinstance(values, Other):
        return f"another {key} than {to_flow(values.than)}"
    if isinstance(values, tuple):
        return f"{key}={' or '.join(to_flow(value) for value in values)}"
    return key if values is ON else f"no {key}"
