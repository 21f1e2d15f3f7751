"""benchmarks/load_client.py, serving_steps.py and serving.py: the load is what they say it is."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from test_run import write_images  # noqa: E402

import load_client  # noqa: E402 (benchmarks/load_client.py, and so on)
import rows  # noqa: E402
import serving  # noqa: E402
import serving_steps  # noqa: E402
from densekit.infer.classifier import load  # noqa: E402
from densekit_steps import Workload  # noqa: E402

Answer = Callable[[bytes], Awaitable[tuple[int, bytes]]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[load_client.Address]:
    """HTTP/1.1 of asyncio alone; `answer` gets a body and gives status and body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            status, body = await answer(await reader.readexactly(size))
            start = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(start.encode() + body)

    def ignore_ends(_: asyncio.AbstractEventLoop, __: object) -> None:
        """Of connections: the clients close them."""

    asyncio.get_running_loop().set_exception_handler(ignore_ends)
    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[:2]
    finally:
        listening.close()


@pytest.fixture
def requests(tmp_path: Path) -> list[bytes]:
    files = [tmp_path / f"{i}.jpg" for i in range(20)]
    for i, file in enumerate(files):
        file.write_bytes(f"picture {i}".encode())
    return [load_client.upload("/predict", "images", file) for file in files]


def test_a_closed_loop_asks_for_each_once_with_so_many_clients(requests: list[bytes]) -> None:
    seen: list[bytes] = []
    under_way = most = 0

    async def answer(body: bytes) -> tuple[int, bytes]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        seen.append(body)
        return 200, b"{}"

    async def load_it() -> float:
        async with server(answer) as address:
            return await load_client.closed_loop(address, requests, 4)

    assert asyncio.run(load_it()) > 0.01 * 20 / 4
    assert most == 4
    assert Counter(seen) == Counter(request.split(b"\r\n\r\n", 1)[1] for request in requests)


def test_an_answer_that_is_none_ends_the_measurement(requests: list[bytes]) -> None:
    async def answer(_: bytes) -> tuple[int, bytes]:
        return 503, b"busy"

    async def load_it() -> None:
        async with server(answer) as address:
            await load_client.closed_loop(address, requests, 2)

    with pytest.raises(load_client.BadAnswer, match="503: b'busy'"):
        asyncio.run(load_it())


def test_an_open_loop_goes_on_asking_while_answers_are_late(requests: list[bytes]) -> None:
    """Latency is from when a request was due, so a server that stands still cannot hide it."""
    gate: asyncio.Event

    async def answer(_: bytes) -> tuple[int, bytes]:
        await gate.wait()
        return 200, b"{}"

    async def load_it() -> list[float]:
        nonlocal gate
        gate = asyncio.Event()
        async with server(answer) as address:
            asyncio.get_running_loop().call_later(1.5, gate.set)
            return await load_client.open_loop(address, requests, 100, 0.5, seed=0)

    took = asyncio.run(load_it())
    assert len(took) == len(list(load_client.arrivals(100, 0.5, 0)))
    assert min(took) >= 0.49
    assert max(took) >= 0.9


def test_arrivals_are_as_many_as_the_rate_says_and_as_uneven_as_chance() -> None:
    times = list(load_client.arrivals(50, 400, 1))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)
    assert times != list(load_client.arrivals(50, 400, 2))


def test_the_network_that_is_served_is_the_one_that_is_asked_for(tmp_path: Path) -> None:
    work = Workload(model="densenet_bc_10_4", image_size=32)
    served = load(serving_steps.network(tmp_path / "best", work), device="cpu")
    assert served.opened.name == work.model
    assert (served.preprocess.resize, served.preprocess.crop) == (36, 32)
    assert len(served.classes) == 1000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["latency", "memory"])
def test_the_command_measures_a_real_service(tmp_path: Path, kind: str) -> None:
    """Of a tiny network, for a moment."""
    options = [
        kind, "--model", "densenet_bc_10_4", "--image-size", "32", "--rounds", "1", "--seconds",
        "1", "--minutes", "0.05", "--threads", "1", "--files", "6",
        "--images", str(write_images(tmp_path)), "--results", str(tmp_path / "results"),
    ]  # fmt: skip
    serving.main(serving.parse_arguments(options))
    torch.set_num_threads(1)
    found = rows.read(tmp_path / "results")
    if kind == "memory":
        (row,) = found
        assert row.ratio is not None
        assert 0.5 < row.ratio.median < 2
        assert row.sides[0].measured.low > 50  # MiB: torch alone is more
        return
    assert len(found) == len(serving.SHARES) * len(serving.PERCENTILES)
    at_50 = [row.sides[0].measured.median for row in found if "/50-" in row.name]
    assert 0 < at_50[0] <= at_50[1] <= at_50[2]


@pytest.mark.slow
def test_the_plain_handler_answers_and_its_server_is_gone_at_the_end(tmp_path: Path) -> None:
    write_images(tmp_path)
    files = [str(tmp_path / f"{i}.jpg") for i in range(3)]
    loaded = serving_steps.fastapi(files, Workload())
    assert loaded() > 0
    ended = os.waitid(os.P_PID, loaded.process.pid, os.WSTOPPED)  # so it takes nothing from others
    assert ended is not None
    assert ended.si_status == signal.SIGSTOP
    assert loaded() > 0
    loaded.close()
    assert loaded.process.returncode == -signal.SIGKILL
