"""What every `auto` of a recipe comes to on this machine and for these images."""

from __future__ import annotations

import numpy as np

from densekit import distributed
from densekit.data.groups import group_notes
from densekit.data.listing import Examples
from densekit.data.loader import resolve_reading
from densekit.ops.choose import op_of_run
from densekit.precision import Precision
from densekit.training.fine_tuning import fine_tuning_plan
from densekit.training.graph import resolve_graph
from densekit.training.loss import imbalance_notes
from densekit.training.monitor import for_images
from densekit.training.optim import scaling_notes
from densekit.training.recipe import Recipe
from densekit.training.recipe_checks import check_batches


def resolve_recipe(
    recipe: Recipe, formats: Precision, train: Examples, val: Examples, counts: np.ndarray
) -> tuple[Recipe, list[str]]:
    """`recipe` with every `auto` and every null that the data or the machine decides filled in;
    and what a person should know of it. Alike on all ranks.

    `counts`, [K], are the training images of each class. Raises UserError for batches and options
    that do not fit them.
    """
    model, data, loop = recipe.model, recipe.data, recipe.loop
    device = formats.device
    op, no_lean = distributed.from_main(lambda: op_of_run(model.op, device, formats.dtype))
    graph, no_graph = resolve_graph(recipe, device)
    reading, of_cache = resolve_reading(data, train, val, device.type, loop.epochs)
    of_loop = {
        "device": device.type,
        "precision": formats.name,
        "memory_format": formats.memory_format_name,
        "cuda_graph": graph,
        **for_images(loop, model.task, train, counts),
    }
    resolved = recipe.model_copy(
        update={
            "model": model.model_copy(update={"num_classes": len(counts), "op": op}),
            "data": reading,
            "loop": loop.model_copy(update=of_loop),
        }
    )
    check_batches(resolved, len(train))
    notes = [
        *group_notes(train, val, data.group),
        *scaling_notes(recipe.optim, data.batch_size),
        *fine_tuning_plan(resolved),
        *imbalance_notes(resolved, train),
    ]
    return resolved, [*no_lean, *no_graph, *of_cache, *notes]
