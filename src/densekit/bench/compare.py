"""`densekit bench`: the speed and memory of each op in training a recipe's network here.

Memory is measured first, on two small batches in processes of their own, so that no batch is tried
for which the machine has no room. Then the ops are timed in rounds: in one series where all of
them fit into memory together, else one after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from densekit import distributed, precision, progress
from densekit.bench.rounds import (
    Candidate,
    RoundSample,
    Settings,
    Spread,
    activation_bytes,
    images_per_second,
    measure_rounds,
)
from densekit.bench.training_step import training_step
from densekit.config import Section, UserError, nearest
from densekit.models import variants
from densekit.ops.choose import OP_NAMES, why_not_lean
from densekit.training.recipe import Recipe
from densekit.training.recipe_checks import check

KNOWN_OPS = tuple(name for name in OP_NAMES if name != "auto")
SMALL_BATCHES = (2, 4)  # images
ROOM = 0.9  # the share of the free memory that a batch may take
LARGEST_TRIED = 1 << 16  # images


class OpReport(Section):
    """The measurements of one op."""

    op: str
    taken: str | None = None
    """The op that computed the dense blocks, and by which kernels: `lean (native)`."""
    images_per_second: Spread | None = None
    """Over the rounds; null where the batch does not fit."""
    activation_bytes: int | None = None
    """The peak at the recipe's batch; null where it does not fit or the system does not tell."""
    largest_batch: int | None = None
    """0: not even one image fits."""
    found: str | None = None
    """How largest_batch was found: `measured`, or `extrapolated from 4 and 16 images`."""
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
class MeasuredOp:
    """An op and what has been measured of it."""

    op: str
    candidate: Callable[[int], Candidate]
    """Of a number of images at once."""
    refusal: str | None = None
    """Why it cannot compute the network."""
    peaks: dict[int, int] = field(default_factory=dict)
    """The most bytes that its process held, by the images of the batch."""
    largest_batch: int | None = None
    how_found: str | None = None
    samples: list[RoundSample] = field(default_factory=list)
    """At the recipe's batch."""

    def add_peak(self, images: int, sample: RoundSample) -> None:
        if sample.peak_bytes is not None:
            self.peaks[images] = max(sample.peak_bytes, self.peaks.get(images, 0))

    def estimated_bytes(self, images: int) -> float | None:
        """Of a batch: on the line through the smallest and the largest one measured."""
        if len(self.peaks) < 2:
            return None
        (n, low), *_, (m, high) = sorted(self.peaks.items())
        return low + (high - low) / (m - n) * (images - n)

    def fits(self, images: int, room: float) -> bool:
        if self.largest_batch is not None:
            return images <= self.largest_batch
        return (self.estimated_bytes(images) or 0) <= room

    def extrapolate_largest_batch(self, room: float) -> None:
        """On the same line, rounded down to two digits."""
        fixed, one = self.estimated_bytes(0), self.estimated_bytes(1)
        if fixed is not None and one is not None and one > fixed:
            images = max(0, int((room - fixed) / (one - fixed)))
            digit = 10 ** max(0, len(str(images)) - 2)
            self.largest_batch = images // digit * digit
            self.how_found = f"extrapolated from {min(self.peaks)} and {max(self.peaks)} images"

    def report(self, images: int) -> OpReport:
        no_room = None if self.samples else f"no room for a batch of {images}"
        return OpReport(
            op=self.op,
            taken=self.samples[-1].op if self.samples else None,
            images_per_second=images_per_second(self.samples, images) if self.samples else None,
            activation_bytes=activation_bytes(self.samples),
            largest_batch=self.largest_batch,
            found=self.how_found,
            reason=self.refusal or no_room,
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
    """`reference,lean` -> names. Raises UserError for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in KNOWN_OPS:
            raise UserError(f'--ops {text}: there is no op "{name}"{nearest(name, KNOWN_OPS)}')
    if not names:
        raise UserError(f"--ops {text!r} names no op; known: {', '.join(KNOWN_OPS)}")
    return list(dict.fromkeys(names))


def measure(recipe: Recipe, ops: Sequence[str], rounds: int) -> Report:
    """Measures each op on the recipe's network, image size and batch; reads no data.

    Raises UserError for a recipe that does not fit, or that none of the ops can compute.
    """
    loop, images = recipe.loop, recipe.micro_batch_size
    formats = precision.resolve(loop.device, loop.precision, loop.memory_format)
    _check(recipe)
    why = why_not_lean(formats.device, formats.dtype)
    threads = distributed.set_threads(loop.threads)
    settings = Settings(rounds=rounds, steps=1, warmup=1, threads=threads)
    free = free_bytes(formats.device)
    room = math.inf if free is None else ROOM * free
    measured = [MeasuredOp(op, partial(_candidate, recipe, op)) for op in ops]
    able = _measure_small_batches(measured, settings)
    if formats.device.type == "cuda":
        for each in able:
            each.largest_batch = largest_that_fits(partial(_fits, each, settings), images)
            each.how_found = "measured"
    _measure_speed([each for each in able if each.fits(images, room)], images, room, settings)
    for each in able:
        if each.largest_batch is None and free is not None:
            each.extrapolate_largest_batch(room)
    return Report(
        model=variants.label(recipe.model),
        image_size=recipe.data.train_side,
        batch_size=images,
        device=precision.describe_device(formats.device),
        precision=formats.name,
        threads=threads,
        steps=rounds,
        free_bytes=free,
        auto="reference" if why else "lean",
        why=why,
        ops=tuple(each.report(images) for each in measured),
    )


def _check(recipe: Recipe) -> None:
    check(recipe)
    pixels = variants.last_map(variants.architecture(recipe.model), recipe.data.train_side)
    if recipe.micro_batch_size == 1 and pixels == 1:
        raise UserError(
            "BatchNorm has no variance of a batch of one image whose last feature map is a single "
            "pixel; set a larger data.batch_size or data.image_size"
        )


def _candidate(recipe: Recipe, op: str, images: int) -> Candidate:
    updates = {
        "model": recipe.model.model_copy(update={"op": op}),
        "data": recipe.data.model_copy(update={"batch_size": images}),
    }
    step = partial(training_step, recipe.model_copy(update=updates))
    return Candidate(op, step, keep_freed_memory=True)


# Memory -------------------------------------------------------------------------------------


def _measure_small_batches(ops: Sequence[MeasuredOp], settings: Settings) -> list[MeasuredOp]:
    """The ops that can compute the network. Raises UserError where none can."""
    refusals = []
    batches = [(each, images) for each in ops for images in SMALL_BATCHES]
    for each, images in progress.bar(batches, len(batches), "memory of small batches"):
        try:
            if each.refusal is None:
                each.add_peak(images, _second_step(each.candidate(images), settings))
        except UserError as refusal:
            each.refusal = str(refusal)
            refusals.append(refusal)
    if len(refusals) == len(ops):
        raise refusals[0]
    return [each for each in ops if each.refusal is None]


def _second_step(candidate: Candidate, settings: Settings) -> RoundSample:
    """The second step of a fresh process."""
    once = settings.model_copy(update={"rounds": 1, "steps": 1, "warmup": 0})
    ((sample,),) = measure_rounds([candidate], once)
    return sample


def _fits(op: MeasuredOp, settings: Settings, images: int) -> bool:
    """By trying, on GPUs only: a CPU would swap rather than refuse."""
    try:
        op.add_peak(images, _second_step(op.candidate(images), settings))
    except torch.OutOfMemoryError:
        return False
    return True


def largest_that_fits(fits: Callable[[int], bool], start: int) -> int:
    """By doubling from `start` and halving the gap, to an eighth; 0 if one image does not fit."""
    low, high = 0, start
    while high <= LARGEST_TRIED and fits(high):
        low, high = high, 2 * high
    if high > LARGEST_TRIED:
        return low
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on the device; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return distributed.free_memory()


# Speed --------------------------------------------------------------------------------------


def _measure_speed(ops: Sequence[MeasuredOp], images: int, room: float, settings: Settings) -> None:
    """At the recipe's batch: in one series where all fit into memory together, else in turn."""
    together = sum(each.estimated_bytes(images) or 0 for each in ops) <= room
    groups = [list(ops)] if together else [[each] for each in ops]
    rounds = (
        zip(group, samples, strict=True)
        for group in groups
        for samples in measure_rounds([each.candidate(images) for each in group], settings)
    )
    for samples in progress.bar(rounds, settings.rounds * len(groups), "measuring speed"):
        for each, sample in samples:
            each.add_peak(images, sample)
            each.samples.append(sample)
