"""Stratified hold-out, with or without groups; depends on images, groups and seed alone.

Neither a list's order nor the data's location matters. Randomness comes from SHA-256, not from a
generator. Groups are assigned as in scikit-learn's StratifiedGroupKFold, one after another to the
part that lacks their classes most; but parts may differ in size, and the assignment does not
depend on numpy's version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

ALIKE = 1e-9  # costs that differ by less count as equal


def ordered(names: Sequence[str], seed: int) -> list[str]:
    """Shuffled by hash; seed 0 hashes the bare names."""
    prefix = b"%d\0" % seed if seed else b""

    def key(name: str) -> bytes:
        return hashlib.sha256(prefix + name.encode("utf-8", "surrogateescape")).digest()

    return sorted(names, key=key)


def files_of_classes(names: Sequence[str], strata: np.ndarray) -> dict[int, set[str]]:
    """The files of each class."""
    by_class: dict[int, set[str]] = {}
    for name, label in zip(names, strata.tolist(), strict=True):
        by_class.setdefault(label, set()).add(name)
    return by_class


def share_of_files(by_class: dict[int, set[str]], fraction: float, seed: int) -> set[str]:
    """`fraction` of each class's files; of two files or more, at least one goes to each side."""
    held: set[str] = set()
    for files in by_class.values():
        count = min(max(round(fraction * len(files)), 1), len(files) - 1)
        held.update(ordered(list(files), seed)[:count])
    return held


def fold_of_files(by_class: dict[int, set[str]], fold: int, folds: int, seed: int) -> set[str]:
    """Files of fold 0 to `folds` - 1, dealt like cards, class by class: neither the folds nor their
    shares of a class differ by more than one file."""
    held: set[str] = set()
    dealt = 0
    for _, files in sorted(by_class.items()):
        held.update(ordered(list(files), seed)[(fold - dealt) % folds :: folds])
        dealt += len(files)
    return held


def assign_groups(
    groups: np.ndarray, labels: np.ndarray, shares: Sequence[float], seed: int
) -> dict[str, int]:
    """Assigns each group to a part (0, 1, ...), so that parts get about `shares` (sum 1) of each
    class and of all images.
    `groups` is text [n], `labels` as in Examples. A group goes to the part where it least raises
    the sum over parts and classes of (share - wanted)^2 / wanted. Large groups go first, in
    classes of powers of two of their squared shares; within a class the seed orders them.
    """
    names, numbers = np.unique(groups.astype(str), return_inverse=True)
    classes, shares_of = _class_shares(numbers, len(names), labels)
    weights = np.array([float(np.square(part).sum()) for part in shares_of])
    octave = np.floor(np.log2(weights) + ALIKE)
    place = {name: index for index, name in enumerate(names.tolist())}
    wanted = np.array(shares)[:, None]
    columns = 1 + max(int(c.max()) for c in classes)
    over = np.repeat(-wanted, columns, axis=1)  # share so far - wanted, of each part and class
    parts: dict[str, int] = {}
    by_chance = ordered(names.tolist(), seed)
    for name in sorted(by_chance, key=lambda name: -octave[place[name]]):
        own, part = classes[place[name]], shares_of[place[name]]
        costs = ((2 * over[:, own] + part) * part / wanted).sum(1)
        chosen = int(np.argmax(costs <= costs.min() + ALIKE))
        over[chosen, own] += part
        parts[name] = chosen
    return parts


def _class_shares(
    numbers: np.ndarray, count: int, labels: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each of `count` groups, its classes and its share of all images of each; the last class
    stands for all images."""
    if labels.ndim == 1:
        image, of_class = np.arange(len(labels)), labels
    else:
        image, of_class = np.nonzero(labels == 1)
    anything = int(of_class.max(initial=-1)) + 1
    owner = np.concatenate([numbers[image], numbers])
    kind = np.concatenate([of_class, np.full(len(numbers), anything)])
    pairs, images = np.unique(owner * (anything + 1) + kind, return_counts=True)
    owner, kind = np.divmod(pairs, anything + 1)
    shares = images / np.bincount(kind, weights=images)[kind]
    edges = np.searchsorted(owner, np.arange(1, count))
    return np.split(kind, edges), np.split(shares, edges)
