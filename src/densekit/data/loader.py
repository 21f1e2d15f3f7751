"""Batches: this rank's share of each training step and of each evaluation batch.

An epoch's order depends on seed and epoch alone, and a step's images on that order and the step.
So neither the number of workers nor a resume changes what a step sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from densekit import distributed
from densekit.config import UserError
from densekit.data.augment import train_transform
from densekit.data.cache_rule import choose_cache
from densekit.data.config import MAX_PIXELS, DataConfig
from densekit.data.dataset import BadImage, Batch, ImageDataset, Key
from densekit.data.decode import UnreadableImage
from densekit.data.decode_on_gpu import Decoder, EncodedDataset, check_decoding, leave_encoded
from densekit.data.decoded import DecodedImages, decoded_images
from densekit.data.listing import Examples
from densekit.data.shards.ahead import ReadingPlan, fetching_ahead
from densekit.data.shards.order import reading_order, resolve_window
from densekit.data.transforms import Preprocessing
from densekit.data.workers import read_batches

CPU = torch.device("cpu")
__all__ = ["Batch", "Step", "TrainStream", "eval_batches", "micro_batches", "resolve_workers"]


class Step(NamedTuple):
    """One rank's images of one optimizer step."""

    batches: list[Batch]
    """This rank's share of each micro-batch."""
    images: int
    """How many images the step has on all ranks together."""


def micro_batches(
    count: int, batch_size: int, accumulation: int = 1, rank: int = 0, world: int = 1
) -> list[slice]:
    """This rank's share of each micro-batch of a step's `count` images.

    The step is cut into micro-batches of batch_size / accumulation images; a short step has fewer
    of them, and its last one may be smaller. Each micro-batch is split over the ranks as
    np.array_split does, so the micro-batches are the same for any number of ranks.
    Rank 0 gets at least one image of each; other ranks may get none.
    """
    size = batch_size // accumulation
    assert 0 < count <= batch_size == size * accumulation
    slices = []
    for start in range(0, count, size):
        images = min(size, count - start)
        share, more = divmod(images, world)
        first = start + rank * share + min(rank, more)
        slices.append(slice(first, first + share + (rank < more)))
    return slices


def steps_per_epoch(n: int, batch_size: int, drop_last: bool) -> int:
    """Optimizer steps for n images. Raises UserError if drop_last leaves none."""
    if drop_last and n < batch_size:
        raise UserError(
            f"data.drop_last=true leaves nothing to train on: {n} images are fewer than "
            f"data.batch_size={batch_size}; lower data.batch_size"
        )
    return n // batch_size if drop_last else -(-n // batch_size)


