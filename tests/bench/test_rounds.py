"""Rounds: what a spread is, who steps when, whose memory it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.bench.rounds import (
    Candidate,
    RoundSample,
    Settings,
    Spread,
    activation_bytes,
    images_per_second,
    measure_rounds,
)

MIB = 1 << 20


@given(st.lists(st.floats(0.001, 1000), min_size=1))
def test_a_spread_is_median_and_range(values: list[float]) -> None:
    found = Spread.of(values)
    assert found.median == pytest.approx(np.median(values))
    assert (found.low, found.high) == (min(values), max(values))


def sample(seconds: list[float], activations: int | None = None) -> RoundSample:
    return RoundSample(seconds, activations, keeps_memory=False)


def test_a_rate_is_that_of_the_median_step_of_each_round() -> None:
    samples = [sample([1, 1, 9]), sample([3, 3, 3]), sample([2, 2, 1])]
    assert images_per_second(samples, 12) == Spread(median=6, low=4, high=12)


def test_memory_is_the_largest_of_the_rounds_and_may_be_unknown() -> None:
    assert activation_bytes([sample([1], 5), sample([1], 7)]) == 7
    assert activation_bytes([sample([1]), sample([1])]) is None


def writing(name: str, file: str) -> Callable[[], object]:
    def step() -> None:
        with Path(file).open("a") as log:
            log.write(name)

    return step


def holding(first: int, later: int) -> Callable[[], object]:
    """Steps that hold so many MiB for their time."""
    sizes = iter([first])
    return lambda: np.ones(next(sizes, later) * MIB, np.uint8).sum()


def failing() -> Callable[[], object]:
    raise ValueError("this step cannot be made")


@pytest.mark.slow
def test_candidates_alternate(tmp_path: Path) -> None:
    file = str(tmp_path / "steps")
    candidates = [Candidate(name, partial(writing, name, file)) for name in "ABC"]
    settings = Settings(rounds=2, steps=3, warmup=1, threads=1)
    rounds = list(measure_rounds(candidates, settings))
    assert Path(file).read_text() == "ABC" + 2 * ("AAAA" + "BBBB" + "CCCC")
    assert [len(each.seconds) for samples in rounds for each in samples] == 6 * [3]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process' peak")
def test_memory_is_of_all_steps_but_the_first() -> None:
    one = Candidate("a", partial(holding, 300, 90))
    other = Candidate("b", partial(holding, 0, 30))
    ((first, second),) = measure_rounds([one, other], Settings(rounds=1, steps=2, threads=1))
    assert first.activation_bytes is not None
    assert second.activation_bytes is not None
    assert 85 < first.activation_bytes / MIB < 120
    assert 25 < second.activation_bytes / MIB < 60


@pytest.mark.slow
def test_a_candidate_that_fails_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="broken: its process failed"):
        list(measure_rounds([Candidate("broken", failing)], Settings(threads=1)))
    assert "this step cannot be made" in capfd.readouterr().err
