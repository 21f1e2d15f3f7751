"""weights/fetch.py against a server on loopback that also misbehaves."""

from __future__ import annotations

import hashlib
import http.server
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from networks import TINY, tiny
from safetensors.torch import save

from densekit import api
from densekit.config import UserError
from densekit.files import cache_folder
from densekit.models.densenet import DenseNet
from densekit.weights import fetch, pretrained

CONTENT = bytes(range(256)) * 4096  # a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server does; and what it was asked."""

    url: str = ""
    content: bytes = CONTENT
    etag: str | None = '"one"'
    cuts: list[int] = field(default_factory=list)
    """Bytes after which the next answers end, one for each."""
    length: int | None = None
    """A Content-Length that is not true."""
    ranges: bool = True
    shift: int = 0
    """How far from what was asked its ranges start."""
    missing: tuple[str, ...] = ()
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # the hub's
            gone = any(name in self.path for name in state.missing)
            self.send_response(404 if gone else 200)
            if gone:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("ETag", state.etag or "")
            self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append((self.path, wanted))
            if any(name in self.path for name in state.missing):
                self.send_error(404)
                return
            start = 0
            same = self.headers.get("If-Range") in (None, state.etag)
            if wanted and state.ranges and same:
                start = int(wanted.removeprefix("bytes=").rstrip("-")) + state.shift
                if start >= len(state.content):
                    self.send_error(416)
                    return
            body = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                end, whole = len(state.content) - 1, len(state.content)
                self.send_header("Content-Range", f"bytes {start}-{end}/{whole}")
            if state.etag:
                self.send_header("ETag", state.etag)
            self.send_header("Content-Length", str(state.length or len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, *_: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("DENSEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def starts(server: Server) -> list[str | None]:
    return [wanted for _, wanted in server.asked]


def left() -> list[str]:
    """What is in the cache, without its locks."""
    folder = cache_folder() / "weights"
    return sorted(f.name.split("-", 1)[-1] for f in folder.iterdir() if f.suffix != ".lock")


# Whole --------------------------------------------------------------------------------------


def test_a_file_is_fetched_once(server: Server) -> None:
    for _ in range(2):
        file = fetch.fetch(f"{server.url}/w.pth", f"sha256:{SHA256[:8]}")
        assert file.read_bytes() == CONTENT
    assert starts(server) == [None]
    assert left() == ["w.pth"]


def test_files_of_one_name_are_kept_apart(server: Server) -> None:
    one = fetch.fetch(f"{server.url}/a/w.pth")
    server.content = b"other"
    other = fetch.fetch(f"{server.url}/b/w.pth")
    assert one.read_bytes() == CONTENT
    assert other.read_bytes() == b"other"


def test_several_at_once_fetch_once(server: Server) -> None:
    files: list[Path] = []
    threads = [
        threading.Thread(target=lambda: files.append(fetch.fetch(f"{server.url}/w.pth")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files) == 4
    assert len(server.asked) == 1


def test_md5_where_that_is_published(server: Server) -> None:
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    assert fetch.fetch(f"{server.url}/w.h5", f"md5:{md5}").read_bytes() == CONTENT


# Cut ----------------------------------------------------------------------------------------


def test_a_cut_download_goes_on(server: Server) -> None:
    server.cuts = [300_000, 200_000]
    assert fetch.fetch(f"{server.url}/w.pth").read_bytes() == CONTENT
    assert starts(server) == [None, "bytes=300000-", "bytes=500000-"]


def test_it_goes_on_the_next_time_too(server: Server) -> None:
    server.cuts = [100_000, 100_000, 100_000]
    with pytest.raises(UserError, match=r"truncated at 300000 of 1048576 bytes.*run it again"):
        fetch.fetch(f"{server.url}/w.pth")
    assert fetch.fetch(f"{server.url}/w.pth").read_bytes() == CONTENT
    assert starts(server)[-1] == "bytes=300000-"
    assert left() == ["w.pth"]


def test_another_version_on_the_server_is_begun_anew(server: Server) -> None:
    server.cuts = [100, 100, 100]
    with pytest.raises(UserError):
        fetch.fetch(f"{server.url}/w.pth")
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert fetch.fetch(f"{server.url}/w.pth").read_bytes() == CONTENT[::-1]


def test_without_etag_and_checksum_it_begins_anew(server: Server) -> None:
    server.etag, server.cuts = None, [300_000]
    assert fetch.fetch(f"{server.url}/w.pth").read_bytes() == CONTENT
    assert starts(server) == [None, None]


def test_with_a_checksum_no_etag_is_needed(server: Server) -> None:
    server.etag, server.cuts = None, [300_000]
    assert fetch.fetch(f"{server.url}/w.pth", f"sha256:{SHA256}").read_bytes() == CONTENT
    assert starts(server) == [None, "bytes=300000-"]


def test_a_server_without_ranges(server: Server) -> None:
    server.ranges, server.cuts = False, [300_000]
    assert fetch.fetch(f"{server.url}/w.pth").read_bytes() == CONTENT


# Lies ---------------------------------------------------------------------------------------


def test_a_length_that_is_too_long(server: Server) -> None:
    server.length, server.etag = len(CONTENT) + 1000, None
    with pytest.raises(UserError, match="truncated at 1048576 of 1049576 bytes"):
        fetch.fetch(f"{server.url}/w.pth")


def test_a_length_that_is_too_short(server: Server) -> None:
    server.length = 1000
    with pytest.raises(UserError, match=r"what came has sha256 .* is published"):
        fetch.fetch(f"{server.url}/w.pth", f"sha256:{SHA256}")
    assert left() == []


def test_another_range_than_asked_for(server: Server) -> None:
    server.cuts, server.shift = [300_000], 5
    assert fetch.fetch(f"{server.url}/w.pth").read_bytes() == CONTENT


def test_wrong_bytes_are_thrown_away(server: Server) -> None:
    server.content = b"x" + CONTENT[1:]
    with pytest.raises(UserError, match=rf"and {SHA256[:8]} is published; it was thrown away"):
        fetch.fetch(f"{server.url}/w.pth", f"sha256:{SHA256[:8]}")
    assert left() == []
    server.content = CONTENT
    assert fetch.fetch(f"{server.url}/w.pth", f"sha256:{SHA256[:8]}").read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file(server: Server) -> None:
    server.cuts = [500_000, 1, 1]
    with pytest.raises(UserError):
        fetch.fetch(f"{server.url}/w.pth", f"sha256:{SHA256}")
    server.content = b"short"
    with pytest.raises(UserError, match=r"and .* is published"):
        fetch.fetch(f"{server.url}/w.pth", f"sha256:{SHA256}")


# Not there ----------------------------------------------------------------------------------


def test_a_file_that_is_not_there(server: Server) -> None:
    server.missing = ("w.pth",)
    with pytest.raises(UserError, match=r"/w\.pth: the server answers 404"):
        fetch.fetch(f"{server.url}/w.pth")


def test_offline_is_one_sentence(server: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/w.pth"  # where nobody listens
        with pytest.raises(UserError, match="are you offline") as caught:
            fetch.fetch(url)
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENSEKIT_CACHE", "/dev/null/cache")
    with pytest.raises(UserError, match="/dev/null"):
        fetch.fetch(f"{server.url}/w.pth")


# Hugging Face's hub -------------------------------------------------------------------------


@pytest.fixture
def hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return server


def test_the_hubs_files_in_turn(hub: Server) -> None:
    hub.missing = ("safetensors",)
    for _ in range(2):
        assert fetch.fetch("hf-hub:org/name@v2").read_bytes() == CONTENT
    fetched = [path for path, _ in hub.asked if "/resolve/" in path]
    assert fetched == ["/org/name/resolve/v2/pytorch_model.bin"]
    hub.missing = ("org",)
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        fetch.fetch("hf-hub:org/other")
    with pytest.raises(UserError, match="expected hf-hub:org/name"):
        fetch.fetch("hf-hub:org/name/more")


def test_an_offline_hub_is_one_sentence(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="are you offline") as caught:
        fetch.fetch("hf-hub:org/unheard")
    assert "\n" not in str(caught.value)


def test_the_hub_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "densekit\[hub\]"'):
        fetch.fetch("hf-hub:org/name")


# Why not torch.hub --------------------------------------------------------------------------


def test_torchs_own_download_takes_a_cut_file_for_whole(server: Server, tmp_path: Path) -> None:
    """If torch learns to notice and to go on, most of fetch may go."""
    server.cuts = [300_000]
    torch.hub.download_url_to_file(f"{server.url}/w.pth", str(tmp_path / "w"), progress=False)
    assert (tmp_path / "w").stat().st_size == 300_000


# From a hub into a network ------------------------------------------------------------------


def create_and_compare(server: Server, name: str) -> None:
    state = tiny().state_dict()
    server.content = save(state)
    model = api.create_model("densenet_bc_16_12", num_classes=5, pretrained=name)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_create_model_with_weights_from_a_url(server: Server) -> None:
    create_and_compare(server, f"{server.url}/files/model.safetensors")


def test_create_model_with_weights_from_the_hub(hub: Server) -> None:
    create_and_compare(hub, "hf-hub:org/name")


def test_what_is_no_weights_is_named(server: Server) -> None:
    with pytest.raises(UserError, match=r"-w\.pth: not a file of weights"):
        pretrained.find_weights(f"{server.url}/w.pth", DenseNet(TINY).config)
