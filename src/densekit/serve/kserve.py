"""KServe's Open Inference Protocol v2 over REST, with Triton's binary tensors.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md

One input, `image`: BYTES [n], whole image files (in JSON as base64), or UINT8 [n, H, W, C], pixels
in RGB order. Four outputs: `class`, `label` and `prob` [n, topk], `error` [n], which is empty for
an image with answers. An image without answers is filled with -1, "" and 0.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

import densekit
from densekit.infer.rows import Row
from densekit.serve.bodies import read_body
from densekit.serve.limits import Refused
from densekit.serve.schemas import REFUSALS, ErrorOut, ModelOut
from densekit.serve.service import Service
from densekit.serve.tensors import (
    HEADER_LENGTH,
    InferRequest,
    Tensors,
    packed,
    parsed,
)
from densekit.serve.waiting import finished

VERSION = "1"  # of the only model; the protocol requires one
TYPES = {"class": "INT64", "label": "BYTES", "prob": "FP64", "error": "BYTES"}
EMPTY = {"class": -1, "label": "", "prob": 0.0}  # for an image without answers


class TensorSpec(BaseModel):
    """A tensor's name, datatype and shape; -1: any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a client needs to know to send requests."""

    name: str
    versions: list[str] = [VERSION]
    platform: str = "densekit"
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class ServerMetadata(BaseModel):
    """The server's name and version."""

    name: str = "densekit"
    version: str = densekit.__version__
    extensions: list[str] = ["binary_tensor_data"]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class InferResponse(BaseModel):
    """The outputs; with binary ones, the JSON part of the body."""

    model_config = ConfigDict(protected_namespaces=())
    model_name: str
    model_version: str = VERSION
    id: str | None = None
    outputs: list[dict[str, Any]] = Field(description="name, datatype, shape, data")


def kserve_routes(service: Service, card: ModelOut) -> APIRouter:
    """Everything below /v2 but the health probes, which need no token."""
    router = APIRouter(prefix="/v2", tags=["KServe v2"])
    unknown: dict[int | str, dict[str, Any]] = {code: REFUSALS[code] for code in (401, 421)}
    unknown[404] = {"model": ErrorOut, "description": "No such model or version."}

    @router.get("", response_model=ServerMetadata, responses={401: REFUSALS[401]})
    async def server() -> ServerMetadata:
        return ServerMetadata()

    @router.get("/models/{name}", response_model=ModelMetadata, responses=unknown)
    @router.get(
        "/models/{name}/versions/{version}", response_model=ModelMetadata, responses=unknown
    )
    async def metadata(name: str, version: str = VERSION) -> ModelMetadata:
        _check_name(card, name, version)
        return _metadata(card)

    @router.get("/models/{name}/ready", response_model=Ready, responses=unknown)
    @router.get("/models/{name}/versions/{version}/ready", response_model=Ready, responses=unknown)
    async def ready(name: str, version: str = VERSION) -> Ready:
        _check_name(card, name, version)
        return Ready(ready=True)

    body = InferRequest.model_json_schema(ref_template="#/$defs/{model}")
    documented: dict[str, Any] = {
        "response_model": InferResponse,
        "responses": {**REFUSALS, 404: unknown[404]},
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}}
        },
    }

    @router.post("/models/{name}/infer", **documented)
    @router.post("/models/{name}/versions/{version}/infer", **documented)
    async def infer(request: Request, name: str, version: str = VERSION) -> Response:
        _check_name(card, name, version)
        return await _infer(request, service, card)

    return router


def health_routes(life_ready: Any) -> APIRouter:
    """The protocol's two probes; `life_ready()` says whether the process accepts requests."""
    router = APIRouter(prefix="/v2/health", tags=["KServe v2"])

    @router.get("/live", response_model=Live)
    async def live() -> Live:
        return Live(live=True)

    @router.get("/ready", response_model=Ready, responses={503: {"model": ErrorOut}})
    async def is_ready() -> Ready:
        if not life_ready():
            raise Refused(503, "draining: this process is about to end")
        return Ready(ready=True)

    return router


async def _infer(request: Request, service: Service, card: ModelOut) -> Response:
    with service.load.request() as share:
        share.check_room()
        body = await read_body(request, share, service.limits)
        header_length = request.headers.get(HEADER_LENGTH.lower())
        asked, images = await asyncio.to_thread(
            parsed, body, header_length, service.limits.max_images
        )
        chosen = _outputs(asked)
        share.add_images(len(images))
        ask = asked.parameters.ask()
        deadline = asked.parameters.seconds(service.limits.deadline)
        results = await finished(request, service.answer(images, ask), deadline)
    rows = [result.row for result in results]
    if all(row["error"] is not None for row in rows):
        status = 500 if any(result.failed for result in results) else 400
        return JSONResponse({"error": rows[0]["error"]}, status)
    tensors = _tensors(rows, min(ask.topk, len(card.classes)))
    head: dict[str, Any] = {"model_name": card.name, "model_version": VERSION}
    if asked.id is not None:
        head["id"] = asked.id
    return packed(head, {name: tensors[name] for name in chosen}, chosen)


def _outputs(asked: InferRequest) -> dict[str, bool]:
    """The requested outputs' names, and whether as binary. Raises Refused for an unknown one."""
    everything = asked.parameters.binary_data_output
    if not asked.outputs:
        return dict.fromkeys(TYPES, everything)
    chosen = {}
    for output in asked.outputs:
        if output.name not in TYPES:
            raise Refused(400, f'there is no output "{output.name}"; there are {", ".join(TYPES)}')
        wanted = output.parameters.binary_data
        chosen[output.name] = everything if wanted is None else wanted
    return chosen


def _tensors(rows: list[Row], k: int) -> Tensors:
    """Each output's datatype, shape and values."""
    found: Tensors = {}
    for name, empty in EMPTY.items():
        values = [[a[name] for a in row["topk"]] or [empty] * k for row in rows]  # type: ignore[literal-required]
        found[name] = (TYPES[name], [len(rows), k], [value for row in values for value in row])
    found["error"] = (TYPES["error"], [len(rows)], [row["error"] or "" for row in rows])
    return found


def _metadata(card: ModelOut) -> ModelMetadata:
    shapes = {name: [-1, -1] if name in EMPTY else [-1] for name in TYPES}
    return ModelMetadata(
        name=card.name,
        inputs=[TensorSpec(name="image", datatype="BYTES", shape=[-1])],
        outputs=[
            TensorSpec(name=name, datatype=kind, shape=shapes[name]) for name, kind in TYPES.items()
        ],
    )


def _check_name(card: ModelOut, name: str, version: str) -> None:
    if name != card.name:
        raise Refused(404, f"there is no such model; this server has {card.name}")
    if version != VERSION:
        raise Refused(404, f"there is no such version; this server has {VERSION}")
