"""Ranks that meet in a store which has seen an earlier attempt."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from densekit.distributed.failures import meet


def test_an_attempt_finds_its_own_name_and_never_an_earlier_ones() -> None:
    store = dist.HashStore()
    names = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):  # who comes first
        with ThreadPoolExecutor(3) as pool:
            ranks = []
            for rank in order:
                ranks.append(pool.submit(meet, store, rank, 3, 20.0))
                time.sleep(0.1)  # so the first ones do look at what the last attempt left
            (name,) = {rank.result() for rank in ranks}
        names.append(name)
    assert len(set(names)) == 3


def test_a_rank_that_waits_in_vain_says_for_whom() -> None:
    with pytest.raises(dist.DistStoreError, match="rank 1 waited 0 s for rank 0"):
        meet(dist.HashStore(), 1, 2, 0.05)
    with pytest.raises(dist.DistStoreError):
        meet(dist.HashStore(), 0, 2, 0.05)
