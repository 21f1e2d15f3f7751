"""95 % bootstrap intervals: statistics recomputed on images resampled with replacement.

Resampling is stratified, so that each class keeps its share. If images belong to groups, such as
patients, whole groups are resampled, whatever their classes: images of one patient are alike, and
treating them as independent makes intervals too narrow (Field and Welsh, 2007). The resamples are
a function of the seed. An interval spans the 2.5th to the 97.5th percentile (Efron, 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from densekit.progress import bar

LEVEL = 0.95
CHUNK = 4_000_000  # numbers held in memory
Statistics = Mapping[str, np.ndarray]
"""Statistics by name: [...] of the original images, [b, ...] of b resamples."""


@dataclass(frozen=True)
class Resampling:
    """How images are resampled."""

    rounds: int = 1000
    seed: int = 0

    def intervals(
        self,
        statistics: Callable[[np.ndarray], Statistics],
        strata: np.ndarray,
        groups: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Low and high of each statistic, [..., 2]; NaN if no resample defines it, or if there is
        only one group.

        `statistics` takes how often each image was drawn, int64 [b, n]; `strata` and `groups` are
        int64 [n].
        """
        size = max(1, CHUNK // len(strata))
        found: dict[str, list[np.ndarray]] = {}
        chunks = self._chunks(strata, groups, size)
        for weights in bar(chunks, -(-self.rounds // size), "intervals"):
            for name, values in statistics(weights).items():
                found.setdefault(name, []).append(values)
        ends = {name: _percentiles(np.concatenate(values)) for name, values in found.items()}
        if groups is not None and (groups == groups[0]).all():  # every resample would be the same
            return {name: np.full_like(values, np.nan) for name, values in ends.items()}
        return ends

    def _chunks(
        self, strata: np.ndarray, groups: np.ndarray | None, size: int
    ) -> Iterator[np.ndarray]:
        source = np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed)))
        for start in range(0, self.rounds, size):
            rounds = min(size, self.rounds - start)
            if groups is not None:
                _, own = np.unique(groups, return_inverse=True)
                yield _drawn(source, rounds, int(own.max()) + 1)[:, own]
                continue
            weights = np.empty((rounds, len(strata)), np.int64)
            for stratum in np.unique(strata):
                images = np.flatnonzero(strata == stratum)
                weights[:, images] = _drawn(source, rounds, len(images))
            yield weights


def known(value: float | np.ndarray) -> float | None:
    """A number, or None for NaN."""
    return None if np.isnan(value) else float(value)


def pair(ends: np.ndarray) -> list[float] | None:
    """[2] -> low and high, or None for NaN."""
    return None if np.isnan(ends).any() else ends.tolist()


def _drawn(source: np.random.Generator, rounds: int, n: int) -> np.ndarray:
    """How often each of n is drawn in n draws, int64 [rounds, n]."""
    draws = source.integers(0, n, (rounds, n)) + n * np.arange(rounds)[:, None]
    return np.bincount(draws.ravel(), minlength=rounds * n).reshape(rounds, n)


def _percentiles(values: np.ndarray) -> np.ndarray:
    """[b, ...] -> [..., 2]."""
    tail = 50 * (1 - LEVEL)
    none = np.isnan(values).all(0)
    known = np.where(none, 0.0, values)
    return np.where(
        none[..., None],
        np.nan,
        np.moveaxis(np.nanpercentile(known, [tail, 100 - tail], axis=0), 0, -1),
    )
