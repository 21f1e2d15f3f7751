"""An S3 server on loopback: moto's, a process of its own, behind a door that can break answers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from runs import WAIT, free_port

BUCKET = "photos"


class Store:
    """`broken[key]` answers for a key break off in their middle; -1: all of them.
    `stalled[key]` stop there until the client goes."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.broken: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.stalled: Counter[str] = Counter()
        self.door = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.door.serve_forever, daemon=True).start()

    @property
    def variables(self) -> dict[str, str]:
        """The environment that leads clients here."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.door.server_port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def put(self, key: str, content: bytes = b"") -> None:
        """An object; without a key, the bucket."""
        url = f"{self.server}/{BUCKET}/{urllib.parse.quote(key)}".removesuffix("/")
        headers = {"Content-Type": "image/png"}  # a form's, urllib's default, is taken apart
        put = urllib.request.Request(url, content, headers, method="PUT")
        urllib.request.urlopen(put).close()

    def _handler(store: Store) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Door(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                key = urllib.parse.unquote(self.path).removeprefix(f"/{BUCKET}/")
                store.asked[key] += 1
                url, headers = store.server + self.path, dict(self.headers)
                asked = urllib.request.Request(url, headers=headers, method=self.command)
                try:
                    answer = urllib.request.urlopen(asked)
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    body = answer.read()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                size = answer.headers["Content-Length"] if self.command == "HEAD" else len(body)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                if store.broken[key] and body:
                    store.broken[key] -= 1
                    body, self.close_connection = body[: len(body) // 2], True
                if store.stalled[key] > 0 and body:
                    store.stalled[key] -= 1
                    self.wfile.write(body[: len(body) // 2])
                    self.rfile.read(1)  # the client has had enough
                    self.close_connection = True
                    return
                self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return Door


@contextmanager
def serving() -> Iterator[Store]:
    """With an empty bucket."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    store = Store(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + WAIT
        while True:
            try:
                store.put("")
                break
            except urllib.error.URLError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield store
    finally:
        store.door.shutdown()
        process.kill()
        process.wait()
