"""The assignment of groups, against scikit-learn's StratifiedGroupKFold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from densekit.data.stratify import assign_groups, files_of_classes, fold_of_files, ordered


def drawn(seed: int, groups: int = 60, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Groups of 1 to 12 images, each with a bent for some classes, as patients have them."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 13, groups)
    names = np.repeat([f"patient{g}" for g in range(groups)], sizes)
    bents = draw.dirichlet(np.full(classes, 0.5) * [4, 2, 1, 0.5][:classes], groups)
    labels = np.concatenate(
        [draw.choice(classes, n, p=p) for n, p in zip(sizes, bents, strict=True)]
    )
    return names.astype(object), labels.astype(np.int64)


def parts_of(groups: np.ndarray, parts: dict[str, int]) -> np.ndarray:
    return np.array([parts[group] for group in groups])


def unevenness(parts: np.ndarray, labels: np.ndarray, folds: int) -> float:
    """How far classes' shares are from 1 / folds, as scikit-learn's greedy measures it."""
    shares = [
        [np.mean(parts[labels == label] == fold) for fold in range(folds)]
        for label in np.unique(labels)
    ]
    return float(np.mean(np.std(shares, axis=1)))


@given(st.integers(0, 10_000), st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_folds_are_disjoint_in_groups_cover_all_and_ignore_the_order(seed: int, folds: int) -> None:
    groups, labels = drawn(seed)
    parts = assign_groups(groups, labels, [1 / folds] * folds, seed)
    assert parts.keys() == set(groups)
    assert set(parts.values()) == set(range(folds))
    order = np.random.default_rng(seed).permutation(len(groups))
    assert assign_groups(groups[order], labels[order], [1 / folds] * folds, seed) == parts


def test_as_even_as_scikit_learns() -> None:
    """Over many draws: StratifiedGroupKFold's folds are no evener on average, nor in size."""
    ours, theirs, sizes = [], [], []
    for seed in range(30):
        groups, labels = drawn(seed)
        parts = parts_of(groups, assign_groups(groups, labels, [0.2] * 5, seed))
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        peer = np.empty(len(labels), int)
        for fold, (_, held) in enumerate(splitter.split(labels, labels, groups)):
            peer[held] = fold
        ours.append(unevenness(parts, labels, 5))
        theirs.append(unevenness(peer, labels, 5))
        sizes.append(np.bincount(parts, minlength=5) / len(labels))
    assert np.mean(ours) <= 1.1 * np.mean(theirs)
    assert np.max(np.abs(np.array(sizes) - 0.2)) < 0.04


def test_a_share_is_near_what_was_asked_for_of_every_class() -> None:
    for seed in range(20):
        groups, labels = drawn(seed, groups=200)
        for share in (0.1, 0.2, 0.5):
            parts = assign_groups(groups, labels, [share, 1 - share], seed)
            held = parts_of(groups, parts) == 0
            assert held.mean() == pytest.approx(share, abs=0.02)
            for label in range(4):
                assert held[labels == label].mean() == pytest.approx(share, abs=0.06)


def test_large_groups_are_held_out_too() -> None:
    """Not the small ones alone, as a greedy by the plain difference would have it."""
    groups = np.repeat([f"p{g}" for g in range(40)], 25).astype(object)
    parts = assign_groups(groups, np.zeros(1000, np.int64), [0.2, 0.8], 0)
    assert sorted(parts.values()) == [0] * 8 + [1] * 32


def test_another_seed_is_another_split_and_the_same_is_the_same() -> None:
    groups, labels = drawn(0)
    splits = [assign_groups(groups, labels, [0.2, 0.8], seed) for seed in (0, 0, 1, 2, 3)]
    assert splits[0] == splits[1]
    assert len({frozenset(g for g, part in s.items() if part == 0) for s in splits}) == 4


def test_several_classes_and_unknown_ones() -> None:
    """A rare finding is in both sides; an unknown label counts as none."""
    draw = np.random.default_rng(0)
    labels = (draw.random((900, 3)) < [0.5, 0.1, 0.03]).astype(np.int8)
    labels[draw.random((900, 3)) < 0.1] = -1
    groups = np.array([f"p{i // 3}" for i in range(900)], object)
    held = parts_of(groups, assign_groups(groups, labels, [0.2, 0.8], 0)) == 0
    assert held.mean() == pytest.approx(0.2, abs=0.02)
    for column in labels.T:
        assert held[column == 1].mean() == pytest.approx(0.2, abs=0.06)


def test_it_is_what_it_was() -> None:
    """A split that changes with a version of densekit would put patients on the other side."""
    groups = np.array([f"p{i * i % 13}" for i in range(60)], object)
    labels = np.array([i * i * i % 4 for i in range(60)])
    by_seed = [assign_groups(groups, labels, [1 / 3] * 3, seed) for seed in (0, 1)]
    assert by_seed == [
        {"p9": 0, "p3": 1, "p10": 2, "p4": 1, "p12": 0, "p1": 2, "p0": 1},
        {"p10": 0, "p3": 1, "p9": 2, "p12": 1, "p4": 2, "p1": 0, "p0": 1},
    ]
    assert ordered(["a", "b", "c", "d"], 0) == ["d", "c", "b", "a"]
    assert ordered(["a", "b", "c", "d"], 1) == ["a", "b", "c", "d"]


@given(st.lists(st.integers(0, 3), min_size=10, max_size=80), st.integers(2, 5), st.integers(0, 9))
def test_folds_of_files_are_stratified_as_scikit_learns(
    labels: list[int], folds: int, seed: int
) -> None:
    names = [f"{i}.png" for i in range(len(labels))]
    by_class = files_of_classes(names, np.array(labels))
    held = [fold_of_files(by_class, fold, folds, seed) for fold in range(folds)]
    assert sorted(name for fold in held for name in fold) == sorted(names)
    sizes = [len(fold) for fold in held]
    assert max(sizes) - min(sizes) <= 1
    for files in by_class.values():
        counts = [len(fold & files) for fold in held]
        assert max(counts) - min(counts) <= 1
    if min(np.bincount(labels)[np.unique(labels)]) >= folds:
        peer = StratifiedKFold(folds, shuffle=True, random_state=seed)
        theirs = sorted(len(test) for _, test in peer.split(names, labels))
        assert sorted(sizes) == theirs
