"""Fine-tuning: which parts of the network are trained from which epoch on.

A part is the stem, a dense block with what follows it up to the next block, or the head. What is
not trained yet keeps its weights, and stays in evaluation mode, so BatchNorm keeps its running
statistics. All of it is a function of the epoch: no state holds it, and a resume changes nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable

from torch.nn.parallel import DistributedDataParallel

from densekit.config import UserError, nearest
from densekit.models.densenet import DenseNet
from densekit.models.parts import HEAD_PART, part_of, part_rates, stage_names
from densekit.models.variants import architecture
from densekit.training.graph import forward_of
from densekit.training.optim import OptimConfig, peak_rates
from densekit.training.recipe import Recipe
from densekit.training.step import Learner


def thaw(learner: Learner, recipe: Recipe, epoch: int) -> None:
    """Sets which parts the steps of `epoch`, from 0, train.

    DDP reduces what asked for gradients when it was made, so it is made anew where that changes;
    alike in a run that goes on, so its sums are, too.
    """
    model = learner.model
    assert isinstance(model, DenseNet)
    stage = frozen_to(recipe.optim, model.stages(), epoch)
    if stage == model.frozen_to:
        return
    model.unfreeze()
    model.freeze(stage, recipe.optim.freeze_norm)
    if isinstance(learner.forward, DistributedDataParallel):
        learner.forward = model
        gc.collect()  # the old one's hooks on the parameters go with it
        learner.forward = forward_of(model, learner.prepare, recipe, learner.precision)


def frozen_to(optim: OptimConfig, stages: Iterable[str], epoch: int) -> str | None:
    """The last of `stages` that `epoch`, from 0, does not train; None: it trains all of them."""
    stages = list(stages)
    never = stages.index(optim.freeze) if optim.freeze else -1
    blocks = sum(stage.startswith("block") for stage in stages)
    frozen = [
        index
        for index, stage in enumerate(stages)
        if index <= never or epoch < joins_at(optim, part_of(stage, blocks), blocks)
    ]
    return stages[frozen[-1]] if frozen else None


def joins_at(optim: OptimConfig, part: int, blocks: int) -> int:
    """The epoch, from 0, whose first step trains a part for the first time: the blocks join from
    the last one to the stem, which is part 0."""
    if part == HEAD_PART:
        return 0
    return optim.head_epochs + optim.unfreeze_epochs * (blocks - part)


def fine_tuning_plan(recipe: Recipe) -> list[str]:
    """A sentence on what is trained from when at what rate; nothing where all is trained alike.

    Raises UserError for an unknown stage.
    """
    optim = recipe.optim
    if not optim.fine_tunes:
        return []
    blocks = len(architecture(recipe.model).block_config)
    stages = stage_names(blocks)
    if optim.freeze and optim.freeze not in stages:
        said = f'optim.freeze: unknown stage "{optim.freeze}"{nearest(optim.freeze, stages)}'
        raise UserError(said)
    joined: dict[int, list[str]] = {}
    peak, of_head = peak_rates(optim, recipe.data.batch_size)
    for part, rate in part_rates(blocks, peak, of_head, optim.layer_decay).items():
        within = [stage for stage in stages if part_of(stage, blocks) == part]
        trained = within if not optim.freeze else [
            stage for stage in within if stages.index(stage) > stages.index(optim.freeze)
        ]  # fmt: skip
        name = "the classifier" if part == HEAD_PART else " and ".join(trained)
        if name:
            joined.setdefault(joins_at(optim, part, blocks), []).append(f"{name} at {rate:.4g}")
    texts = [f"from epoch {epoch + 1} {', '.join(names)}" for epoch, names in joined.items()]
    never = f"; never anything up to {optim.freeze}" if optim.freeze else ""
    norms = "; BatchNorm keeps the statistics of the weights that it began with"
    kept = norms if optim.freeze_norm else ""
    return [
        f"fine-tuning, peak rates: {'; '.join(texts)}{never}{kept}",
        *_notes_on_random(recipe),
    ]


def _notes_on_random(recipe: Recipe) -> list[str]:
    """Of what is never trained and comes from nowhere."""
    if not recipe.optim.freeze or recipe.model.pretrained:
        return []
    return [
        f"optim.freeze={recipe.optim.freeze} without model.pretrained: what is never trained stays "
        f"as random as it begins"
    ]
