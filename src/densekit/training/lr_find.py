"""The learning rate range test (Smith, 2017, https://arxiv.org/abs/1506.01186).

The rate rises exponentially from step to step, on the very learner and batches that training takes;
where the loss is lowest it is nearly too high. The suggestion is a tenth of the rate at which the
smoothed loss is lowest, as fastai's `minimum` has it. No run's folder is touched, nothing is kept.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from densekit import distributed
from densekit.config import UserError
from densekit.data.loader import TrainStream
from densekit.files import write_atomically
from densekit.progress import bar
from densekit.training.fine_tuning import thaw
from densekit.training.loop import make_plan
from densekit.training.optim import set_rates, unscaled
from densekit.training.recipe import Recipe
from densekit.training.step import create_learner, train_step

RULE = "a tenth of the rate at which the smoothed loss is lowest (Smith, 2017)"
SMOOTHING = 0.9  # of the loss' moving average, from step to step
DIVERGED = 4  # times the lowest smoothed loss: the sweep ends there
TOO_HIGH = 10  # the rate at the lowest loss, as a multiple of the suggestion


@dataclass(frozen=True)
class Sweep:
    """What came of it; `rates` are the last block's."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float
    """Of optim.lr, which scale_lr may scale."""
    notes: list[str]
    """What a person should know before a run by this recipe starts."""


def sweep_rates(recipe: Recipe, lowest: float, highest: float, steps: int) -> Sweep:
    """Trains up to `steps` steps at rates from `lowest` to `highest` of the last block; other parts
    keep their share of it. All that the run's last epoch trains is trained.

    Raises UserError for what `train` would refuse, and where the loss never fell.
    """
    if not 0 < lowest < highest:
        raise UserError(f"--from {lowest:g} --to {highest:g}: expected two rates above 0 that rise")
    once = recipe.data.model_copy(update={"cache": "off"})  # few images are read twice
    plan = make_plan(recipe.model_copy(update={"data": once}))
    recipe, data = plan.recipe, plan.recipe.data
    learner = create_learner(recipe, plan.precision)
    thaw(learner, recipe, recipe.loop.epochs - 1)
    peak = learner.optimizer.param_groups[0]["peak_lr"]
    if not peak:
        raise UserError("optim.lr=0: the rates are swept as multiples of it; leave it out")
    stream = TrainStream(
        plan.train, data, seed=recipe.loop.seed, epochs=math.ceil(steps / plan.steps_per_epoch),
        accumulation=recipe.loop.accumulation, rank=distributed.rank(),
        world=distributed.world_size(), device=plan.precision.device,
        bad={}, on_bad=lambda _: None,
    )  # fmt: skip
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    shown = bar(range(steps), steps, "sweeping rates")
    for step, (batches, count) in zip(shown, stream.from_step(0), strict=False):
        rate = lowest * (highest / lowest) ** (step / max(1, steps - 1))
        set_rates(learner.optimizer, rate / peak)
        shares = [(batch.images, batch.labels) for batch in batches]
        sums = train_step(learner, shares, count, step)
        loss = float(sums[0] / sums[3])
        if not math.isfinite(loss):
            break
        rates.append(rate)
        losses.append(loss)
        smoothed.append(_smoothed(losses))
        if smoothed[-1] > DIVERGED * min(smoothed):
            break
    rate = unscaled(recipe.optim, suggested(rates, smoothed), data.batch_size)
    return Sweep(rates, losses, smoothed, rate, [*plan.warnings, *learner.notes])


def _smoothed(losses: list[float]) -> float:
    """The moving average at the last, corrected for its beginning at 0."""
    weights = [SMOOTHING**age for age in range(len(losses))]
    return sum(w * loss for w, loss in zip(weights, reversed(losses), strict=True)) / sum(weights)


def suggested(rates: list[float], smoothed: list[float]) -> float:
    """RULE. Raises UserError where the loss rose from the first step on."""
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__, default=0)
    if not lowest:
        raise UserError("the loss never fell: begin lower with --from, or take more --steps")
    return rates[lowest] / TOO_HIGH


def draw_sweep(found: Sweep, file: Path) -> None:
    """The losses over the rates, as PNG; whole or not at all."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="#8fb3d9", linewidth=0.8, label="loss")
    axes.plot(found.rates, found.smoothed, color="#d1495b", label="smoothed")
    at = suggested(found.rates, found.smoothed)
    axes.axvline(at, color="#666666", linestyle="--", label=f"suggested: {at:.2g}")
    axes.set(xscale="log", xlabel="learning rate of the last block", ylabel="training loss")
    axes.set_ylim(top=1.1 * max(found.smoothed[: max(2, len(found.smoothed) // 2)]))
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    write_atomically(file, image.getvalue())
