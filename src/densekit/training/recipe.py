"""A recipe: model + data + optim + loop, one YAML file, and the checks that span sections."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from densekit.config import (
    ConfigSource,
    Section,
    Tree,
    UserError,
    build_effective,
    merge,
    nearest,
    override,
    rename,
)
from densekit.config import read_yaml as read_yaml_file
from densekit.data.config import DataConfig
from densekit.models.variants import ModelConfig
from densekit.training.optim import OptimConfig
from densekit.training.step import LoopConfig


class Recipe(Section):
    """All that decides what a training run computes."""

    name: str = "run"
    """The run's folder is runs/<name> unless loop.output_dir says otherwise."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    loop: LoopConfig = LoopConfig()

    @property
    def output_dir(self) -> Path:
        return Path(self.loop.output_dir or f"runs/{self.name}")

    @property
    def micro_batch_size(self) -> int:
        """Images of a micro-batch over all ranks."""
        return self.data.batch_size // self.loop.accumulation


def shipped() -> dict[str, Path]:
    """The recipes in the package, by name: `quickstart`, `imagenet/densenet121`, ..."""
    folder = Path(str(resources.files("densekit") / "recipes"))
    files = sorted(folder.rglob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def find(name: str) -> Path:
    """The file of a shipped recipe's name, or the file itself."""
    if name in shipped():
        return shipped()[name]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or path.exists():
        raise UserError(f"-c {name}: there is no such file")
    raise UserError(f"-c {name}: no shipped recipe has this name{nearest(name, shipped())}")


def load(
    name: str | None = None, options: Iterable[str] = (), suggested: Tree | None = None
) -> Recipe:
    """Defaults, then `suggested`, then the file or shipped recipe `name`, then `-o` options.

    Raises UserError that names file:line or the option as typed for every mistake.
    """
    return load_with_notes(name, options, suggested)[0]


def load_with_notes(
    name: str | None = None, options: Iterable[str] = (), suggested: Tree | None = None
) -> tuple[Recipe, tuple[str, ...]]:
    """The same, and what the user should know of it, such as options given by an old name."""
    path = find(name) if name else None
    source = read_yaml_file(path) if path else ConfigSource({})
    return assemble(source, options, suggested or ({"name": path.stem} if path else {}))


def assemble(
    source: ConfigSource, options: Iterable[str] = (), suggested: Tree | None = None
) -> tuple[Recipe, tuple[str, ...]]:
    """Defaults, then `suggested`, then `source`, then `-o` options; and notes. Raises UserError."""
    source = rename(Recipe, source)
    tree = merge(merge(Recipe().model_dump(), suggested or {}), source.tree)
    whole = override(replace(source, tree=tree), options, Recipe)
    return build_effective(Recipe, whole, source.tree), whole.notes


def check(recipe: Recipe, world_size: int) -> None:
    """The checks that span sections. Raises UserError."""
    model, data, loop = recipe.model, recipe.data, recipe.loop
    if model.in_channels != data.channels:
        raise UserError(
            f"model.in_channels={model.in_channels} but data.channels={data.channels}; "
            f"set both alike"
        )
    parts = world_size * loop.accumulation
    if data.batch_size % parts:
        below, above = data.batch_size // parts * parts, -(-data.batch_size // parts) * parts
        sizes = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"data.batch_size={data.batch_size} is the batch over all ranks; it must divide by "
            f"{world_size} ranks x loop.accumulation={loop.accumulation}; nearest: {sizes}"
        )


def differences(one: Section, other: Section, prefix: str = "") -> list[str]:
    """Keys whose values differ, as `a.b: 1 -> 2`; fields that change no number are passed over."""
    found: list[str] = []
    for key, field in type(one).model_fields.items():
        extra: Any = field.json_schema_extra or {}
        if extra.get("changes_no_number"):
            continue
        a, b = getattr(one, key), getattr(other, key)
        if isinstance(a, Section) and isinstance(b, Section):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a} -> {b}")
    return found
