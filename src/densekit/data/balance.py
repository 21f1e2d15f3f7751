"""data.balance: epochs that oversample rare classes.

The order stays a function of seed and epoch alone.
"""

from __future__ import annotations

import numpy as np

from densekit.data.dataset import BALANCED
from densekit.data.listing import Examples

BALANCE_NAMED = 8  # classes in a note


def balanced_order(seed: int, epoch: int, strata: np.ndarray, balance: float) -> np.ndarray:
    """An epoch of n draws that balances its `strata` [n] (data.balance): positions, int64 [n].

    No image of a class is drawn again before all others of the class were.
    """
    source = np.random.SeedSequence([BALANCED, epoch, seed])
    generator = np.random.Generator(np.random.PCG64(source))
    classes, counts = np.unique(strata, return_counts=True)
    draws = []
    for stratum, count in zip(classes, shares(counts, balance), strict=True):
        images = np.flatnonzero(strata == stratum)
        rounds = -(-int(count) // len(images))
        draws.append(np.concatenate([generator.permutation(images) for _ in range(rounds)])[:count])
    return generator.permutation(np.concatenate(draws))


def shares(counts: np.ndarray, balance: float) -> np.ndarray:
    """Draws per epoch for each class of `counts` images, int64 [K]; the sum stays the same."""
    wanted = counts ** (1 - balance)
    edges = np.cumsum(wanted) / wanted.sum() * counts.sum()
    return np.diff(np.rint(edges).astype(np.int64), prepend=0)


def describe_balance(examples: Examples, balance: float) -> str:
    """How often an epoch draws the images of each class."""
    strata = examples.strata
    classes, counts = np.unique(strata, return_counts=True)
    names = {**examples.classes, examples.num_classes: "none of them"}
    rows = sorted(
        zip(counts, shares(counts, balance), classes, strict=True), key=lambda row: row[0]
    )
    shown = [
        f"{names.get(label, label)} {draws:,} times (of {count:,} images)"
        for count, draws, label in rows[:BALANCE_NAMED]
    ]
    more = f", and {len(rows) - BALANCE_NAMED} larger classes" if len(rows) > BALANCE_NAMED else ""
    return (
        f"data.balance={balance:g}: an epoch of {len(examples):,} images draws "
        f"{', '.join(shown)}{more}"
    )
