"""balance.py: how often an epoch draws what, and that it is a function of seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest

from densekit.data.balance import balanced_order, describe_balance, shares
from densekit.data.listing import Examples

STRATA = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [400, 80, 20]))


@pytest.mark.parametrize("balance", [0.25, 0.5, 1.0])
def test_shares(balance: float) -> None:
    counts = np.array([400, 80, 20])
    found = shares(counts, balance)
    assert found.sum() == 500
    wanted = counts ** (1 - balance)
    assert np.abs(found - wanted / wanted.sum() * 500).max() <= 1
    order = balanced_order(0, 3, STRATA, balance)
    assert np.bincount(STRATA[order]).tolist() == found.tolist()


def test_no_image_comes_again_before_all_of_its_class_did() -> None:
    order = balanced_order(0, 0, STRATA, 1.0)
    times = np.bincount(order, minlength=500)
    assert times[STRATA == 0].max() == 1
    for stratum in (1, 2):
        own = times[stratum == STRATA]
        assert own.max() - own.min() <= 1


def test_an_order_is_a_function_of_seed_and_epoch() -> None:
    first = balanced_order(7, 2, STRATA, 0.5)
    assert np.array_equal(first, balanced_order(7, 2, STRATA, 0.5))
    assert not np.array_equal(first, balanced_order(7, 3, STRATA, 0.5))
    assert not np.array_equal(first, balanced_order(8, 2, STRATA, 0.5))


def test_it_is_said() -> None:
    examples = Examples([""] * 500, STRATA.astype(np.int64), {2: "rare"}, "", "list.txt")
    said = describe_balance(examples, 1.0)
    assert "an epoch of 500 images draws rare 167 times (of 20 images), 1 166 times" in said


def test_of_several_classes_the_rarest_counts() -> None:
    labels = np.array([[1, 0], [1, 1], [1, 0], [0, -1], [0, 0]], np.int8)
    examples = Examples([""] * 5, labels, {}, "", "list.txt")
    assert examples.strata.tolist() == [0, 1, 0, 2, 2]
