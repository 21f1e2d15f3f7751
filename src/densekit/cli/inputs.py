"""What a command's -c, -o and SOURCE name: densekit's own recipe, a PaddleClas file, a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from densekit import distributed
from densekit.config import Tree, UserError
from densekit.data.listing import read_class_names
from densekit.infer.model import Opened, open_path, open_recipe
from densekit.paddleclas import flags
from densekit.paddleclas import translate as paddleclas
from densekit.paddleclas.infer import Infer, named
from densekit.paddleclas.translate import Use
from densekit.training import recipe
from densekit.training.recipe import Recipe


@dataclass(frozen=True)
class Asked:
    """What -c and -o, or SOURCE, say."""

    recipe: Recipe | None
    source: str | None = None
    """Where there is no recipe."""
    notes: Sequence[str] = ()
    """What a person should know of it."""
    infer: Infer = field(default_factory=Infer)
    """What a PaddleClas file asks of predict."""
    paddleclas: bool = False

    def device(self, chosen: str) -> str:
        """`chosen`; the recipe's own where that is auto."""
        return chosen if chosen != "auto" or self.recipe is None else self.recipe.loop.device

    def open(self, classes: str | None, model: str | None) -> Opened:
        """The network, with the weights that are named. Raises UserError."""
        names = read_names(classes)
        if self.recipe is None:
            assert self.source is not None
            return open_path(self.source, model, names)
        if model is not None:
            raise UserError("--model goes with SOURCE; with -c use -o model.name=NAME")
        if self.paddleclas and not self.recipe.model.pretrained:
            best = self.recipe.output_dir / "best_model"
            raise UserError(f"no weights: add -o Global.pretrained_model=FILE, such as {best}")
        opened = open_recipe(self.recipe, names)
        return opened if names else named(opened, self.infer)


def ask(source: str | None, config: str | None, options: Sequence[str], use: Use) -> Asked:
    """Of a command that takes either. Raises UserError."""
    if (source is None) == (config is None):
        raise UserError("give either SOURCE, such as runs/quickstart/best, or -c RECIPE")
    if config is not None:
        return read_recipe(config, options, use)
    if options:
        raise UserError(f"-o {options[0]}: goes with -c RECIPE, not with SOURCE")
    return Asked(None, source)


def read_recipe(
    config: str | None, options: Sequence[str], use: Use = "train", suggested: Tree | None = None
) -> Asked:
    """Of densekit's own file or name, or of a PaddleClas file, which its sections tell.

    Raises UserError.
    """
    if config is None or not paddleclas.recognises(config):
        return Asked(recipe.load(config, options, suggested))
    found = paddleclas.load(config, options, distributed.world_size(), use)
    paddleclas.check_device(found)
    notes = [*flags.follow(os.environ), *(found.said if use == "train" else ())]
    return Asked(found.recipe, notes=notes, infer=found.infer, paddleclas=True)


def read_names(file: str | None) -> list[str] | None:
    """The names of `label name` lines. Raises UserError."""
    if file is None:
        return None
    if not Path(file).is_file():
        raise UserError(f"--classes {file}: there is no such file")
    return list(read_class_names(Path(file)).values())
