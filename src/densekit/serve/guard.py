"""Wraps every request: checks host and token, adds security headers, logs a line."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from densekit.serve.limits import Refused
from densekit.serve.measures import Measures
from densekit.serve.page import PAGE_FILES
from densekit.serve.service import LOG, log_error

PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
QUIET = (*PROBES, "/metrics")  # polled every few seconds, so not logged
LOOPBACK = ("localhost", "127.0.0.1", "::1")
CLIENT_LEFT = 499  # as in nginx
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass
class Life:
    """Whether this process accepts more requests."""

    draining: bool = False


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(
        self, app: ASGIApp, token: str | None, local: bool, life: Life, measures: Measures
    ) -> None:
        """A `token` is required by everything but the probes and the page's own files. `local`:
        without a token, only requests for a loopback host are answered, so that no web page can
        reach the server under a host name of its own (DNS rebinding)."""
        self._app, self._token, self._life, self._measures = app, token, life, measures
        self._local = local and token is None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status, size = time.perf_counter(), 0, 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message

        async def sealed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if self._life.draining or status == 413:  # its body was not read
                    headers["connection"] = "close"
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, counted, sealed)
        except Refused as refused:
            await refusal_response(refused)(scope, counted, sealed)
        except Exception as error:
            log_error("a request failed", error)
            if not status:
                await refusal_response(Refused(500, "this is a fault of the server"))(
                    scope, counted, sealed
                )
        finally:
            self._note(scope, status or CLIENT_LEFT, size, time.perf_counter() - began)

    def _check(self, scope: Scope) -> None:
        """Raises Refused for a wrong host or token."""
        headers, path = Headers(scope=scope), scope["path"]
        if self._local and _name(headers.get("host", "")) not in LOOPBACK:
            raise Refused(
                421,
                "this server answers for localhost alone; a proxy before it sends Host: localhost, "
                "or the server is started with --token",
            )
        if self._token is None or path in PROBES or path in PAGE_FILES:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self._token.encode())
        if scheme.lower() != "bearer" or not same:
            raise Refused(401, "this server takes requests with Authorization: Bearer TOKEN")

    def _note(self, scope: Scope, status: int, size: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._measures.requests.labels(route, status).inc()
        self._measures.request_seconds.labels(route).observe(seconds)
        if scope["path"] not in QUIET:
            LOG.info("%d %d bytes %.0f ms", status, size, seconds * 1000)


def refusal_response(refused: Refused) -> JSONResponse:
    """`{error: sentence}`, as all error responses."""
    headers = {}
    if refused.retry_after is not None:
        headers["retry-after"] = str(refused.retry_after)
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": refused.sentence}, refused.status, headers)


def _name(host: str) -> str:
    """A Host header without its port."""
    name = host.rsplit(":", 1)[0] if host.rpartition(":")[2].isdecimal() else host
    return name.strip("[]").lower()
