"""The HTTP application: /v1, probes, metrics and the page; KServe's protocol is in kserve.py."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

import densekit
from densekit.serve.bodies import read_uploads
from densekit.serve.guard import CLIENT_LEFT, Guard, Life, refusal_response
from densekit.serve.kserve import health_routes, kserve_routes
from densekit.serve.limits import Refused
from densekit.serve.page import page_routes
from densekit.serve.schemas import (
    IMAGES_BODY,
    REFUSALS,
    AskQuery,
    ErrorOut,
    ModelOut,
    Predictions,
    Unanswered,
)
from densekit.serve.service import Result, Service
from densekit.serve.waiting import finished


def application(
    service: Service, card: ModelOut, life: Life, token: str | None = None, local: bool = True
) -> ASGIApp:
    """ASGI; see Guard for `token` and `local`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.open()
        service.measures.ready.set(1)
        yield
        await service.close()

    app = FastAPI(
        title=f"densekit: {card.name}",
        version=densekit.__version__,
        description="Predictions of one network. An error is `{error: sentence}`.",
        docs_url=None,  # its page loads from a CDN
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _left)
    token_shown = [Depends(HTTPBearer(auto_error=False))] if token else []
    app.include_router(_v1(service, card), dependencies=token_shown)
    app.include_router(kserve_routes(service, card), dependencies=token_shown)
    app.include_router(_metrics(service), dependencies=token_shown)
    app.include_router(_probes(life))
    app.include_router(health_routes(lambda: not life.draining))
    app.include_router(page_routes())
    return Guard(app, token, local, life, service.measures)


# Routes -------------------------------------------------------------------------------------


def _v1(service: Service, card: ModelOut) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post(
        "/predict",
        summary="Predict the classes of images",
        response_model=Predictions,
        responses={**REFUSALS, 422: {"model": Unanswered, "description": "No image was readable."}},
        openapi_extra=IMAGES_BODY,
    )
    async def predict(request: Request, query: Annotated[AskQuery, Query()]) -> Response:
        """One or more images, as multipart/form-data, as the raw body, or as base64 in JSON. An
        unreadable image has an error in its own row; the others have answers."""
        ask = query.ask()
        service.check(ask)
        with service.load.request() as share:
            share.check_room()
            images = await read_uploads(request, share, service.limits)
            began = time.perf_counter()
            work = service.answer(images, ask)
            results = await finished(request, work, service.limits.deadline)
        return _predictions(results, ask.wants_maps, card, time.perf_counter() - began)

    @router.get(
        "/model",
        summary="The model card",
        response_model=ModelOut,
        responses={code: REFUSALS[code] for code in (401, 421)},
    )
    async def model() -> Response:
        """The artifact's classes, preprocessing, metrics and provenance."""
        return JSONResponse(shown)

    shown = card.model_dump(mode="json", by_alias=True)
    return router


def _metrics(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        text, kind = service.measures.text()
        return Response(text, media_type=kind)

    return router


def _probes(life: Life) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz", summary="Whether the process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @router.get(
        "/readyz",
        summary="Whether it takes requests",
        responses={503: {"model": ErrorOut, "description": "It is about to end."}},
    )
    async def readyz() -> dict[str, str]:
        if life.draining:
            raise Refused(503, "draining: this process is about to end")
        return {"status": "ready"}

    return router


# Answers ------------------------------------------------------------------------------------


def _predictions(results: Sequence[Result], maps: bool, card: ModelOut, seconds: float) -> Response:
    rows: list[dict[str, Any]] = []
    for result in results:
        row: dict[str, Any] = {**result.row}
        if maps:
            row["cam"] = [
                {"class": one.label, "label": card.classes[one.label], **one.values}
                for one in result.maps
            ]
        rows.append(row)
    slowest = max((r.times for r in results), key=lambda t: t.decode + t.queue + t.compute)
    ms = {name: _ms(getattr(slowest, name)) for name in ("decode", "queue", "compute")}
    content: dict[str, Any] = {"predictions": rows, "ms": {**ms, "total": _ms(seconds)}}
    if any(result.row["error"] is None for result in results):
        return JSONResponse(content)
    content["error"] = results[0].row["error"]
    if len(results) > 1:
        content["error"] = f"none of {len(results)} images has an answer; each row says why"
    return JSONResponse(content, 500 if any(result.failed for result in results) else 422)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal_response(error)


async def _http_error(_: Request, error: Exception) -> Response:
    """Routing errors: 404, 405."""
    assert isinstance(error, HTTPException)
    sentences = {404: "there is nothing at this path", 405: "this path has other methods"}
    sentence = sentences.get(error.status_code, str(error.detail))
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    """Invalid URL parameters."""
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    name = ".".join(map(str, problem["loc"][1:])) or "the request"
    what = problem["msg"]
    if problem["type"] == "extra_forbidden":
        what = f"no such parameter; there are {' and '.join(AskQuery.model_fields)}"
    return refusal_response(Refused(400, f"{name}: {what}"))


async def _left(_: Request, __: Exception) -> Response:
    """The client is gone: nobody reads this response, but it is counted."""
    return Response(status_code=CLIENT_LEFT)
