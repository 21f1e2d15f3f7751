"""Reads training and evaluation images, singly and in batches. C channels, S side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from densekit.config import UserError
from densekit.data import jpeg, on_cpu
from densekit.data.augment import Copied, TrainTransform
from densekit.data.config import MAX_PIXELS
from densekit.data.decode import EIGHT_BITS, ImageFile, UnreadableImage, open_image
from densekit.data.decoded import DecodedImages
from densekit.data.intensity import Intensity
from densekit.data.listing import Examples
from densekit.data.on_cpu import Crop
from densekit.data.places import Placed, Places
from densekit.data.seeds import seeds_of

# mixed into seeds, so that different uses of one seed draw independently
ORDER, SAMPLE, BALANCED, SHARDS = 1, 2, 3, 4
OPENED_AT_ONCE = 8  # files; the interpreter's code stays in the CPU's cache between them
Key = tuple[int, int]
"""(epoch, index in the Examples)."""


class BadImage(NamedTuple):
    """An image that cannot be read."""

    position: int
    """In the Examples."""
    reason: str
    """Why, with file and list line."""


class Batch(NamedTuple):
    """Images with their labels; may be empty."""

    images: Tensor
    """[n, C, S, S], uint8, or float32 in 0..1 (data.intensity)."""
    labels: Tensor
    """int64 [n], or int8 [n, K], as in the Examples."""
    indices: Tensor
    """int64 [n], positions in the Examples."""
    bad: tuple[BadImage, ...] = ()
    """Images that were left out of the batch."""


class Collated(NamedTuple):
    """A Batch on its way from a worker. Only its images are shared with the main process; labels
    are sent by value, since a tensor of its own takes longer."""

    images: Tensor | Placed
    """In a place of the worker's until it arrives, as a tensor."""
    labels: np.ndarray
    positions: np.ndarray
    bad: tuple[BadImage, ...]

    def batch(self) -> Batch:
        assert not isinstance(self.images, Placed)
        labels, positions = torch.from_numpy(self.labels), torch.from_numpy(self.positions)
        return Batch(self.images, labels, positions, self.bad)


class Kept(NamedTuple):
    """A Sample whose pixels are still where decoded images are."""

    crop: Crop
    position: int


class Sample(NamedTuple):
    image: Tensor
    """[C, S, S], of the batch's dtype."""
    position: int
    """In the Examples."""


ReadImage = Sample | Kept | UserError | BadImage
"""What became of reading an image."""

# Changing either of these two functions changes the numbers of every run.


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of the n images in an epoch, int64 [n]."""
    # The seed comes last because it alone may take more than one 32-bit word.
    source = np.random.SeedSequence([ORDER, epoch, seed])
    return np.random.Generator(np.random.PCG64(source)).permutation(n)


def sample_seeds(seed: int, keys: Sequence[Key]) -> list[int]:
    """For each image, the seed of all its random draws: 32 bits for torch's generator."""
    return seeds_of(SAMPLE, np.array(keys, np.int64).reshape(-1, 2), seed).tolist()


