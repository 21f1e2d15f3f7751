"""Bad bodies, slow clients and bombs: never a 500, and nobody else waits for them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from servers import NAME, Served, picture, serving

GOOD = picture(0)
JPEG = picture(1, "jpeg")
PREDICT, INFER = "/v1/predict", f"/v2/models/{NAME}/infer"
BOUNDARY = "xxBOUNDARYxx"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
RAW = {"content-type": "application/octet-stream"}
JSON = {"content-type": "application/json"}
Bad = tuple[str, dict[str, str], bytes]


def part(content: bytes, head: bytes = b'form-data; name="a"; filename="a.png"') -> bytes:
    start = f"--{BOUNDARY}\r\nContent-Disposition: ".encode()
    return start + head + b"\r\n\r\n" + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that says it is huge; its pixels are zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(height, 2000) * (width // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(GOOD)).convert(mode).save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def infer(**changes: object) -> bytes:
    text = base64.b64encode(GOOD).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text], **changes}
    return json.dumps({"inputs": [tensor]}).encode()


IMAGES: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\x00",
    "text": b"hello, I am a picture",
    "html": b"<html><script>alert(1)</script>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
    "png's magic": GOOD[:8],
    "png's head": GOOD[:33],
    "png cut short": GOOD[: len(GOOD) // 2],
    "png with a flipped bit": GOOD[:60] + bytes([GOOD[60] ^ 255]) + GOOD[61:],
    "png of no width": GOOD[:16] + bytes(4) + GOOD[20:],
    "png of zeros": GOOD[:40] + bytes(len(GOOD) - 40),
    "jpeg's magic": b"\xff\xd8\xff\xe0",
    "jpeg cut short": JPEG[:100],
    "jpeg of zeros": JPEG[:200] + bytes(400),
    "gif cut short": saved("gif", "P")[:40],
    "bmp cut short": saved("bmp")[:60],
    "webp cut short": saved("webp")[:40],
    "tiff cut short": saved("tiff")[:200],
    "tiff of loops": b"II*\0" + struct.pack("<IHHHIII", 8, 1, 256, 3, 1, 1, 8),
    "32-bit pixels": saved("tiff", "F"),
    "bomb of width": bomb(60_000, 60_000),
    "bomb of height": bomb(8, 2**31 - 1),
    "bomb past PIL's limit": bomb(20_000, 20_000),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n",
    "zip": b"PK\x03\x04" + bytes(60),
    "gzip": b"\x1f\x8b" + bytes(60),
    "pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\n",
    "mp4": b"\x00\x00\x00\x18ftypmp42" + bytes(40),
    "avif's head": b"\x00\x00\x00\x1cftypavif" + bytes(20),
    "ico of nothing": b"\x00\x00\x01\x00\xff\xff" + bytes(20),
}
BODIES: dict[str, Bad] = {
    "form without a boundary": (PREDICT, {"content-type": "multipart/form-data"}, part(GOOD) + END),
    "form with a long boundary": (
        PREDICT, {"content-type": f"multipart/form-data; boundary={'b' * 5000}"}, part(GOOD),
    ),
    "form of another boundary": (PREDICT, FORM, part(GOOD).replace(b"xx", b"yy")),
    "form without an end": (PREDICT, FORM, part(GOOD)),
    "form cut short in a part": (PREDICT, FORM, part(GOOD)[:200]),
    "form cut short in a head": (PREDICT, FORM, part(GOOD)[:40]),
    "form of nothing": (PREDICT, FORM, b""),
    "form of its end": (PREDICT, FORM, END),
    "form with a bad head": (PREDICT, FORM, f"--{BOUNDARY}\r\n\x00: x\r\n\r\n".encode() + END),
    "form with a long head": (PREDICT, FORM, part(GOOD, b"x" * 100_000) + END),
    "form of a field": (PREDICT, FORM, part(b"3", b'form-data; name="topk"') + END),
    "form of a part without a head": (
        PREDICT, FORM, f"--{BOUNDARY}\r\n\r\n".encode() + GOOD + b"\r\n" + END,
    ),
    "form of five images": (PREDICT, FORM, part(GOOD) * 5 + END),
    "raw of nothing": (PREDICT, RAW, b""),
    "too many bytes": (PREDICT, RAW, bytes(300_001)),
    "gzipped": (PREDICT, {**RAW, "content-encoding": "gzip"}, GOOD),
    "no content type": (PREDICT, {}, GOOD),
    "an odd content type": (PREDICT, {"content-type": ";;;=ab"}, GOOD),
    "json cut short": (PREDICT, JSON, b'{"images": [{"da'),
    "json of nothing": (PREDICT, JSON, b""),
    "json of null": (PREDICT, JSON, b"null"),
    "json of another kind": (PREDICT, JSON, b'{"images": "cat.png"}'),
    "json of a lone surrogate": (PREDICT, JSON, b'{"images": [{"data": "\\ud800"}]}'),
    "json that is no UTF-8": (PREDICT, JSON, b'{"images": [{"data": "\xff\xfe"}]}'),
    "json of many brackets": (PREDICT, JSON, b"[" * 100_000),
    "json of bad base64": (PREDICT, JSON, b'{"images": [{"data": "a"}]}'),
    "json of a long number": (PREDICT, JSON, b'{"images": ' + b"9" * 100_000 + b"}"),
    "infer of nothing": (INFER, JSON, b"{}"),
    "infer of another shape": (INFER, JSON, infer(shape=[3])),
    "infer of a huge shape": (INFER, JSON, infer(datatype="UINT8", shape=[1, 2**40, 2**40, 3])),
    "infer of a negative shape": (INFER, JSON, infer(shape=[-5])),
    "infer of deep data": (INFER, JSON, infer(data=[[[["a"]]]])),
    "infer of no pixels": (INFER, JSON, infer(datatype="UINT8", shape=[1, 1, 1, 3], data=[])),
    "infer of odd channels": (
        INFER, JSON, infer(datatype="UINT8", shape=[1, 1, 1, 7], data=[0] * 7),
    ),
    "infer of texts": (INFER, JSON, infer(datatype="UINT8", shape=[1, 1, 1, 3], data=["a"] * 3)),
    "infer cut short": (
        INFER,
        {"inference-header-content-length": "124"},
        json.dumps(
            {
                "inputs": [
                    {
                        "name": "image", "datatype": "BYTES", "shape": [1],
                        "parameters": {"binary_data_size": 9},
                    }
                ]
            }
        ).encode().ljust(124) + b"\xff\xff\xff\x7fhello",
    ),
}  # fmt: skip
BAD: dict[str, Bad] = {**{name: (PREDICT, RAW, data) for name, data in IMAGES.items()}, **BODIES}


def test_sixty_bad_bodies_are_4xx_with_a_sentence(client: httpx.Client) -> None:
    assert len(BAD) >= 60
    for name, (path, headers, body) in BAD.items():
        answer = client.post(path, content=body, headers=headers)
        assert 400 <= answer.status_code < 500, f"{name}: {answer.status_code} {answer.text[:200]}"
        assert len(answer.json()["error"]) > 10, name
    assert client.post(PREDICT, files={"a": GOOD}).status_code == 200


def test_an_image_is_only_decoded_here(client: httpx.Client) -> None:
    """PostScript would be handed to ghostscript."""
    answer = client.post(PREDICT, content=IMAGES["eps"], headers=RAW)
    assert "Ghostscript" in answer.json()["error"]


def test_others_are_answered_beside_bad_bodies(server: Served) -> None:
    """Every answer that is good comes while 60 bad bodies are sent again and again."""
    stop = threading.Event()
    statuses: set[int] = set()

    def misbehave(offset: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            bodies = list(BAD.values())
            while not stop.is_set():
                for path, headers, body in bodies[offset:] + bodies[:offset]:
                    statuses.add(client.post(path, content=body, headers=headers).status_code)

    threads = [threading.Thread(target=misbehave, args=(20 * i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for _ in range(40):
                answer = client.post(PREDICT, files={"a": GOOD})
                assert answer.status_code == 200
                assert answer.json()["predictions"][0]["error"] is None
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert max(statuses) < 500
    assert server.metric("densekit_images_under_way") == 0


@contextlib.contextmanager
def connected(server: Served, *pieces: bytes) -> Iterator[socket.socket]:
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as one:
        for piece in pieces:
            one.sendall(piece)
        yield one


HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


def test_a_body_shorter_than_it_says_is_a_client_that_left(server: Served) -> None:
    with connected(server, HEAD, b"Content-Length: 5000\r\n\r\n", GOOD[:100]):
        pass
    deadline = time.monotonic() + 60
    while 'status="499"' not in httpx.get(f"{server.url}/metrics").text:
        assert time.monotonic() < deadline
    assert server.metric("densekit_images_under_way") == 0


def test_a_body_longer_than_it_says_ends_the_connection(server: Served) -> None:
    with connected(server, HEAD, b"Content-Length: 20\r\n\r\n", GOOD) as one:
        one.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: one.recv(65536), b""))
    assert said.startswith(b"HTTP/1.1 4")
    assert httpx.get(f"{server.url}/healthz").status_code == 200


@pytest.fixture(scope="module")
def strict(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Short of time and of room."""
    options = ("--body-seconds", "1", "--max-queue", "4", "--max-images", "2")
    with serving(network, tmp_path_factory.mktemp("served"), *options) as served:
        yield served


