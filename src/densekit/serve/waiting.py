"""Runs a request's work until the client leaves or the deadline passes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from densekit.serve.limits import Refused

T = TypeVar("T")


async def finished(request: Request, work: Awaitable[T], deadline: float) -> T:
    """The result of `work`, which is cancelled if the client leaves or after `deadline` seconds.

    Call it once the body is read. Raises ClientDisconnect, or Refused.
    """
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, left}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if left.done():
            raise ClientDisconnect
        raise Refused(504, f"not answered within {deadline:g} seconds")
    finally:
        task.cancel()
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