class ImageDataset(Dataset):
    """Reads and transforms images; random draws depend on seed, epoch and index only."""

    def __init__(
        self,
        examples: Examples,
        transform: Callable[[ImageFile], Any],
        channels: int,
        side: int,
        seed: int = 0,
        max_pixels: int = MAX_PIXELS,
        skip_bad: bool = False,
        intensity: Intensity = EIGHT_BITS,
        decoded: DecodedImages | None = None,
    ) -> None:
        self.examples, self.transform, self.seed = examples, transform, seed
        self.max_pixels, self.skip_bad, self.intensity = max_pixels, skip_bad, intensity
        self.shape, self.decoded = (channels, side, side), decoded
        self.only_copies: Callable[[int, int], Copied] | None = None
        if decoded is not None and isinstance(transform, TrainTransform) and transform.only_copies:
            self.only_copies = transform.only_copies if on_cpu.copies_crops() else None
        jpeg.why_no_reader()  # compiled here if need be, not by each worker

    @property
    def image_bytes(self) -> int:
        """Bytes of one image of a Batch."""
        return math.prod(self.shape) * self.intensity.dtype.itemsize

    def __getitem__(self, key: Key) -> ReadImage:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[ReadImage]:
        """What torch's loader calls for a batch; torch's generator is afterwards as it was."""
        found: list[ReadImage] = []
        seeds = sample_seeds(self.seed, keys)
        with torch.random.fork_rng(devices=[]):
            if self.only_copies is not None and self.decoded is not None:
                places = self.decoded.index[[index for _, index in keys]].tolist()
                of_each = zip(keys, seeds, places, strict=True)
                return [self._kept(index, seed, *place) for (_, index), seed, place in of_each]
            for first in range(0, len(keys), OPENED_AT_ONCE):
                some = slice(first, first + OPENED_AT_ONCE)
                images = [self._opened(index) for _, index in keys[some]]
                of_each = zip(keys[some], seeds[some], images, strict=True)
                found += [
                    self._transform(index, seed, image) for (_, index), seed, image in of_each
                ]
        return found

    def _kept(self, index: int, seed: int, start: int, height: int, width: int) -> ReadImage:
        """Draws what is copied of an image; reads it where it is not there."""
        if not height:
            return self._transform(index, seed, self._opened(index))
        assert self.only_copies is not None
        torch.default_generator.manual_seed(seed)
        return Kept(Crop(start, height, width, *self.only_copies(height, width)), index)

    def _opened(self, index: int) -> ImageFile | UserError:
        """An error is returned as a value, so that it passes from a worker unchanged."""
        try:
            if self.decoded is not None and (image := self.decoded.image(index)) is not None:
                return image
            source = self.examples.image(index, whole=True)
            return open_image(source, self.shape[0], self.max_pixels, self.intensity)
        except UserError as error:
            return error

    def _transform(self, index: int, seed: int, image: ImageFile | UserError) -> ReadImage:
        """By draws from torch's generator, which is seeded for the image."""
        try:
            if isinstance(image, UserError):
                raise image
            # torch.manual_seed would also queue a seed for the GPUs, endlessly in a worker.
            torch.default_generator.manual_seed(seed)
            return Sample(self.transform(image), index)
        except UnreadableImage as error:
            error = error.at(self.examples.where(index))
            return BadImage(index, str(error)) if self.skip_bad else error
        except UserError as error:  # object storage failed, not the image
            return error

    def collate(
        self, samples: list[ReadImage], places: Places | None = None
    ) -> Collated | UserError:
        """Any number of samples, none included; or the first file that failed. In a worker into
        one of its `places`, where one is free."""
        read: list[Sample | Kept] = []
        bad: list[BadImage] = []
        for sample in samples:
            if isinstance(sample, UserError):
                return sample
            if isinstance(sample, BadImage):
                bad.append(sample)
            else:
                read.append(sample)
        images = self.together(read, places)
        positions = np.array([sample.position for sample in read], dtype=np.int64)
        return Collated(images, self.examples.labels[positions], positions, tuple(bad))

    def together(self, read: Sequence[Sample | Kept], places: Places | None = None) -> Any:
        """What becomes a Batch's images, [n, C, S, S]."""
        images = batch_memory((len(read), *self.shape), self.intensity.dtype, places)
        rows = images.tensor() if isinstance(images, Placed) else images
        crops: list[tuple[int, Crop]] = []
        for row, sample in enumerate(read):
            if isinstance(sample, Kept):
                crops.append((row, sample.crop))
            else:
                rows[row].copy_(sample.image)
        if crops and self.decoded is not None:
            on_cpu.copy_crops(self.decoded.pixels, crops, rows)
        return images


def batch_memory(
    shape: tuple[int, ...], dtype: torch.dtype, places: Places | None = None
) -> Tensor | Placed:
    """In a worker, allocated in shared memory, since the batch would else be copied there."""
    worker = get_worker_info()
    if worker is None or 0 in shape:
        return torch.empty(shape, dtype=dtype)
    if places is not None and (placed := places.take(worker.id, shape, dtype)) is not None:
        return placed
    shared = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(shared).view(shape)
