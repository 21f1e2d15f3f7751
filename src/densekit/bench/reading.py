"""`densekit data bench`: how fast a machine reads someone's own images, and torchvision there.

Whole loaders are measured in rounds (`rounds`), each in a process of its own with its workers.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.io import decode_image
from torchvision.transforms import InterpolationMode, v2

from densekit import distributed
from densekit.bench.rounds import (
    Candidate,
    RoundSample,
    Settings,
    Spread,
    StepFunction,
    images_per_second,
    measure_rounds,
)
from densekit.bench.stages import StageTime, measure_stages
from densekit.config import Section
from densekit.data import jpeg
from densekit.data.augment import affine, colours
from densekit.data.config import DataConfig
from densekit.data.decode import MODES
from densekit.data.listing import Content, Examples
from densekit.data.loader import TrainStream
from densekit.data.shards.examples import ShardedExamples
from densekit.data.transforms import Preprocessing
from densekit.progress import bar

BATCHES = 8  # in a step: a loader's batches come in bursts
BATCH_READ = 16
ENDLESS = 10**6  # epochs, more than are read
Decode = Callable[[Any, str], Image.Image | Tensor]
"""A file's path, or of an image in a shard its bytes as a file; in PIL's mode L or RGB."""


class LoaderSpeed(Section):
    """Files to normalised batches, in training."""

    name: str
    workers: int
    images_per_second: Spread
    """Over rounds."""
    speedup: Spread | None
    """How many times as fast densekit with one worker is, round by round; None for densekit."""


class InputReport(Section):
    """What `densekit data bench` measured."""

    images: int
    side: int
    """Of the squares, in pixels."""
    cores: int
    stages: tuple[StageTime, ...]
    loaders: tuple[LoaderSpeed, ...]
    images_per_second_and_core: float
    """densekit's, with a worker on every core."""
    speedup_vs_pil: float | None
    """Medians over rounds, of one worker each; None where torchvision cannot read such images."""
    speedup_vs_tvio: float | None
    rate: float | None
    """Images a second that were asked for."""
    cores_for_rate: int | None
    notes: tuple[str, ...]


class Entrant(NamedTuple):
    """A loader that is measured."""

    candidate: Candidate
    workers: int
    is_peer: bool


def measure_reading(
    train: Examples, config: DataConfig, images: int, rounds: int, rate: float | None = None
) -> InputReport:
    """Of `images` training images, spread over all; of shards from elsewhere, those that lie in
    the first. Raises UserError."""
    some = train.subset(_chosen(train, images))
    stages = measure_stages(some, config, BATCH_READ)
    cores = distributed.cores()
    loaders = _measure(_entrants(some, config, cores), rounds)
    speedups = [each.speedup.median for each in loaders if each.speedup is not None]
    pil, tvio = speedups if speedups else (None, None)
    widest = max((each for each in loaders if each.speedup is None), key=lambda each: each.workers)
    per_core = widest.images_per_second.median / widest.workers
    return InputReport(
        images=len(some),
        side=config.train_side,
        cores=cores,
        stages=stages,
        loaders=loaders,
        images_per_second_and_core=per_core,
        speedup_vs_pil=pil,
        speedup_vs_tvio=tvio,
        rate=rate,
        cores_for_rate=None if rate is None else math.ceil(rate / per_core),
        notes=tuple(_notes(some, config)),
    )


def _chosen(train: Examples, images: int) -> np.ndarray:
    if isinstance(train, ShardedExamples) and train.place.is_remote:
        return train.as_stored()[:images]
    return np.unique(np.linspace(0, len(train) - 1, min(images, len(train))).astype(int))


def _entrants(some: Examples, config: DataConfig, cores: int) -> list[Entrant]:
    """densekit with one worker first, then with one for each core, then torchvision."""
    found = []
    for workers in sorted({1, cores}):
        step = partial(densekit_loader, some, config, workers)
        ours = Candidate("densekit", step, keep_freed_memory=True)  # as `densekit train` does
        found.append(Entrant(ours, workers, is_peer=False))
    if why_no_peers(config) is None:
        for name, decode in DECODERS.items():
            step = partial(torchvision_loader, some, config, decode)
            found.append(Entrant(Candidate(f"torchvision v2, {name}", step), 1, is_peer=True))
    return found


def _measure(entrants: Sequence[Entrant], rounds: int) -> tuple[LoaderSpeed, ...]:
    settings = Settings(rounds=rounds, steps=3, threads=1)
    measured = measure_rounds([each.candidate for each in entrants], settings)
    samples = list(zip(*bar(measured, rounds, "loading"), strict=True))
    return tuple(
        LoaderSpeed(
            name=each.candidate.name,
            workers=each.workers,
            images_per_second=images_per_second(own, BATCHES * BATCH_READ),
            speedup=_speedup(samples[0], own) if each.is_peer else None,
        )
        for each, own in zip(entrants, samples, strict=True)
    )


