"""How what a user writes becomes typed, frozen values: sections, YAML files, dotted overrides."""

from densekit.config.applies import OFF, ON, Other, build_effective, when
from densekit.config.build import build
from densekit.config.extras import needs_extra
from densekit.config.layers import Layers, assemble
from densekit.config.overrides import override, parse_override
from densekit.config.paths import PathText
from densekit.config.renamed import moved_keys, rename
from densekit.config.section import (
    NO_NUMBER,
    OutOfReach,
    Section,
    UserError,
    nearest,
    when_absent,
)
from densekit.config.trees import dotted, merge
from densekit.config.yaml_file import ConfigSource, PathKey, Tree, read_yaml, to_yaml

__all__ = [
    "NO_NUMBER",
    "OFF",
    "ON",
    "ConfigSource",
    "Layers",
    "Other",
    "OutOfReach",
    "PathKey",
    "PathText",
    "Section",
    "Tree",
    "UserError",
    "assemble",
    "build",
    "build_effective",
    "dotted",
    "merge",
    "moved_keys",
    "nearest",
    "needs_extra",
    "override",
    "parse_override",
    "read_yaml",
    "rename",
    "to_yaml",
    "when",
    "when_absent",
]
