"""Files in other places, read by obstore: s3://bucket/key, gs://, az://, https://, hf://.

Where a store is and who may read it is said in the environment, as to other clients: AWS_REGION,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_ENDPOINT_URL,
AWS_SKIP_SIGNATURE=true for public buckets, and obstore's names that begin with GOOGLE_ and AZURE_;
or it is the role of the machine. hf://datasets/ORG/NAME@REVISION/file is a file of Hugging Face's
hub, whose address and token huggingface_hub knows. Requests that fail, and answers that break off,
are tried again, up to ten times in three minutes.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import signal
import sys
import urllib.parse
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from densekit.config import UserError, needs_extra

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

T = TypeVar("T")
HTTP = ("http", "https")
HUB = "hf"
SCHEMES = ("s3", "gs", "az", HUB, *HTTP)
HUB_FOLDERS = {"datasets": "dataset", "spaces": "space"}  # of a repository that is no model's
STALLED = "30s"  # a request of a few MiB that takes longer is tried again


class StoreFailed(UserError):  # noqa: N818 (what is raised is what happened)
    """A store gave no answer, tries included: says nothing of what was asked for."""


class NotThere(UserError):  # noqa: N818
    """There is no such object, or it may not be read; `reason` says which."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}")
        self.url, self.reason = url, reason

    def __reduce__(self) -> tuple[type[NotThere], tuple[str, str]]:
        return type(self), (self.url, self.reason)


class Facts(NamedTuple):
    """What a store says of an object."""

    size: int
    version: str
    """Another one after every change."""


def is_url(name: str) -> bool:
    return name.partition("://")[0] in SCHEMES and "://" in name


def facts_of(url: str) -> Facts:
    """Raises NotThere and StoreFailed."""
    found = _asked(url, lambda store, key: store.head(key))
    return Facts(found["size"], str(found["e_tag"] or found["last_modified"]))


def read_url(url: str) -> bytes:
    """All of an object. Safe in threads. Raises NotThere and StoreFailed."""
    return _asked(url, lambda store, key: store.get(key).bytes().to_bytes())


def read_range(url: str, start: int, size: int) -> bytes:
    """A part of it; fewer bytes at its end. Raises NotThere and StoreFailed."""
    return _asked(url, lambda store, key: store.get_range(key, start=start, length=size).to_bytes())


def _asked(url: str, ask: Callable[[ObjectStore, str], T]) -> T:
    store, key = open_store(url)
    from obstore import exceptions

    try:
        return ask(store, key)
    except FileNotFoundError as error:
        raise NotThere(url, "there is no such object") from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise NotThere(url, "may not be read with these credentials") from error
    except exceptions.NotSupportedError as error:
        raise StoreFailed(f"{url}: its server does not hand out parts of files (Range)") from error
    except exceptions.BaseError as error:
        raise StoreFailed(f"{url}: cannot be read: {reason_of(error)}") from error


def open_store(url: str) -> tuple[ObjectStore, str]:
    """The store and the key in it. Raises UserError."""
    scheme, _, rest = url.partition("://")
    names = (3 if rest.partition("/")[0] in HUB_FOLDERS else 2) if scheme == HUB else 1
    parts = rest.split("/", names)
    bucket, key = "/".join(parts[:names]), "".join(parts[names:])
    if not all(parts[:names]) or len(parts) < names:
        needed = "datasets/ORG/NAME" if scheme == HUB else "bucket"
        raise UserError(f"{url}: names no {needed}; write {scheme}://{needed}/prefix")
    if scheme in HTTP:
        if "?" in key:
            raise UserError(f"{url}: parameters after a ? are not supported")
        key = urllib.parse.unquote(key)  # which obstore quotes again
    return _open_bucket(scheme, bucket, os.getpid()), key


_used_by: int | None = None  # the process whose threads obstore started


@functools.cache
def _open_bucket(scheme: str, bucket: str, process: int) -> ObjectStore:
    """One client a process: it keeps its connections."""
    global _used_by
    if _used_by not in (None, process):
        raise UserError(
            f"{scheme}://{bucket}: this process was forked from one that had read from a store, "
            f"which obstore's threads do not survive; begin with a new process"
        )
    with needs_extra("s3", f"{scheme}://{bucket}: reading it"):
        from obstore.store import HTTPStore, S3Store, from_url
    place, headers = _hub_place(bucket) if scheme == HUB else (f"{scheme}://{bucket}", {})
    _used_by = process
    options: ClientConfig = {"allow_http": True, "timeout": STALLED}
    if scheme == "s3":
        return S3Store(bucket, client_options=options)
    if scheme in (HUB, *HTTP):
        return HTTPStore.from_url(place, client_options={**options, "default_headers": headers})
    return from_url(place, client_options=options)


def _hub_place(repository: str) -> tuple[str, dict[str, str]]:
    """The URL below which the hub has the files of `datasets/ORG/NAME@REVISION`, and what is to be
    sent with each request; where the hub leads elsewhere, that does not see the token."""
    with needs_extra("hub", f"{HUB}://{repository}: reading it"):
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

    name, _, revision = repository.partition("@")
    folder, _, below = name.partition("/")
    kind = HUB_FOLDERS.get(folder)
    revision = urllib.parse.unquote(revision)
    try:
        url = hf_hub_url(below if kind else name, "x", repo_type=kind, revision=revision or None)
    except ValueError as error:
        raise UserError(f"{HUB}://{repository}: {error}") from error
    return url.removesuffix("/x"), build_hf_headers(library_name="densekit")


def reason_of(error: Exception) -> str:
    """What the store says, or what obstore says without the dump of its internals."""
    said = str(error).partition("\n\nDebug source")[0]
    message = re.search(r"<Message>(.*?)</Message>", said)
    return message[1] if message else " ".join(said.split())


def apart(work: Callable[[], T]) -> T:
    """`work()`, in a process of its own where this one may yet fork loaders.

    obstore's threads do not survive a fork, so a process that has used it has no children that
    can. Raises what it raises.
    """
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return work()
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_answer, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()
    try:
        done, answer = ours.recv()
    except EOFError:
        process.join()
        raise StoreFailed(
            f"a process that read from a store was killed ({process.exitcode})"
        ) from None
    finally:
        ours.close()
        process.kill()  # which has said all, or is not waited for any more
        process.join()
    if not done:
        raise answer
    return answer


def _answer(to: Connection, work: Callable[[], T]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C, which the other answers
    try:
        to.send((True, work()))
    except UserError as error:
        to.send((False, error))