def _speedup(ours: Sequence[RoundSample], theirs: Sequence[RoundSample]) -> Spread:
    pairs = zip(ours, theirs, strict=True)
    return Spread.of([their.step_seconds / our.step_seconds for our, their in pairs])


def _notes(some: Examples, config: DataConfig) -> Iterator[str]:
    if why := why_no_peers(config):
        yield f"not compared with torchvision, which {why}"
    if why := jpeg.why_no_reader():
        yield f"JPEG files are decoded by Pillow, whole: {why}"


# The loaders --------------------------------------------------------------------------------


def densekit_loader(
    examples: Examples, config: DataConfig, workers: int, batch_size: int = BATCH_READ
) -> StepFunction:
    """`densekit train`'s next batches, normalised: into memory that is taken once, as a GPU's
    allocator has it, since glibc's makes the process grow by a batch each time."""
    size = min(batch_size, len(examples))
    files = {"cache": "off", "workers": workers}  # a cache reads no files after the first epoch
    own = config.model_copy(update={**files, "batch_size": size, "drop_last": True})
    normalize = Preprocessing.from_config(own).normalize
    stream = TrainStream(examples, own, seed=0, epochs=ENDLESS)
    floats = torch.empty(size, own.channels, own.train_side, own.train_side)
    return last_of(normalize(batch.images, out=floats) for step in stream for batch in step.batches)


def torchvision_loader(
    examples: Examples,
    config: DataConfig,
    decode: Decode,
    workers: int = 1,
    batch_size: int = BATCH_READ,
) -> StepFunction:
    """The same by torch's loader and torchvision's transforms v2, as its references write it."""
    images = _ListedImages(examples, decode, config)
    size = min(batch_size, len(examples))
    sampler = RandomSampler(images, replacement=True, num_samples=ENDLESS * size)
    return last_of(DataLoader(images, size, sampler=sampler, num_workers=workers))


def last_of(batches: Iterable[object]) -> StepFunction:
    """A step takes the next BATCHES and lets go of all but the last, as training does."""
    endless = iter(batches)

    def step() -> object:
        for _ in range(BATCHES - 1):
            next(endless)
        return next(endless)

    return step


class _ListedImages(Dataset):
    """torchvision.datasets.ImageFolder, for a list."""

    def __init__(self, examples: Examples, decode: Decode, config: DataConfig) -> None:
        self.examples, self.decode = examples, decode
        self.mode = MODES[config.channels]
        self.transform = torchvision_transform(config)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        source = self.examples.image(index, whole=True)
        file = io.BytesIO(source.content) if isinstance(source, Content) else source
        image = self.decode(file, self.mode)
        return self.transform(image), torch.as_tensor(self.examples.labels[index])


def torchvision_transform(config: DataConfig) -> v2.Compose:
    """What densekit does in training, by torchvision's own transforms in torchvision's order."""
    augment, side = config.augment, config.train_side
    mode, smooth = InterpolationMode(config.interpolation), config.antialias
    resize = [] if config.eval_resize is None else [v2.Resize(config.eval_resize, mode)]
    crops = {
        "random_resized": [
            v2.RandomResizedCrop(side, augment.crop_scale, augment.crop_ratio, mode, smooth)
        ],
        "pad": [*resize, v2.RandomCrop(side, augment.crop_padding or None, pad_if_needed=True)],
        "none": [*resize, v2.CenterCrop(side)],
    }
    flip = [v2.RandomHorizontalFlip(augment.flip)] if augment.flip else []
    mean, std = (list(v) * (config.channels // len(v)) for v in (config.mean, config.std))
    to_floats = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    erased = v2.RandomErasing(augment.erase, augment.erase_scale, augment.erase_ratio)
    erase = [erased] if augment.erase else []
    changes = [*affine(augment), *flip, *colours(augment, config.mean)]
    return v2.Compose([*crops[augment.crop], *changes, *to_floats, *erase])


def why_no_peers(config: DataConfig) -> str | None:
    """What torchvision cannot do; None if it reads such images."""
    if config.channels not in MODES:
        return f"reads images of 1 or 3 channels, not data.channels={config.channels}"
    if config.intensity != "8bit":
        return f"has no data.intensity={config.intensity}"
    return None


def pil(file: str | io.BytesIO, mode: str) -> Image.Image:
    """As ImageFolder opens files unless it is told otherwise; torchvision resizes with PIL then."""
    return Image.open(file).convert(mode)


def fast(file: str | io.BytesIO, mode: str) -> Tensor:
    """torchvision's own decoder."""
    content = (
        file if isinstance(file, str) else torch.frombuffer(file.getbuffer(), dtype=torch.uint8)
    )
    return decode_image(content, mode="GRAY" if mode == "L" else mode)


DECODERS: dict[str, Decode] = {"PIL": pil, "torchvision.io": fast}
