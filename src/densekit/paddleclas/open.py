"""What -c, -o and --data say, of densekit's own file or name, or of a PaddleClas file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from densekit import distributed
from densekit.config import Layers, Tree, merge, rename
from densekit.data.suggest import own_images, suggest
from densekit.paddleclas import flags, translate
from densekit.paddleclas.infer import Infer
from densekit.paddleclas.translate import Use
from densekit.training import recipe
from densekit.training.recipe import Recipe


@dataclass(frozen=True)
class Written:
    """What the user wrote, of which a recipe is assembled."""

    layers: Layers
    notes: Sequence[str] = ()
    """What a person should know of it."""
    infer: Infer = field(default_factory=Infer)
    """What a PaddleClas file asks of predict."""
    paddleclas: bool = False


def read_config(
    config: str | None,
    options: Sequence[str] = (),
    use: Use = "train",
    folder: str | None = None,
) -> Written:
    """Reads densekit's own file or name, or a PaddleClas file, which its sections tell apart.

    `folder` is the user's own folder of images. Without a file it decides defaults too; with one,
    it takes the place of the file's images and its number of classes, and nothing else. Options
    win over both. Raises UserError.
    """
    if folder is not None and config is None:
        defaults, notes = suggest(folder, options)
        return Written(Layers(defaults, options=options), notes)
    own, notes = own_images(folder) if folder is not None else ({}, [])
    if config is None or not translate.recognises(config):
        source, name = recipe.read_recipe(config)
        return Written(_over(Layers(name, source, options), own), notes)
    found = translate.translate_file(config, options, distributed.world_size(), use)
    translate.check_device(found)
    notes = [*flags.follow(os.environ), *(found.said if use == "train" else ()), *notes]
    return Written(_over(found.layers, own), notes, found.infer, paddleclas=True)


def _over(layers: Layers, own: Tree) -> Layers:
    """The layers with `own` in the place of what the file says."""
    source = rename(Recipe, layers.source)
    return replace(layers, source=replace(source, tree=merge(source.tree, own)))
