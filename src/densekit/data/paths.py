"""A million paths in one buffer, which loader processes share.

A list of Python strings would be copied into each forked process page by page, since reading a
string writes its reference count.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import numpy as np

BLOCK = 1 << 16  # paths converted at a time
ENCODING = ("utf-8", "surrogateescape")  # Python's own for file names that are not UTF-8


class Paths(Sequence[str]):
    """An immutable sequence of strings."""

    def __init__(self, text: bytes, ends: np.ndarray) -> None:
        """`text` is the paths, separated by NUL; `ends` is where each ends, int64 [n]."""
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, paths: Iterable[str]) -> Paths:
        """Packs `paths`; returns a Paths unchanged."""
        if isinstance(paths, Paths):
            return paths
        return cls.packed(path.encode(*ENCODING) for path in paths)

    @classmethod
    def packed(cls, names: Iterable[bytes]) -> Paths:
        """Packs paths given as bytes."""
        blocks, lengths, rest = [], [np.empty(0, np.int64)], iter(names)
        while block := list(islice(rest, BLOCK)):
            blocks.append(b"\0".join(block))
            lengths.append(np.fromiter(map(len, block), np.int64, len(block)))
        return cls(b"\0".join(blocks), np.cumsum(np.concatenate(lengths) + 1) - 1)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._bytes(range(len(self))[operator.index(index)]).decode(*ENCODING)

    def _bytes(self, index: int) -> bytes:
        return self.text[int(self.ends[index - 1]) + 1 if index else 0 : int(self.ends[index])]

    def __iter__(self) -> Iterator[str]:
        return (path.decode(*ENCODING) for path in self.encoded())

    def encoded(self) -> Iterator[bytes]:
        """The paths as bytes."""
        for first in range(0, len(self), BLOCK):
            start = int(self.ends[first - 1]) + 1 if first else 0
            for end in self.ends[first : first + BLOCK].tolist():
                yield self.text[start:end]
                start = end + 1

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Paths):
            return self.text == other.text and np.array_equal(self.ends, other.ends)
        if isinstance(other, Sequence):
            return len(self) == len(other) and all(map(operator.eq, self, other))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self[:3]}{' ...' if len(self) > 3 else ''})"

    def take(self, indices: np.ndarray) -> Paths:
        """The paths at `indices`, int64, in that order."""
        starts = np.concatenate([[0], self.ends + 1])[indices].tolist()
        spans = zip(starts, self.ends[indices].tolist(), strict=True)
        return Paths.packed(self.text[start:end] for start, end in spans)

    def below(self, above: str) -> Paths:
        """The paths with `above` as prefix."""
        start = above.encode(*ENCODING)
        text = start + self.text.replace(b"\0", b"\0" + start) if len(self) else b""
        return Paths(text, self.ends + len(start) * np.arange(1, len(self) + 1))

    def blocks(self) -> Iterator[bytes]:
        """The text in parts of some thousand paths, with a NUL between parts, too."""
        for first in range(0, len(self), BLOCK):
            last = min(first + BLOCK, len(self)) - 1
            yield self.text[int(self.ends[first - 1]) + 1 if first else 0 : int(self.ends[last])]
