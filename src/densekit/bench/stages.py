"""What becomes of an image on its way to the network, timed stage by stage on one core."""

from __future__ import annotations

import contextlib
import os
import statistics
import time

import torch
from torch import Tensor

from densekit.config import Section, UserError
from densekit.data.augment import train_transform
from densekit.data.config import DataConfig
from densekit.data.dataset import ImageDataset, Sample
from densekit.data.decode import content_of, open_image
from densekit.data.listing import Examples
from densekit.data.shards.examples import ShardedExamples
from densekit.data.transforms import Preprocessing
from densekit.progress import bar


class StageTime(Section):
    """One stage."""

    name: str
    seconds: float
    """Of one image: the median over images, or over batches of their share."""


def measure_stages(
    examples: Examples, config: DataConfig, batch_size: int
) -> tuple[StageTime, ...]:
    """In order; `disk` only where the system can be told to forget a file, `transfer` only where
    there is a GPU. Raises UnreadableImage."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stages, squares = _image_stages(examples, config)
        return (*_disk(examples), *stages, *_batch_stages(examples, config, squares, batch_size))
    finally:
        torch.set_num_threads(threads)


def _image_stages(examples: Examples, config: DataConfig) -> tuple[list[StageTime], list[Tensor]]:
    """Stages of single images, and what they lead to."""
    transform = train_transform(config)
    squares: list[Tensor] = []
    clock: dict[str, list[float]] = {"read (cached)": [], "decode, crop": [], "augment": []}
    for index in bar(range(len(examples)), len(examples), "stages"):
        times = [time.perf_counter()]
        content = content_of(examples.image(index, whole=True))
        times.append(time.perf_counter())
        image = open_image(content, config.channels, config.max_pixels, config.scaling)
        pixels = transform.read(image)
        times.append(time.perf_counter())
        squares.append(transform.change(pixels))
        times.append(time.perf_counter())
        for seconds, began, ended in zip(clock.values(), times, times[1:], strict=False):
            seconds.append(ended - began)
    return [_stage(name, seconds) for name, seconds in clock.items()], squares


def _batch_stages(
    examples: Examples, config: DataConfig, squares: list[Tensor], batch_size: int
) -> list[StageTime]:
    side, scaling = config.train_side, config.scaling
    transform = train_transform(config)
    data = ImageDataset(examples, transform, config.channels, side, intensity=scaling)
    normalize = Preprocessing.from_config(config).normalize
    clock: dict[str, list[float]] = {"collate": [], "transfer": [], "normalise": []}
    for start in range(0, len(squares), batch_size):
        samples = [Sample(square, i) for i, square in enumerate(squares[start:][:batch_size])]
        times = [time.perf_counter()]
        collated = data.collate([*samples])
        assert not isinstance(collated, UserError)  # there are no bad images among squares
        images = collated.batch().images
        times.append(time.perf_counter())
        if torch.cuda.is_available():
            images = images.pin_memory().to("cuda")
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        normalize(images)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        for seconds, began, ended in zip(clock.values(), times, times[1:], strict=False):
            seconds.append((ended - began) / len(samples))
    if not torch.cuda.is_available():
        del clock["transfer"]
    return [_stage(name, seconds) for name, seconds in clock.items()]


def _disk(examples: Examples) -> list[StageTime]:
    """Reading files that the system has been told to forget, which it does only on request."""
    seconds = []
    for index, path in enumerate(examples.paths):
        if not _forget(examples.where(index) if isinstance(examples, ShardedExamples) else path):
            return []
        began = time.perf_counter()
        content_of(examples.image(index, whole=True))
        seconds.append(time.perf_counter() - began)
    return [_stage("disk", seconds)]


def _forget(path: str) -> bool:
    """Whether the system could be told that nobody needs the file's pages in memory."""
    if not hasattr(os, "posix_fadvise"):
        return False
    with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123 (its descriptor)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return True
    return False


def _stage(name: str, seconds: list[float]) -> StageTime:
    return StageTime(name=name, seconds=statistics.median(seconds))
