"""A light HTTP client that puts a load on a server: one process, asyncio, httptools.

It costs the server's machine well under a millisecond a request, where a general client takes
several.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import httptools

BOUNDARY = "densekit-benchmark"
Address = tuple[str, int]


class BadAnswer(Exception):  # noqa: N818 (what is raised is what is wrong)
    """A status other than 200, or a connection that ended: then nothing was measured."""


def upload(path: str, field: str, file: Path) -> bytes:
    """A request whole: `file` as the one part of a form."""
    start = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{file.name}"'
        "\r\nContent-Type: image/jpeg\r\n\r\n"
    )
    body = start.encode() + file.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}"
        "\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """Kept alive; one request at a time."""

    @classmethod
    async def to(cls, address: Address) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(cls, *address)
        return connection

    async def ask(self, request: bytes) -> bytes:
        """The answer's body. Raises BadAnswer."""
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.transport.close()

    # What asyncio and httptools call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        status, body = self._parser.get_status_code(), bytes(self._body)
        if status == 200:
            self._answer.set_result(body)
        else:
            self._answer.set_exception(BadAnswer(f"{status}: {body[:300]!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        answer = getattr(self, "_answer", None)
        if answer is not None and not answer.done():
            answer.set_exception(BadAnswer(f"the connection ended: {error}"))


async def closed_loop(address: Address, requests: Iterable[bytes], clients: int) -> float:
    """Seconds in which `clients` connections send all requests, each its next once it has its
    answer."""
    left = iter(requests)
    connections = [await Connection.to(address) for _ in range(clients)]

    async def client(connection: Connection) -> None:
        for request in left:  # shared: whoever is free takes the next
            await connection.ask(request)

    began = time.perf_counter()
    await asyncio.gather(*map(client, connections))
    took = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return took


async def open_loop(
    address: Address, requests: Sequence[bytes], rate: float, seconds: float, seed: int
) -> list[float]:
    """Seconds from each request's due time to its answer.

    Requests come as from many independent people: `rate` a second on average, at random
    (Poisson), whether or not earlier ones are answered.
    """
    idle: list[Connection] = []

    async def one(request: bytes, due: float) -> float:
        connection = idle.pop() if idle else await Connection.to(address)
        await connection.ask(request)
        took = time.perf_counter() - due
        idle.append(connection)
        return took

    tasks = []
    began = time.perf_counter()
    for request, offset in zip(itertools.cycle(requests), arrivals(rate, seconds, seed)):
        await asyncio.sleep(max(0.0, began + offset - time.perf_counter()))
        tasks.append(asyncio.create_task(one(request, began + offset)))
    latencies = await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return latencies


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Times in 0..seconds, with exponential gaps of 1 / `rate` on average."""
    draw, now = random.Random(seed), 0.0
    while (now := now + draw.expovariate(rate)) < seconds:
        yield now