def test_slow_bodies_are_refused_and_block_nobody(strict: Served) -> None:
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(connected(strict, HEAD, b"Content-Length: 5000\r\n\r\n", GOOD[:50]))
            for _ in range(30)
        ]
        for _ in range(5):  # more slow clients than there is room for images
            assert httpx.post(f"{strict.url}{PREDICT}", files={"a": GOOD}).status_code == 200
        for one in slow:
            answer = http.client.HTTPResponse(one)
            answer.begin()
            assert answer.status == 408
            assert "within 1 seconds" in json.loads(answer.read())["error"]


def test_clients_that_do_not_read_block_nobody(server: Served) -> None:
    """Each asks for so much that the system's buffers are full long before the server is done."""
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(connected(server, ask))
        for _ in range(5):
            assert httpx.post(f"{server.url}{PREDICT}", files={"a": GOOD}).status_code == 200
        unread = httpx.get(f"{server.url}/metrics").text
    count = re.search(r'requests_total\{route="/openapi.json",status="200"\} (\S+)', unread)
    assert count is None or float(count[1]) < 10_000  # it waits for them


@pytest.mark.slow
def test_a_head_that_never_ends_is_dropped(strict: Served) -> None:
    with connected(strict, b"GET / HTTP/1.1\r\nHost: loc") as silent, connected(strict) as mute:
        assert silent.recv(100) == b""
        assert mute.recv(100) == b""


