"""places.py: a place is free when nothing looks at its memory any more, and not before."""

from __future__ import annotations

import gc
import pickle

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from densekit.data.places import Placed, Places

SHAPE = (2, 3, 4, 5)


def taken(places: Places, worker: int = 0, dtype: torch.dtype = torch.uint8) -> Placed:
    placed = places.take(worker, SHAPE, dtype)
    assert placed is not None
    return placed


def arrived(placed: Placed) -> Tensor:
    """As in the main process."""
    found = pickle.loads(pickle.dumps(placed))
    assert isinstance(found, Tensor)
    return found


def test_what_is_written_arrives_and_nothing_is_copied() -> None:
    places = Places(1, 2, 4 * 120)
    for dtype in (torch.uint8, torch.float32):
        placed = taken(places, dtype=dtype)
        placed.tensor().copy_(torch.arange(120).view(SHAPE))
        found = arrived(placed)
        assert found.dtype == dtype
        assert torch.equal(found, torch.arange(120).view(SHAPE).to(dtype))
        placed.tensor()[0, 0, 0, 0] = 7
        assert found[0, 0, 0, 0] == 7


def test_a_view_keeps_the_place() -> None:
    places = Places(1, 1, 120)
    found = arrived(taken(places))
    last = found[1:, :, ::2].permute(0, 2, 3, 1)
    del found
    gc.collect()
    assert places.take(0, SHAPE, torch.uint8) is None
    del last
    assert taken(places).number == 0


def test_of_no_size_and_too_large_there_is_no_place() -> None:
    places = Places(1, 1, 120)
    assert places.take(0, (0, 3, 4, 5), torch.uint8) is None
    assert places.take(0, SHAPE, torch.float32) is None
    assert taken(places).number == 0


@given(
    workers=st.integers(1, 3), of_each=st.integers(1, 3),
    moves=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=60),
)  # fmt: skip
def test_no_two_tensors_share_a_place(
    workers: int, of_each: int, moves: list[tuple[int, bool]]
) -> None:
    """Whatever workers take and the main process lets go of."""
    places, held = Places(workers, of_each, 120), [[] for _ in range(workers)]
    for number, (worker, gives_back) in enumerate(moves):
        mine = held[worker % workers]
        if gives_back and mine:
            mine.pop(0)
            continue
        placed = places.take(worker % workers, SHAPE, torch.uint8)
        assert (placed is None) == (len(mine) == of_each)
        if placed is not None:
            placed.tensor().fill_(number)
            mine.append((number, arrived(placed)))
        assert all((tensor == value).all() for own in held for value, tensor in own)
