"""A plain web server on loopback that hands out a folder's shards, counts them and misbehaves."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PARTS = 4  # of an answer, between which `pause` seconds pass


class WebServer:
    """Without indices, unless `all_files`. `broken[name]` answers break off in their middle."""

    def __init__(self, folder: Path, all_files: bool = False) -> None:
        self.folder, self.all_files = folder, all_files
        self.gets: Counter[str] = Counter()
        """Bodies that were asked for, by file."""
        self.whole: Counter[str] = Counter()
        """Of these, those of all of a file."""
        self.broken: Counter[str] = Counter()
        self.tokens: list[str | None] = []
        self.pause = 0.0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                file = server.folder / self.path.lstrip("/")
                if not file.is_file() or not (server.all_files or file.suffix == ".tar"):
                    self.send_error(404)
                    return
                content = file.read_bytes()
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                first, last = 0, len(content) - 1
                if asked:
                    first, last = int(asked[1]), min(int(asked[2]), last)
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
                else:
                    self.send_response(200)
                part = content[first : last + 1]
                self.send_header("Content-Length", str(len(part)))
                self.send_header("ETag", '"1"')
                self.send_header("Last-Modified", "Sat, 28 Nov 2026 00:00:00 GMT")
                self.end_headers()
                server.tokens.append(self.headers.get("Authorization"))
                if self.command == "GET":
                    server.gets[file.name] += 1
                    server.whole[file.name] += len(part) == len(content)
                    self.send_body(file.name, part)

            do_HEAD = do_GET  # noqa: N815

            def send_body(self, name: str, body: bytes) -> None:
                if server.broken[name] > 0:
                    server.broken[name] -= 1
                    body, self.close_connection = body[: len(body) // 2], True
                step = -(-len(body) // PARTS)
                for start in range(0, len(body), step):
                    time.sleep(server.pause)
                    self.wfile.write(body[start : start + step])

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:  # a client that was killed
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextmanager
def web_server(folder: Path, all_files: bool = False) -> Iterator[WebServer]:
    made = WebServer(folder, all_files)
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
