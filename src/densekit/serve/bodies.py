"""Reads the images of a request's body, in memory and within the limits."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Coroutine
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from densekit.serve.limits import Limits, Refused, RequestShare, too_large

MULTIPART, JSON, RAW = "multipart/form-data", "application/json", "application/octet-stream"
LONGEST_NAME = 1000  # bytes of a file name
HOW = (
    f"send one image as the body with Content-Type: image/jpeg (or image/*, {RAW}), several as "
    f'{MULTIPART}, or {JSON} like {{"images": [{{"data": "<base64>"}}]}}'
)


class Upload(NamedTuple):
    """An image's bytes, and its file name if the client gave one."""

    file: str | None
    data: bytes


class JsonImage(BaseModel):
    """An image in JSON."""

    model_config = ConfigDict(extra="forbid")
    data: str = Field(description="The image file's bytes in base64.", min_length=1)
    file: str | None = Field(None, description="A name, which comes back in the image's row.")


class JsonImages(BaseModel):
    """A request's body in JSON."""

    model_config = ConfigDict(extra="forbid")
    images: list[JsonImage] = Field(min_length=1)


async def read_uploads(request: Request, share: RequestShare, limits: Limits) -> list[Upload]:
    """The images of a request of any content type. Raises Refused, or ClientDisconnect."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    content = kind.decode("latin-1")
    if content == MULTIPART:
        form = Form(options.get(b"boundary", b""), limits.max_images)
        await within(limits, _feed(form, chunks(request, share, limits)))
        uploads = form.close()
    elif content == JSON:
        body = await read_body(request, share, limits)
        uploads = await asyncio.to_thread(_from_json, body, limits.max_images)
    elif content == RAW or content.startswith("image/"):
        uploads = [Upload(None, await read_body(request, share, limits))]
    else:
        said = f'"{content[:60]}"' if content else "missing"
        raise Refused(415, f"the Content-Type is {said}: {HOW}")
    if not uploads or uploads == [Upload(None, b"")]:
        raise Refused(400, f"there is no image in the body: {HOW}")
    share.add_images(len(uploads))
    return uploads


async def read_body(request: Request, share: RequestShare, limits: Limits) -> bytes:
    """The whole body. Raises Refused past a limit."""
    body = bytearray()

    async def read() -> None:
        async for chunk in chunks(request, share, limits):
            body.extend(chunk)

    await within(limits, read())
    return bytes(body)


async def chunks(request: Request, share: RequestShare, limits: Limits) -> AsyncIterator[bytes]:
    """The body in chunks, counted. Raises Refused past max_bytes; before reading anything if the
    client declares the size."""
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise Refused(415, "bodies in a Content-Encoding are not read; send it as it is")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.max_bytes:
        raise Refused(413, too_large(limits.max_bytes))
    async for chunk in request.stream():
        share.add_bytes(len(chunk))
        yield chunk


async def within(limits: Limits, reading: Coroutine[None, None, None]) -> None:
    """Waits until the body is read. Raises Refused if that takes too long."""
    try:
        await asyncio.wait_for(reading, limits.body_seconds)
    except asyncio.TimeoutError as error:
        raise Refused(
            408, f"the body did not arrive within {limits.body_seconds:g} seconds"
        ) from error


async def _feed(form: Form, body: AsyncIterator[bytes]) -> None:
    async for chunk in body:
        form.write(chunk)


def _from_json(body: bytes, max_images: int) -> list[Upload]:
    try:
        images = JsonImages.model_validate_json(body).images
    except ValidationError as error:
        raise Refused(400, f"the JSON is not as expected: {first_problem(error)}") from error
    if len(images) > max_images:
        raise Refused(413, f"{len(images)} images in one request; this server takes {max_images}")
    return [
        Upload(image.file, from_base64(image.data, f"images[{i}].data"))
        for i, image in enumerate(images)
    ]


def from_base64(text: str, where: str) -> bytes:
    """Raises Refused, naming `where`."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Refused(400, f"{where} is not base64") from error


def first_problem(error: ValidationError) -> str:
    """`images[0].data: Field required`: where, and what."""
    problem = error.errors(include_input=False, include_url=False)[0]
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in problem["loc"])
    return f"{where.lstrip('.') or 'the body'}: {problem['msg']}"


class Form:
    """A multipart form in memory, parsed chunk by chunk; each part is a file."""

    def __init__(self, boundary: bytes, max_images: int) -> None:
        """Raises Refused for an invalid boundary."""
        if not boundary:
            raise Refused(400, f"the Content-Type {MULTIPART} names no boundary")
        self._max_images = max_images
        self._uploads: list[Upload] = []
        self._name, self._value, self._data = bytearray(), bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._whole = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, a, b: self._name.extend(data[a:b]),
                    "on_header_value": lambda data, a, b: self._value.extend(data[a:b]),
                    "on_header_end": self._header,
                    "on_part_data": lambda data, a, b: self._data.extend(data[a:b]),
                    "on_part_end": self._end,
                    "on_end": self._all,
                },
            )
        except FormParserError as error:
            raise Refused(400, f"the form cannot be read: {error}") from error

    def write(self, chunk: bytes) -> None:
        """Raises Refused for a malformed form."""
        if chunk:
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise Refused(400, f"the form cannot be read: {error}") from error

    def close(self) -> list[Upload]:
        """The files. Raises Refused for a truncated form."""
        if not self._whole:
            raise Refused(400, "the form is truncated: its last boundary is missing")
        return self._uploads

    def _begin(self) -> None:
        if len(self._uploads) == self._max_images:
            raise Refused(
                413, f"more than {self._max_images} images in one request, which is all it may have"
            )
        self._headers.clear()
        self._data = bytearray()

    def _header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"filename")
        if name is None:
            raise Refused(
                400, "a part of the form has no filename: each part is an image file (topk and cam "
                "stand in the URL)"
            )  # fmt: skip
        file = name[:LONGEST_NAME].decode("utf-8", "replace")
        self._uploads.append(Upload(file, bytes(self._data)))

    def _all(self) -> None:
        self._whole = True
