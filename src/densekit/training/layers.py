"""What a recipe is made of, before it is one: its file, the user's own images, options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from densekit.config import Layers, merge, rename
from densekit.data.multilabel import ONE_CLASS, Labelling
from densekit.data.suggest import labelling_asked, own_images, suggest
from densekit.training.recipe import Recipe, read_recipe


def recipe_layers(
    name: str | None, options: Sequence[str], folder: str | None = None
) -> tuple[Layers, list[str]]:
    """The layers of the file or shipped recipe `name`, and what a person should know of them.

    `folder` is the user's own folder of images. Without a file it decides defaults too; with one,
    it takes the place of the file's images and its number of classes, and nothing else. Options
    win over both. Raises UserError.
    """
    source, defaults = read_recipe(name)
    if folder is None:
        return Layers(defaults, source, options), []
    if name is None:
        defaults, notes = suggest(folder, options)
        return Layers(defaults, source, options), notes
    labelling = labelling_asked(options, source.tree)
    return with_own_images(Layers(defaults, source, options), folder, labelling)


def with_own_images(
    layers: Layers, folder: str, labelling: Labelling = ONE_CLASS
) -> tuple[Layers, list[str]]:
    """`layers` with the images in `folder` in the place of the file's, and a sentence on them."""
    own, notes = own_images(folder, labelling)
    source = rename(Recipe, layers.source)
    return replace(layers, source=replace(source, tree=merge(source.tree, own))), notes
