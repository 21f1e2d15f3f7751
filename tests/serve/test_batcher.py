"""batcher.py: batches of what queued, nobody's cancelled work, one's failure is one's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
import torch

from densekit.serve.batcher import Answered, Ask, Batcher, Finding, Job


class Network:
    """Computes when it is let; says what it was given. An image of 13s cannot be computed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.began, self.go_on = threading.Event(), threading.Event()

    def __call__(self, jobs: Sequence[Job]) -> list[Finding]:
        numbers = [int(job.square) for job in jobs]
        self.batches.append(numbers)
        self.began.set()
        assert self.go_on.wait(30)
        if 13 in numbers:
            raise RuntimeError("thirteen")
        return [Finding([{"class": number, "label": "", "prob": 1.0}]) for number in numbers]


@pytest.fixture
def network() -> Network:
    return Network()


def batcher_of(network: Network, max_batch: int = 4, max_wait: float = 0.0) -> Batcher:
    loop = asyncio.get_running_loop()
    return Batcher(network, max_batch, max_wait, loop, lambda images, seconds: None)


def number_of(answered: Answered) -> int:
    assert isinstance(answered.finding, Finding)
    return answered.finding.answers[0]["class"]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_a_batch_is_what_queued_while_the_network_was_busy(network: Network) -> None:
    async def work() -> None:
        batcher = batcher_of(network)
        first = batcher.submit(torch.tensor(0), Ask())
        await asyncio.to_thread(network.began.wait, 30)
        rest = [batcher.submit(torch.tensor(i), Ask()) for i in range(1, 7)]
        network.go_on.set()
        answers = await asyncio.gather(first, *rest)
        assert [number_of(a) for a in answers] == list(range(7))
        assert network.batches == [[0], [1, 2, 3, 4], [5, 6]]
        assert [a.batch for a in answers] == [1, 4, 4, 4, 4, 2, 2]
        batcher.close()

    run(work())


def test_cancelled_images_are_not_computed(network: Network) -> None:
    async def work() -> None:
        batcher = batcher_of(network)
        first = batcher.submit(torch.tensor(0), Ask())
        await asyncio.to_thread(network.began.wait, 30)
        gone, kept = (batcher.submit(torch.tensor(i), Ask()) for i in (1, 2))
        gone.cancel()
        network.go_on.set()
        assert [number_of(a) for a in await asyncio.gather(first, kept)] == [0, 2]
        assert network.batches == [[0], [2]]
        batcher.close()

    run(work())


def test_one_images_failure_is_its_own(network: Network) -> None:
    async def work() -> None:
        batcher = batcher_of(network)
        first = batcher.submit(torch.tensor(0), Ask())
        await asyncio.to_thread(network.began.wait, 30)
        rest = [batcher.submit(torch.tensor(i), Ask()) for i in (12, 13, 14)]
        network.go_on.set()
        one, bad, other = await asyncio.gather(*rest)
        assert isinstance(bad.finding, RuntimeError)
        assert [number_of(a) for a in (await first, one, other)] == [0, 12, 14]
        batcher.close()

    run(work())


def test_with_max_wait_an_idle_network_waits_for_a_batch(network: Network) -> None:
    async def work() -> None:
        network.go_on.set()
        batcher = batcher_of(network, max_batch=2, max_wait=60.0)
        jobs = [batcher.submit(torch.tensor(i), Ask()) for i in range(4)]
        await asyncio.gather(*jobs)
        assert network.batches == [[0, 1], [2, 3]]
        last = batcher.submit(torch.tensor(9), Ask())
        await asyncio.to_thread(batcher.close)  # which waits no longer
        assert number_of(await last) == 9

    run(work())


def test_what_is_queued_is_answered_before_the_end(network: Network) -> None:
    async def work() -> None:
        batcher = batcher_of(network, max_batch=1)
        jobs = [batcher.submit(torch.tensor(i), Ask()) for i in range(3)]
        network.go_on.set()
        await asyncio.to_thread(batcher.close)
        assert [number_of(a) for a in await asyncio.gather(*jobs)] == [0, 1, 2]

    run(work())
