"""Memory that a loader's workers fill with batches again and again, and its main process reads.

A batch in fresh shared memory costs both sides: the system clears and maps each of its pages, and
its descriptor takes a connection of its own. Here only a place's number is sent.
"""

from __future__ import annotations

import itertools
import math
import mmap
import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_known: weakref.WeakValueDictionary[int, Places] = weakref.WeakValueDictionary()
_keys = itertools.count()


class Places:
    """Some places for each worker, all of one size. Made before the workers are forked.

    A place is taken by its worker, and free again once the main process has let go of the tensor
    that it got there, and of all that shares its memory.
    """

    def __init__(self, workers: int, of_each: int, size: int) -> None:
        """`size`: bytes of a place."""
        self.of_each, self.size, self.key = of_each, size, next(_keys)
        self.memory = mmap.mmap(-1, max(1, workers * of_each * size))
        # A byte each: only its worker sets it, only the main process clears it.
        self.taken = np.frombuffer(mmap.mmap(-1, max(1, workers * of_each)), np.uint8)
        _known[self.key] = self

    def take(self, worker: int, shape: tuple[int, ...], dtype: torch.dtype) -> Placed | None:
        """In a worker, with any content; None where the main process holds all of its places."""
        own = range(worker * self.of_each, (worker + 1) * self.of_each)
        number = next((number for number in own if not self.taken[number]), None)
        if number is None or not 0 < math.prod(shape) * dtype.itemsize <= self.size:
            return None
        self.taken[number] = 1
        return Placed(self, number, shape, dtype)

    def bytes_of(self, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
        count = math.prod(shape) * dtype.itemsize
        return np.frombuffer(self.memory, np.uint8, count, number * self.size)

    def release(self, number: int) -> None:
        self.taken[number] = 0


@dataclass(frozen=True)
class Placed:
    """A tensor in a place. Pickled, it is the place's number; unpickled, a Tensor there."""

    places: Places
    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        values = self.places.bytes_of(self.number, self.shape, self.dtype)
        return torch.from_numpy(values).view(self.dtype).view(self.shape)

    def __reduce__(self) -> tuple[object, ...]:
        return _arrived, (self.places.key, self.number, self.shape, self.dtype)


def _arrived(key: int, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    places = _known[key]
    values = places.bytes_of(number, shape, dtype)
    # torch keeps `values` for as long as any tensor looks at its memory
    weakref.finalize(values, places.release, number).atexit = False
    return torch.from_numpy(values).view(dtype).view(shape)
