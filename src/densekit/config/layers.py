"""What decides a section, layer upon layer: defaults, a file, options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from densekit.config.applies import build_effective, out_of_reach
from densekit.config.overrides import override
from densekit.config.renamed import rename
from densekit.config.section import Section
from densekit.config.trees import merge
from densekit.config.yaml_file import ConfigSource, Tree

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Layers:
    """Each one wins over those above it, and all over the section's own defaults."""

    defaults: Tree = field(default_factory=dict)
    source: ConfigSource = field(default_factory=lambda: ConfigSource({}))
    """What the user wrote: a file, or what stands for one."""
    options: Iterable[str] = ()
    """`a.b=value`, as -o has them."""


def assemble(section: type[S], layers: Layers) -> tuple[S, tuple[str, ...]]:
    """The section, and notes on keys given by an old name and on values out of reach.

    Raises one UserError that names file:line or the option as typed for every mistake.
    """
    source = rename(section, layers.source)
    tree = merge(merge(section().model_dump(), layers.defaults), source.tree)
    whole = override(replace(source, tree=tree), layers.options, section)
    built = build_effective(section, whole, source.tree)
    return built, (*whole.notes, *out_of_reach(built, whole, source.tree))
