"""The recipe of a command's -c, -o and --data: of densekit's own file, or of a PaddleClas file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from densekit import distributed
from densekit.config import Layers, Tree, assemble, merge, rename
from densekit.data.suggest import labelling_asked, own_images, suggest
from densekit.paddleclas import flags, translate
from densekit.paddleclas.infer import Infer
from densekit.paddleclas.translate import Use
from densekit.training import recipe
from densekit.training.recipe import Recipe


@dataclass(frozen=True)
class OpenedRecipe:
    """The recipe that -c, -o and --data come to."""

    recipe: Recipe
    notes: Sequence[str]
    """What a person should know of it."""
    infer: Infer = field(default_factory=Infer)
    """What a PaddleClas file asks of predict."""
    paddleclas: bool = False
    export_to: str | None = None
    """Global.save_inference_dir."""


def open_recipe(
    config: str | None,
    options: Sequence[str] = (),
    use: Use = "train",
    folder: str | None = None,
) -> OpenedRecipe:
    """Opens densekit's own file or name, or a PaddleClas file, which its sections tell apart.

    `folder` is the user's own folder of images. Without a file it decides defaults too; with one,
    it takes the place of the file's images and its number of classes, and nothing else. Options
    win over both. Raises UserError.
    """
    own: Tree = {}
    notes: list[str] = []
    if config is not None and translate.recognises(config):
        if folder is not None:
            own, notes = own_images(folder)
        found = translate.translate_file(config, options, distributed.world_size(), use)
        translate.check_device(found)
        made, renamed = assemble(Recipe, _over(found.layers, own))
        said = found.said if use == "train" else ()
        notes = [*flags.follow(os.environ), *renamed, *said, *notes]
        return OpenedRecipe(made, notes, found.infer, True, found.export_to)
    source, defaults = recipe.read_recipe(config)
    if folder is not None and config is None:
        defaults, notes = suggest(folder, options)
    elif folder is not None:
        own, notes = own_images(folder, labelling_asked(options, source.tree))
    made, renamed = assemble(Recipe, _over(Layers(defaults, source, options), own))
    return OpenedRecipe(made, [*renamed, *notes])


def _over(layers: Layers, own: Tree) -> Layers:
    """The layers with `own` in the place of what the file says."""
    source = rename(Recipe, layers.source)
    return replace(layers, source=replace(source, tree=merge(source.tree, own)))