class TrainStream:
    """One rank's training batches over a whole run; seed and position decide every step.

    `config.workers` must be a number (`auto` resolved). Workers start once, at the first step.

    With data.on_bad_image=skip, an unreadable image is dropped from its micro-batch and from
    the step's count. All ranks agree on that at every step, so neither workers nor a resume change
    what is dropped. If a rank would be left with a single image of its share, the whole micro-batch
    is dropped, since BatchNorm needs two. `bad` maps a position in the examples to the
    reason; it starts with the images known to be bad and grows as more are found.

    If `device` is a GPU, images are in pinned memory; under data.decode=gpu they are on it.
    """

    def __init__(
        self,
        examples: Examples,
        config: DataConfig,
        *,
        seed: int,
        epochs: int,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        device: torch.device = CPU,
        bad: dict[int, str] | None = None,
        on_bad: Callable[[list[BadImage]], None] = lambda _: None,
    ) -> None:
        self.bad, self.on_bad = {} if bad is None else bad, on_bad
        self.examples, self.config, self.seed = examples, config, seed
        self.accumulation, self.rank, self.world = accumulation, rank, world
        self.device = device
        self.steps_per_epoch = steps_per_epoch(len(examples), config.batch_size, config.drop_last)
        self.steps = epochs * self.steps_per_epoch

    def __iter__(self) -> Iterator[Step]:
        return self.from_step(0)

    def from_step(self, start: int) -> Iterator[Step]:
        """The steps of the run from `start` (counted from 0) to the last. Raises UserError."""
        config = self.config
        assert isinstance(config.workers, int)
        skip = config.on_bad_image == "skip"
        largest = -(-config.batch_size // (self.accumulation * self.world))
        order = partial(reading_order, self.examples, config, self.seed)
        plan = ReadingPlan(order, config.batch_size, self.steps_per_epoch, start, self.steps)
        try:
            transform, by_device = train_transform(config), config.decode == "gpu"
            dataset = (EncodedDataset if by_device else ImageDataset)(
                self.examples,
                partial(leave_encoded, transform) if by_device else transform,
                config.channels,
                config.train_side,
                self.seed,
                config.max_pixels,
                skip_bad=skip,
                intensity=config.scaling,
                decoded=decoded_images(self.examples, config, skip),
            )
            keys, pinned = self._keys(start), self.device.type == "cuda"
            batches = read_batches(dataset, keys, largest, config.workers, pinned)
            if by_device:
                batches = map(Decoder(self.examples, config, transform, self.device, skip), batches)
            with fetching_ahead(self.examples, plan) as have_read:
                for step in range(start, self.steps):
                    whole = Step([next(batches) for _ in self._shares(step)], self.images(step))
                    have_read(step)
                    yield self._without_bad(whole) if skip else whole
        except UnreadableImage as error:
            raise UserError(
                f"{error}; replace it with an intact file and resume, or leave such "
                f"images out with -o data.on_bad_image=skip",
                shared=error.shared,
            ) from error

    def _without_bad(self, step: Step) -> Step:
        """The step without the unreadable images of all ranks.

        Raises UserError if the run has found more of them than data.max_bad_images.
        """
        mine = [(len(batch.labels), batch.bad) for batch in step.batches]
        ranks = distributed.broadcast_object(distributed.gather_objects(mine))
        assert ranks is not None
        found = [image for shares in ranks for _, bad in shares for image in bad]
        if not found:
            return step
        new = [image for image in found if image.position not in self.bad]
        self.bad.update(new)
        if new:
            self.on_bad(new)
        if len(self.bad) > self.config.max_bad_images:
            raise UserError(
                f"{len(self.bad)} images cannot be read, more than "
                f"data.max_bad_images={self.config.max_bad_images}; the last of them:\n"
                f"{found[-1].reason}\nreplace them with intact files, or raise the limit",
                shared=True,
            )
        micro = list(zip(*ranks, strict=True))
        kept = [
            m
            for m, shares in enumerate(micro)
            if all(left >= min(2, left + len(bad)) for left, bad in shares)
        ]
        images = sum(left for m in kept for left, _ in micro[m])
        return Step([step.batches[m] for m in kept], images)

    def images(self, step: int) -> int:
        """Images of a step on all ranks: the batch size, or the rest at the end of an epoch."""
        done = step % self.steps_per_epoch * self.config.batch_size
        return min(self.config.batch_size, len(self.examples) - done)

    def _shares(self, step: int) -> list[slice]:
        return micro_batches(
            self.images(step), self.config.batch_size, self.accumulation, self.rank, self.world
        )

    def _order(self, epoch: int) -> np.ndarray:
        return reading_order(self.examples, self.config, self.seed, epoch)

    def _keys(self, start: int) -> Iterator[list[Key]]:
        """The (epoch, index) of each image, one list per share of each step from `start` on."""
        for step in range(start, self.steps):
            epoch, in_epoch = divmod(step, self.steps_per_epoch)
            if step == start or in_epoch == 0:
                order = self._order(epoch)
            images = order[in_epoch * self.config.batch_size :]
            for share in self._shares(step):
                yield [(epoch, index) for index in images[share].tolist()]


def eval_batches(
    examples: Examples,
    preprocessing: Preprocessing,
    batch_size: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
    max_pixels: int = MAX_PIXELS,
    decoded: DecodedImages | None = None,
) -> Iterator[tuple[int, Batch]]:
    """This rank's batches and their numbers, in order: every b with b mod world == rank.

    `decoded`: the run's cache of decoded images, if it has one. Raises UnreadableImage.
    """
    n = len(examples)
    whole = -(-n // batch_size)
    numbers = range(rank, whole, world)
    keys = ([(0, i) for i in range(b * batch_size, min((b + 1) * batch_size, n))] for b in numbers)
    dataset = ImageDataset(
        examples,
        preprocessing.square,
        preprocessing.channels,
        preprocessing.crop,
        max_pixels=max_pixels,
        intensity=preprocessing.scaling,
        decoded=decoded,
    )
    read = read_batches(dataset, keys, batch_size, min(workers, len(numbers)), pin_memory)
    plan = ReadingPlan(partial(_in_order, n), batch_size, whole, 0, whole)
    with fetching_ahead(examples, plan) as have_read:
        for number, batch in zip(numbers, read, strict=True):
            have_read(number)
            yield number, batch


def _in_order(n: int, epoch: int) -> np.ndarray:
    return np.arange(n)


def resolve_reading(
    config: DataConfig, train: Examples, val: Examples, device_type: str, epochs: int
) -> tuple[DataConfig, tuple[str, ...]]:
    """`config` with each `auto` resolved, and notes; same on every rank. Raises UserError."""
    distributed.on_every_rank(lambda: check_decoding(config, device_type))
    window = resolve_window(config.shuffle_window, train)
    place, notes = distributed.from_main(lambda: choose_cache(config, (train, val), epochs))
    copies = place != "off" and train_transform(config).only_copies is not None
    ranks = distributed.local_world_size()
    workers = resolve_workers(config.workers, device_type, ranks, copies)
    return config.resolved(workers, window, place), notes


def resolve_workers(
    workers: int | str, device_type: str, local_world: int = 1, copies: bool = False
) -> int:
    """A number is returned unchanged; `auto` follows this table (cores per local rank; copies:
    training only copies pixels of decoded images that are kept):

    =============  ========================================================================
    GPU            one worker per core, at most 8: the step itself needs one core
    CPU, copies    0: 30 microseconds an image cost the step less than a process on its cores does
    CPU, 1 core    0
    CPU, 2 or more one per 8 cores, at least 1: a step takes milliseconds per image on all cores,
                   and reading the image takes about as long on one
    =============  ========================================================================
    """
    if isinstance(workers, int):
        return workers
    cores = max(1, distributed.cores() // local_world)
    if device_type == "cpu":
        return 0 if copies or cores == 1 else max(1, min(cores // 8, 8))
    return min(cores, 8)
