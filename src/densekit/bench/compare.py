"""`densekit bench`: what each op makes of a recipe's network and batch on this machine.

Memory comes first, of two small batches in processes of their own, so that none is tried that the
machine has no room for. Then the ops take turns, all at once where there is room, else one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from densekit import distributed, precision
from densekit import progress as display
from densekit.bench import steps as bench
from densekit.bench import rounds
from densekit.bench.rounds import Rule, Side, Spread, Turn
from densekit.config import Section, UserError, nearest
from densekit.models import variants
from densekit.ops.choose import NAMES, why_not_lean
from densekit.training.recipe import Recipe, check

OPS = tuple(name for name in NAMES if name != "auto")
SMALL = (2, 4)  # images of the batches whose memory is looked at first
ROOM = 0.9  # the share of the free memory that is taken
MOST = 1 << 16  # images; no larger batch is tried


class OpReport(Section):
    """What one op makes of it."""

    op: str
    taken: str | None = None
    """As `ops.choose` and its kernels have it: `lean (native)`."""
    images_per_second: Spread | None = None
    """Over turns; null where the batch does not fit."""
    activation_bytes: int | None = None
    """The peak at the asked batch; null where it does not fit, or the system does not tell."""
    largest_batch: int | None = None
    """0: not even one image fits."""
    found: str | None = None
    """How: `measured`, or `extrapolated from 4 and 16 images`."""
    reason: str | None = None
    """Why something is null."""


class Report(Section):
    """What `densekit bench --json` prints."""

    model: str
    image_size: int
    batch_size: int
    """Images at once: data.batch_size / loop.accumulation, in one process."""
    device: str
    precision: str
    threads: int
    steps: int
    free_bytes: int | None
    """Before anything ran; the largest batch takes at most ROOM of it."""
    auto: str
    """The op that model.op=auto takes here."""
    why: str | None
    """What keeps auto from lean."""
    ops: tuple[OpReport, ...]


@dataclass
class Tried:
    """What is known of an op so far."""

    op: str
    side: Callable[[int], Side]
    """Of so many images at once."""
    refused: str | None = None
    """Why it cannot compute the network."""
    peaks: dict[int, int] = field(default_factory=dict)
    """Bytes that its process held at most, by images."""
    largest: tuple[int, str] | None = None
    """The largest batch, and how it was found."""
    turns: list[Turn] = field(default_factory=list)
    """At the asked batch."""

    def note(self, images: int, turn: Turn) -> None:
        if turn.peak_bytes is not None:
            self.peaks[images] = max(turn.peak_bytes, self.peaks.get(images, 0))

    def bytes_of(self, images: int) -> float | None:
        """What a batch takes, on the line through the smallest and the largest that were tried."""
        if len(self.peaks) < 2:
            return None
        (n, low), *_, (m, high) = sorted(self.peaks.items())
        return low + (high - low) / (m - n) * (images - n)

    def fits(self, images: int, room: float) -> bool:
        if self.largest is not None:
            return images <= self.largest[0]
        return (self.bytes_of(images) or 0) <= room

    def extrapolate(self, room: float) -> None:
        """The largest batch on that line, of which two digits count."""
        at_none, at_one = self.bytes_of(0), self.bytes_of(1)
        if at_none is not None and at_one is not None and at_one > at_none:
            images = max(0, int((room - at_none) / (at_one - at_none)))
            digit = 10 ** max(0, len(str(images)) - 2)
            how = f"extrapolated from {min(self.peaks)} and {max(self.peaks)} images"
            self.largest = images // digit * digit, how

    def report(self, images: int) -> OpReport:
        measured = rounds.result(self.side(images), self.turns, images) if self.turns else None
        too_large = None if measured else f"no room for a batch of {images}"
        largest, found = self.largest or (None, None)
        return OpReport(
            op=self.op,
            taken=measured and measured.op,
            images_per_second=measured and measured.measured,
            activation_bytes=measured and measured.activation_bytes,
            largest_batch=largest,
            found=found,
            reason=self.refused or too_large,
        )


def as_options(model: str | None, image_size: int | None, batch_size: int | None) -> list[str]:
    """The command's short forms as `-o` has them; evaluation's resize follows the image size."""
    options = [] if model is None else [f"model.name={model}"]
    if image_size is not None:
        options += [
            f"data.image_size={image_size}",
            "data.evaluate.resize=null",
            "data.augment.crop_size=null",
        ]
    return options if batch_size is None else [*options, f"data.batch_size={batch_size}"]


def parse_ops(text: str) -> list[str]:
    """`reference,lean` -> names. Raises UserError for one that there is not."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in OPS:
            raise UserError(f'--ops {text}: there is no op "{name}"{nearest(name, OPS)}')
    if not names:
        raise UserError(f"--ops {text!r} names no op; known: {', '.join(OPS)}")
    return list(dict.fromkeys(names))