def test_past_the_queue_it_is_503_with_a_time(strict: Served) -> None:
    """Room is for four images: of sixteen clients with two each, some are told to come again."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        files = [("a", GOOD), ("b", GOOD)]
        answers.append(httpx.post(f"{strict.url}{PREDICT}", files=files, timeout=60))

    deadline = time.monotonic() + 60
    while not any(answer.status_code == 503 for answer in answers):
        assert time.monotonic() < deadline
        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {answer.status_code for answer in answers} == {200, 503}
    busy = next(answer for answer in answers if answer.status_code == 503)
    assert int(busy.headers["retry-after"]) >= 1
    assert "busy: " in busy.json()["error"]
    assert httpx.post(f"{strict.url}{PREDICT}", files={"a": GOOD}).status_code == 200


ONE_AT_A_TIME = ("--max-wait-ms", "60000", "--max-queue", "1", "--max-images", "1")


def test_past_the_deadline_it_is_504_and_the_place_is_free(network: Path, tmp_path: Path) -> None:
    with serving(network, tmp_path, *ONE_AT_A_TIME, "--deadline", "0.2") as served:
        for _ in range(3):  # the queue has room for one
            answer = httpx.post(f"{served.url}{PREDICT}", files={"a": GOOD}, timeout=60)
            assert answer.status_code == 504
            assert answer.json()["error"] == "not answered within 0.2 seconds"


def test_a_client_that_leaves_frees_its_place(network: Path, tmp_path: Path) -> None:
    with serving(network, tmp_path, *ONE_AT_A_TIME) as served:
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{served.url}{PREDICT}", files={"a": GOOD}, timeout=0.5)
        assert served.metric("densekit_batch_images_sum") == 0
        page = httpx.get(f"{served.url}/metrics").text
        assert 'densekit_requests_total{route="/v1/predict",status="499"} 3.0' in page
