"""The network that a command opens: named by SOURCE, or by -c and -o."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from densekit.config import UserError
from densekit.infer.model import Opened, device_of, open_configured, open_path
from densekit.paddleclas.infer import Infer, with_class_names
from densekit.paddleclas.open import open_recipe
from densekit.paddleclas.translate import Use
from densekit.training.recipe import Recipe


@dataclass(frozen=True)
class Asked:
    """SOURCE, or what -c and -o say."""

    source: str | None
    recipe: Recipe | None = None
    notes: Sequence[str] = ()
    """What the user should know about it."""
    infer: Infer = field(default_factory=Infer)
    """A PaddleClas file's settings for predict."""
    paddleclas: bool = False
    export_to: str | None = None
    """A PaddleClas file's folder for export."""

    def device(self, chosen: str) -> str:
        """`chosen`; if that is auto, the recipe's device, or the one that SOURCE needs."""
        if self.source is not None:
            return device_of(self.source, chosen)
        return chosen if chosen != "auto" or self.recipe is None else self.recipe.loop.device

    def open(self, classes: str | None, model: str | None) -> Opened:
        """The network with its weights. Raises UserError."""
        if self.recipe is None:
            assert self.source is not None
            return open_path(self.source, model, classes)
        if model is not None:
            raise UserError("--model goes with SOURCE; with -c use -o model.name=NAME")
        recipe = self.recipe
        if self.paddleclas and not recipe.model.pretrained:
            best = recipe.output_dir / "best_model"
            raise UserError(f"no weights: add -o Global.pretrained_model=FILE, such as {best}")
        opened = open_configured(recipe.model, recipe.data, classes)
        return opened if classes else with_class_names(opened, self.infer)


def ask(source: str | None, config: str | None, options: Sequence[str], use: Use) -> Asked:
    """From the arguments of a command that takes either. Raises UserError."""
    if (source is None) == (config is None):
        raise UserError("give either SOURCE, such as runs/quickstart/best, or -c RECIPE")
    if config is not None:
        opened = open_recipe(config, options, use)
        return Asked(
            None, opened.recipe, opened.notes, opened.infer, opened.paddleclas, opened.export_to
        )
    if options:
        raise UserError(f"-o {options[0]}: goes with -c RECIPE, not with SOURCE")
    return Asked(source)