def measure(recipe: Recipe, ops: Sequence[str], steps: int) -> Report:
    """Each op on the recipe's network, image size and batch, in `steps` rounds; reads no data.

    Raises UserError for a recipe that does not fit, or that none of the ops can compute.
    """
    loop, images, side = recipe.loop, recipe.micro_batch_size, recipe.data.train_side
    formats = precision.resolve(loop.device, loop.precision, loop.memory_format)
    _check(recipe)
    why = why_not_lean(formats.device, formats.dtype)
    rule = Rule(pairs=steps, steps=1, warmup=1, threads=distributed.set_threads(loop.threads))
    free = free_bytes(formats.device)
    room = math.inf if free is None else ROOM * free
    tried = [Tried(op, partial(_side, recipe, op)) for op in ops]
    able = _look_at_memory(tried, rule)
    if formats.device.type == "cuda":
        for one in able:
            one.largest = largest_that_fits(partial(_fits, one, rule), images), "measured"
    _take_turns([one for one in able if one.fits(images, room)], images, room, rule)
    for one in able:
        if one.largest is None and free is not None:
            one.extrapolate(room)
    return Report(
        model=variants.label(recipe.model),
        image_size=side,
        batch_size=images,
        device=precision.describe(formats.device),
        precision=formats.name,
        threads=rule.threads,
        steps=steps,
        free_bytes=free,
        auto="reference" if why else "lean",
        why=why,
        ops=tuple(one.report(images) for one in tried),
    )


def _check(recipe: Recipe) -> None:
    check(recipe, world_size=1)
    pixels = variants.last_map(variants.architecture(recipe.model), recipe.data.train_side)
    if recipe.micro_batch_size == 1 and pixels == 1:
        raise UserError(
            "one image at once, of whose last map one pixel is left, for which BatchNorm has no "
            "variance; set a larger data.batch_size"
        )


def _side(recipe: Recipe, op: str, images: int) -> Side:
    model = recipe.model.model_copy(update={"op": op})
    data = recipe.data.model_copy(update={"batch_size": images})
    step = partial(bench.training_step, model, data, recipe.optim, recipe.loop)
    return Side(op, step, keeps_memory=True)


# Memory -------------------------------------------------------------------------------------


def _look_at_memory(tried: Sequence[Tried], rule: Rule) -> list[Tried]:
    """Small batches of each op; those that can compute them. Raises UserError where none can."""
    refusals = []
    looks = [(one, images) for one in tried for images in SMALL]
    for one, images in display.bar(looks, len(looks), "memory of small batches"):
        try:
            if one.refused is None:
                one.note(images, _one_step(one.side(images), rule))
        except UserError as refusal:
            one.refused = str(refusal)
            refusals.append(refusal)
    if len(refusals) == len(tried):
        raise refusals[0]
    return [one for one in tried if one.refused is None]


def _one_step(side: Side, rule: Rule) -> Turn:
    """The second step of a fresh process."""
    once = rule.model_copy(update={"pairs": 1, "steps": 1, "warmup": 0})
    ((turn,),) = rounds.alternate([side], once)
    return turn


def _fits(one: Tried, rule: Rule, images: int) -> bool:
    """By trying, which is for GPUs: a CPU would rather swap than say no."""
    try:
        one.note(images, _one_step(one.side(images), rule))
    except torch.OutOfMemoryError:
        return False
    return True


def largest_that_fits(fits: Callable[[int], bool], start: int) -> int:
    """By doubling from `start` and halving the gap, to an eighth; 0 if one image is too much."""
    low, high = 0, start
    while high <= MOST and fits(high):
        low, high = high, 2 * high
    if high > MOST:
        return low
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on the device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table, limits = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not table.exists():
        return None
    lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) << 10
    limit, used = limits / "memory.max", limits / "memory.current"  # of a container
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free


# Speed --------------------------------------------------------------------------------------


def _take_turns(tried: Sequence[Tried], images: int, room: float, rule: Rule) -> None:
    """At the asked batch: all at once where they have room together, else one by one."""
    together = sum(one.bytes_of(images) or 0 for one in tried) <= room
    groups = [list(tried)] if together else [[one] for one in tried]
    all_rounds = (
        zip(group, taken, strict=True)
        for group in groups
        for taken in rounds.alternate([one.side(images) for one in group], rule)
    )
    for taken in display.bar(all_rounds, rule.pairs * len(groups), "taking turns"):
        for one, turn in taken:
            one.note(images, turn)
            one.turns.append(turn)
