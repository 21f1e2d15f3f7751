"""seeds.py against numpy's own SeedSequence."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from densekit.data.seeds import seeds_of

WORDS = st.integers(0, 2**32 - 1)


@given(WORDS, st.lists(st.tuples(WORDS, WORDS), max_size=5), st.integers(0, 2**130))
def test_all_at_once_are_numpys_one_by_one(
    use: int, places: list[tuple[int, int]], seed: int
) -> None:
    found = seeds_of(use, np.array(places, np.int64).reshape(-1, 2), seed)
    assert found.dtype == np.uint32
    wanted = [np.random.SeedSequence([use, *place, seed]).generate_state(1)[0] for place in places]
    assert found.tolist() == wanted
