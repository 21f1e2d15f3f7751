"""Downloads files of weights once: resumed, checked, kept in a cache folder.

Hugging Face's hub is huggingface_hub's business, its own cache included. A file by URL is fetched
here, since torch.hub's download takes a connection that was cut for the end of the file, begins
again from nothing, and knows no md5 (tests/weights/test_fetch.py shows it). Its cache is
$DENSEKIT_CACHE, else $XDG_CACHE_HOME/densekit, else ~/.cache/densekit; a download stands there as
`.part` until it is whole and its checksum, where one is published, is right.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from densekit.config import UserError, needs_extra
from densekit.files import cache_folder, digest, make_folder

ATTEMPTS = 3  # times that an interrupted download is resumed before it is an error
TIMEOUT = 30.0  # seconds without a byte
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class _Cut(Exception):  # noqa: N818
    """The connection ended before the file did."""


def fetch(url: str, checksum: str | None = None) -> Path:
    """The file at `url`, http(s) or hf-hub:org/name[@revision], from the cache or the network.

    Raises UserError when offline, for another file than `checksum`, and for a full disk.
    """
    return _fetch_from_hub(url) if url.startswith("hf-hub:") else _fetch(url, checksum)


def fetch_artifact(name: str) -> Path:
    """The folder of the artifact hf-hub:org/name[@revision], of one commit, in the hub's cache.

    Raises UserError as `fetch` does, and where the repository holds no artifact of densekit.
    """
    with _hub_errors(name, "the artifact"):
        from huggingface_hub import snapshot_download

        repository, revision, endpoint = _hub_place(name)
        wanted = ["model.safetensors", "config.json"]
        folder = snapshot_download(
            repository, revision=revision, endpoint=endpoint, allow_patterns=wanted
        )
    lacks = [file for file in wanted if not (Path(folder) / file).is_file()]
    if lacks:
        raise UserError(f"{name}: no artifact of densekit: it holds no {lacks[0]}")
    return Path(folder)


def _fetch_from_hub(name: str) -> Path:
    """The first of HUB_FILES that a repository of Hugging Face's hub has."""
    for file in HUB_FILES:
        with _hub_errors(name, file):
            from huggingface_hub import errors, hf_hub_download

            repository, revision, endpoint = _hub_place(name)
            try:
                return Path(hf_hub_download(repository, file, revision=revision, endpoint=endpoint))
            except errors.LocalEntryNotFoundError:
                raise
            except errors.EntryNotFoundError:
                continue
    raise UserError(f"{name}: holds neither {' nor '.join(HUB_FILES)}")


def _hub_place(name: str) -> tuple[str, str | None, str | None]:
    """hf-hub:org/name[@revision] -> repository, revision, the hub's address if it is another."""
    repository, _, revision = name.removeprefix("hf-hub:").partition("@")
    return repository, revision or None, os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _hub_errors(name: str, what: str) -> Iterator[None]:
    """What huggingface_hub raises, as UserErrors."""
    with needs_extra("hub", f"{name}: fetching from the hub"):
        from huggingface_hub import errors
    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{name}: the hub cannot be reached; are you offline? Fetch {what} elsewhere and "
            f"give its path"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(
            f"{name}: expected hf-hub:org/name, such as hf-hub:timm/densenet121.ra_in1k"
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name}: the hub does not give {what}: {reason}") from error


def _fetch(url: str, checksum: str | None) -> Path:
    folder = cache_folder() / "weights"
    make_folder(folder)
    file = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{url.rsplit('/', 1)[-1]}"
    part = file.with_name(file.name + ".part")
    try:
        with FileLock(f"{file}.lock"):  # several ranks, one download
            if not file.exists():
                _download(url, part, checksum is not None)
                _check(url, part, checksum)
                part.replace(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}") from error
    return file


def _download(url: str, part: Path, checked: bool) -> None:
    """All of `url` in `part`, going on from what is there."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _go_on(url, part, checked)
        except _Cut as error:
            if attempt == ATTEMPTS:
                raise UserError(
                    f"{url}: {error}, {ATTEMPTS} times; what came is kept: run it again to go on"
                ) from error
    raise AssertionError


def _go_on(url: str, part: Path, checked: bool) -> None:
    """Without a checksum, only what the server says is the same file is gone on with."""
    tag = part.with_suffix(".etag")
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "densekit"}
    if have and tag.exists():
        headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text(encoding="utf-8")}
    elif have and checked:
        headers |= {"Range": f"bytes={have}-"}
    with _open(urllib.request.Request(url, headers=headers), part) as answer:
        if answer.status == 206:
            if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                part.unlink()
                raise _Cut("the server answers with another part than asked for")
        else:
            have = 0
        etag = answer.headers.get("ETag", "")
        tag.unlink(missing_ok=True)
        if etag and not etag.startswith("W/"):
            tag.write_text(etag, encoding="utf-8")
        length = answer.headers.get("Content-Length", "")
        total = int(length) + have if length.isdecimal() else None
        with part.open("ab" if have else "wb") as file:
            _copy(answer, file, have, total, url)
    tag.unlink(missing_ok=True)


def _open(request: urllib.request.Request, part: Path) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the part is as long as the file
            part.unlink(missing_ok=True)
            raise _Cut("the part that was kept did not fit the file") from error
        raise UserError(
            f"{request.full_url}: the server answers {error.code} {error.reason}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{request.full_url}: cannot be reached ({reason}); are you offline? Fetch the file "
            f"elsewhere and give its path"
        ) from error


def _copy(answer: Any, file: IO[bytes], done: int, total: int | None, url: str) -> None:
    with _bar() as bar:
        task = bar.add_task(url.rsplit("/", 1)[-1], completed=done, total=total)
        while chunk := _read(answer, done, total):
            file.write(chunk)
            done += len(chunk)
            bar.update(task, completed=done)
    if total is not None and done != total:
        raise _Cut(f"truncated at {done} of {total} bytes")


def _read(answer: Any, done: int, total: int | None) -> bytes:
    try:
        return answer.read(1 << 18)
    except (http.client.HTTPException, OSError) as error:
        raise _Cut(f"truncated at {done} of {total or '?'} bytes") from error


def _bar() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _check(url: str, part: Path, checksum: str | None) -> None:
    kind, _, expected = (checksum or "").partition(":")
    if not expected:
        return
    found = digest(part, kind)
    if not found.startswith(expected):
        part.unlink()
        raise UserError(
            f"{url}: what came has {kind} {found[: len(expected)]}, and {expected} is published; "
            f"it was thrown away: try again, or fetch it elsewhere and give its path"
        )
