"""Tensors of KServe's protocol: in JSON, or as bytes after it (Triton's extension)."""

from __future__ import annotations

import json
import math
import struct
from typing import Any, Literal

import numpy as np
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from densekit.serve.batcher import Ask
from densekit.serve.bodies import first_problem, from_base64
from densekit.serve.limits import Refused

HEADER_LENGTH = "Inference-Header-Content-Length"
NUMPY = {"INT64": "<i8", "FP64": "<f8"}

Tensors = dict[str, tuple[str, list[int], list[Any]]]
"""Name -> datatype, shape, values in row-major order."""


class Strict(BaseModel):
    """An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class InferParameters(Strict):
    """A request's parameters."""

    topk: int = Field(5, ge=1, le=1_000_000, description="Answers per image.")
    timeout: int | None = Field(
        None, ge=1, description="Microseconds, where they are fewer than the server's deadline."
    )
    binary_data_output: bool = False

    def ask(self) -> Ask:
        return Ask(self.topk)

    def seconds(self, deadline: float) -> float:
        return deadline if self.timeout is None else min(deadline, self.timeout / 1e6)


class InputParameters(Strict):
    """An input's parameters."""

    binary_data_size: int | None = Field(None, ge=0, description="Bytes behind the JSON.")
    content_type: Literal["base64"] | None = Field(None, description="Of BYTES in JSON.")


class InferInput(Strict):
    """The images."""

    name: Literal["image"]
    datatype: Literal["BYTES", "UINT8"]
    shape: list[int] = Field(min_length=1, max_length=4)
    data: list[Any] | None = Field(
        None, description="Base64 of files for BYTES, numbers for UINT8, nested or flat."
    )
    parameters: InputParameters = InputParameters()


class OutputParameters(Strict):
    """A requested output's parameters."""

    binary_data: bool | None = None


class InferOutput(Strict):
    """A requested output."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(Strict):
    """A request's JSON."""

    id: str | None = None
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[InferOutput] = []
    parameters: InferParameters = InferParameters()


Images = list[tuple[None, bytes | np.ndarray]]
"""Files' bytes, or uint8 arrays [H, W, C], unnamed."""


def parsed(body: bytes, header_length: str | None, max_images: int) -> tuple[InferRequest, Images]:
    """The JSON, and the images in it or after it. Raises Refused."""
    size = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length) > len(body):
            raise Refused(400, f"{HEADER_LENGTH} is not a number of bytes of this body")
        size = int(header_length)
    try:
        asked = InferRequest.model_validate_json(body[:size])
    except ValidationError as error:
        raise Refused(400, f"the JSON is not as expected: {first_problem(error)}") from error
    return asked, _images(asked.inputs[0], body[size:], max_images)


def _images(tensor: InferInput, binary: bytes, max_images: int) -> Images:
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise Refused(400, "an input has either data or parameters.binary_data_size")
    if len(binary) != (size or 0):
        raise Refused(
            400, f"{len(binary)} bytes stand behind the JSON, binary_data_size says {size or 0}"
        )
    if any(length < 1 for length in tensor.shape):
        raise Refused(400, f"shape {tensor.shape}: a size below 1")
    if tensor.shape[0] > max_images:
        raise Refused(
            413, f"{tensor.shape[0]} images in one request; this server takes {max_images}"
        )
    if tensor.datatype == "BYTES":
        files = _files(tensor) if size is None else _behind(binary)
        if tensor.shape != [len(files)]:
            raise Refused(400, f"shape {tensor.shape}: the data has {len(files)} elements")
        return [(None, file) for file in files]
    return [(None, array) for array in _arrays(tensor, binary)]


def _files(tensor: InferInput) -> list[bytes]:
    found = []
    for i, text in enumerate(tensor.data or []):
        if not isinstance(text, str):
            raise Refused(400, f"data[{i}]: BYTES in JSON are base64 text")
        found.append(from_base64(text, f"data[{i}]"))
    return found


def _behind(binary: bytes) -> list[bytes]:
    """The elements, each preceded by its length (4 bytes, little-endian)."""
    found, at = [], 0
    while at < len(binary):
        length = int.from_bytes(binary[at : at + 4], "little")
        found.append(binary[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(binary):
        raise Refused(400, "the binary data behind the JSON is truncated: an element is longer")
    return found


def _arrays(tensor: InferInput, binary: bytes) -> np.ndarray:
    """uint8 [n, H, W, C]."""
    if len(tensor.shape) != 4:
        raise Refused(400, f"shape {tensor.shape}: UINT8 images have shape [n, height, width, C]")
    if tensor.data is None:
        flat = np.frombuffer(binary, np.uint8)
    else:
        try:
            wide = np.array(tensor.data)
        except ValueError as error:  # rows of different lengths
            raise Refused(400, "data: its rows have several lengths") from error
        if wide.dtype.kind not in "iu" or (wide.size and not 0 <= wide.min() <= wide.max() <= 255):
            raise Refused(400, "data: UINT8 are whole numbers from 0 to 255")
        flat = wide.astype(np.uint8).reshape(-1)
    if flat.size != math.prod(tensor.shape):
        raise Refused(400, f"shape {tensor.shape}: the data has {flat.size} elements")
    return flat.reshape(tensor.shape)


def packed(head: dict[str, Any], tensors: Tensors, binary: dict[str, bool]) -> Response:
    """A response; `binary` says which outputs follow the JSON as bytes."""
    outputs, behind = [], b""
    for name, (datatype, shape, values) in tensors.items():
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if binary[name]:
            content = _to_bytes(datatype, values)
            output["parameters"] = {"binary_data_size": len(content)}
            behind += content
        else:
            output["data"] = values
        outputs.append(output)
    whole = {**head, "outputs": outputs}
    if not any(binary.values()):
        return JSONResponse(whole)
    text = json.dumps(whole).encode()
    headers = {HEADER_LENGTH: str(len(text))}
    return Response(text + behind, headers=headers, media_type="application/octet-stream")


def _to_bytes(datatype: str, values: list[Any]) -> bytes:
    if datatype == "BYTES":
        texts = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.array(values, NUMPY[datatype]).tobytes()
