"""Checks of a recipe that span its sections, or that need to know the ranks and the images."""

from __future__ import annotations

from densekit import distributed
from densekit.config import UserError
from densekit.data.loader import micro_batches, steps_per_epoch
from densekit.models.variants import architecture, last_map
from densekit.training.recipe import Recipe


def check(recipe: Recipe) -> None:
    """The checks that span sections, and of the batch for so many ranks. Raises UserError."""
    model, data, loop = recipe.model, recipe.data, recipe.loop
    world_size = distributed.world_size()
    if model.task != "multiclass" and loop.monitor == "top1":
        raise UserError(
            f"loop.monitor=top1 needs model.task=multiclass, not {model.task}; choose auroc, f1, "
            f"balanced_accuracy or loss"
        )
    if data.balance and loop.class_weights == "balanced":
        raise UserError(
            f"data.balance={data.balance:g} and loop.class_weights=balanced both make rare classes "
            f"count more, together twice; set one of them"
        )
    if model.task == "binary" and model.num_classes not in (None, 1):
        raise UserError(
            f"model.num_classes={model.num_classes}: model.task=binary has one output; leave it out"
        )
    if model.in_channels != data.channels:
        raise UserError(
            f"model.in_channels={model.in_channels} but data.channels={data.channels}; "
            f"set both to the same number"
        )
    parts = world_size * loop.accumulation
    if data.batch_size % parts:
        below, above = data.batch_size // parts * parts, -(-data.batch_size // parts) * parts
        sizes = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"data.batch_size={data.batch_size} is the batch over all ranks; it must divide by "
            f"{world_size} ranks x loop.accumulation={loop.accumulation}; nearest: {sizes}"
        )


def check_batches(recipe: Recipe, images: int) -> None:
    """Raises UserError where data.drop_last leaves no batch, and where a rank trains one image
    whose last map is one pixel: BatchNorm has no variance there.
    """
    steps_per_epoch(images, recipe.data.batch_size, recipe.data.drop_last)
    pixels = last_map(architecture(recipe.model), recipe.data.train_side)
    data = recipe.data
    counts = {min(images, data.batch_size)}
    if images % data.batch_size and not data.drop_last:
        counts.add(images % data.batch_size)
    parts = range(1 if recipe.model.sync_bn else distributed.world_size())
    alone = any(
        share.stop - share.start == 1
        for count in counts
        for rank in parts
        for share in micro_batches(
            count, data.batch_size, recipe.loop.accumulation, rank, len(parts)
        )
    )
    if alone and pixels == 1 and not recipe.optim.freeze_norm:
        raise UserError(
            f"{images} training images in batches of data.batch_size={data.batch_size} leave one "
            f"image alone, and of {data.train_side} x {data.train_side} pixels one is left at the "
            f"end, for which BatchNorm has no variance; set data.drop_last=true or another "
            f"data.batch_size"
        )
