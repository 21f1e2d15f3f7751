"""A recipe from what -c and -o say: densekit's own file or name, or a PaddleClas file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from densekit import distributed
from densekit.config import ConfigSource, build, merge
from densekit.data.suggest import own_images, suggest
from densekit.paddleclas import flags, translate
from densekit.paddleclas.infer import Infer
from densekit.paddleclas.translate import Use
from densekit.training import recipe
from densekit.training.recipe import Recipe


@dataclass(frozen=True)
class OpenedRecipe:
    """What -c and -o say."""

    recipe: Recipe
    notes: Sequence[str] = ()
    """What a person should know of it."""
    infer: Infer = field(default_factory=Infer)
    """What a PaddleClas file asks of predict."""
    paddleclas: bool = False


def open_recipe(
    config: str | None,
    options: Sequence[str] = (),
    use: Use = "train",
    folder: str | None = None,
) -> OpenedRecipe:
    """densekit's own file or name, or a PaddleClas file, which its sections tell apart.

    `folder` is the user's own folder of images. Without a file it decides defaults too; with one,
    it takes the place of the file's images and its number of classes, and nothing else. Options
    win over both. Raises UserError.
    """
    suggested, own = None, None
    notes: list[str] = []
    if folder is not None and config is None:
        suggested, notes = suggest(folder, options)
    elif folder is not None:
        own, notes = own_images(folder)
    if config is None or not translate.recognises(config):
        made, renamed = recipe.load_with_notes(config, options, suggested, own)
        return OpenedRecipe(made, [*renamed, *notes])
    found = translate.load(config, options, distributed.world_size(), use)
    translate.check_device(found)
    said = found.said if use == "train" else ()
    notes = [*flags.follow(os.environ), *found.renamed, *said, *notes]
    theirs = found.recipe
    if own is not None:
        theirs = build(Recipe, ConfigSource(merge(theirs.model_dump(), own)))
    return OpenedRecipe(theirs, notes, found.infer, paddleclas=True)
