"""bootstrap.py: what is drawn, and that 95 % intervals hold what they should as often."""

from __future__ import annotations

import numpy as np

from densekit.infer.bootstrap import Resampling


def drawn(strata: np.ndarray, groups: np.ndarray | None = None, rounds: int = 50) -> np.ndarray:
    return np.concatenate(list(Resampling(rounds, seed=3)._chunks(strata, groups, 7)))


def test_a_class_keeps_its_images() -> None:
    strata = np.repeat([0, 1, 5], [40, 3, 17])
    weights = drawn(strata)
    assert weights.shape == (50, 60)
    for stratum in (0, 1, 5):
        own = strata == stratum
        assert (weights[:, own].sum(1) == own.sum()).all()
    assert (weights == 0).any()
    assert np.array_equal(weights, drawn(strata))


def test_groups_are_drawn_whole() -> None:
    groups = np.array([9, 9, 4, 4, 4, 7])
    weights = drawn(np.zeros(6, np.int64), groups)
    for group in (9, 4, 7):
        own = weights[:, groups == group]
        assert (own == own[:, :1]).all()
    assert (weights[:, [0, 2, 5]].sum(1) == 3).all()


def test_a_single_group_says_nothing_of_others() -> None:
    own = Resampling(5).intervals(
        lambda weights: {"mean": weights.mean(1)}, np.zeros(6, np.int64), np.zeros(6, np.int64)
    )
    assert np.isnan(own["mean"]).all()


def test_intervals_of_alike_images_cover_the_truth_by_group_alone() -> None:
    """Eight images to each of 30 patients, whose images are all but the same."""
    source, strata = np.random.default_rng(0), np.zeros(240, np.int64)
    groups = np.repeat(np.arange(30), 8)
    covered = {"images": 0, "groups": 0}
    for trial in range(100):
        values = source.normal(size=30)[groups] + 0.1 * source.normal(size=240)

        def mean(weights: np.ndarray, values: np.ndarray = values) -> dict[str, np.ndarray]:
            return {"mean": weights @ values / weights.sum(1)}

        for name, of in (("images", None), ("groups", groups)):
            ends = Resampling(200, seed=trial).intervals(mean, strata, of)["mean"]
            covered[name] += ends[0] <= 0 <= ends[1]
    assert covered["groups"] >= 86  # of 100, at 95 %
    assert covered["images"] <= 70


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    source = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = source.normal(size=80)
        strata = np.zeros(80, np.int64)
        ends = Resampling(400, seed=trial).intervals(
            lambda weights, values=values: {"mean": weights @ values / 80}, strata
        )["mean"]
        covered += ends[0] <= 0 <= ends[1]
    assert 180 <= covered <= 199  # of 200, at 95 %


def test_what_never_exists_has_no_interval() -> None:
    ends = Resampling(5).intervals(
        lambda weights: {"none": np.full(len(weights), np.nan)}, np.zeros(3, np.int64)
    )
    assert np.isnan(ends["none"]).all()
