"""A PaddleClas file as a command runs it here: on this machine, in this environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch

from densekit import distributed
from densekit.config import UserError
from densekit.paddleclas import flags
from densekit.paddleclas.translate import Translated, Use, translate_file
from densekit.training.layers import with_own_images


def translate_here(
    config: str, options: Sequence[str], use: Use, folder: str | None
) -> tuple[Translated, list[str]]:
    """The file for this run's processes, with the images in `folder` in the place of its own; and
    what a person should know of it. Raises UserError.
    """
    found = translate_file(config, options, distributed.world_size(), use)
    check_device(found)
    notes = [*flags.follow(os.environ), *(found.said if use == "train" else ())]
    if folder is None:
        return found, notes
    layers, of_images = with_own_images(found.layers, folder)
    return replace(found, layers=layers), [*notes, *of_images]


def check_device(translated: Translated) -> None:
    """Raises UserError where the file says gpu and there is none: never a silent CPU run."""
    if translated.recipe.loop.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "Global.device=gpu, but torch finds no GPU here; to run on the CPU: "
            "-o Global.device=cpu",
            shared=True,
        )
