"""numpy's SeedSequence for all images of a batch at once.

numpy promises that SeedSequence's output never changes; its algorithm is Melissa O'Neill's seed_seq
(numpy/random/bit_generator.pyx). One call of it takes as long as cropping a small image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

POOL = 4  # words
HASH, HASH_STEP = 0x43B0D7E5, 0x931E8875
MIX_LEFT, MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
OUT, OUT_STEP = 0x8B51F9DD, 0x58F38DED
WORD, HALF = 0xFFFFFFFF, np.uint32(16)


def seeds_of(use: int, places: np.ndarray, seed: int) -> np.ndarray:
    """SeedSequence([use, *row, seed]).generate_state(1) for each row of `places`, numbers below
    2^32 [n, k] -> uint32 [n]."""
    n = len(places)
    entropy = [np.full(n, use, np.uint32), *places.T.astype(np.uint32)]
    entropy += [np.full(n, word, np.uint32) for word in _words(seed)]
    constants = _hash_constants()
    pool = [_hashed(words, *next(constants)) for words in entropy[:POOL]]
    for source in range(POOL):
        for target in range(POOL):
            if source != target:
                pool[target] = _mixed(pool[target], _hashed(pool[source], *next(constants)))
    for words in entropy[POOL:]:
        for target in range(POOL):
            pool[target] = _mixed(pool[target], _hashed(words, *next(constants)))
    return _hashed(pool[0], np.uint32(OUT), np.uint32(OUT * OUT_STEP & WORD))


def _words(number: int) -> list[int]:
    """32-bit words, lowest first."""
    return [number >> shift & WORD for shift in range(0, max(1, number.bit_length()), 32)]


def _hash_constants() -> Iterator[tuple[np.uint32, np.uint32]]:
    constant = HASH
    while True:
        following = constant * HASH_STEP & WORD
        yield np.uint32(constant), np.uint32(following)
        constant = following


def _hashed(words: np.ndarray, before: np.uint32, after: np.uint32) -> np.ndarray:
    found = (words ^ before) * after
    return found ^ (found >> HALF)


def _mixed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    found = MIX_LEFT * x - MIX_RIGHT * y
    return found ^ (found >> HALF)
