"""Images in S3 and what answers like it: `s3://bucket/key`, listed and read by obstore.

Where it is and who may read it is said in the environment, as to other clients: AWS_REGION,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_ENDPOINT_URL,
AWS_SKIP_SIGNATURE=true for public buckets; or it is the role of the machine. Requests that fail,
and answers that break off, are tried again, up to ten times in three minutes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from densekit.config import UserError
from densekit.data.decode import UnreadableImage

if TYPE_CHECKING:
    from obstore.store import S3Store

SCHEME = "s3://"


class StoreFailed(UserError):  # noqa: N818 (what is raised is what happened)
    """An object store gave no answer, tries included: says nothing of the image."""


def is_object(name: str) -> bool:
    return name.startswith(SCHEME)


def read_object(url: str) -> bytes:
    """An object's bytes. Safe in threads.

    Raises UnreadableImage where there is none or it may not be read, StoreFailed where that
    cannot be told.
    """
    store, key = _place(url)
    from obstore.exceptions import BaseError, PermissionDeniedError

    try:
        return store.get(key).bytes().to_bytes()
    except FileNotFoundError as error:
        raise UnreadableImage(url, "there is no such object") from error
    except PermissionDeniedError as error:
        raise UnreadableImage(url, "may not be read with these credentials") from error
    except BaseError as error:
        raise StoreFailed(f"{url}: cannot be read: {_reason(error)}") from error


def objects_below(url: str) -> Iterator[str]:
    """The URLs of all objects below a prefix, taken as a folder, in the order of the store, which
    is that of the keys' bytes. Raises UserError.
    """
    store, prefix = _place(url)
    from obstore.exceptions import BaseError

    try:
        for found in store.list(prefix):
            for each in found:
                yield f"{SCHEME}{_bucket(url)}/{each['path']}"
    except BaseError as error:
        raise StoreFailed(f"{url}: cannot be listed: {_reason(error)}") from error


def _place(url: str) -> tuple[S3Store, str]:
    """The bucket's store and the key. Raises UserError."""
    bucket = _bucket(url)
    if not bucket:
        raise UserError(f"{url}: names no bucket; write {SCHEME}bucket/prefix")
    return _open_bucket(bucket), url.removeprefix(SCHEME).partition("/")[2]


def _bucket(url: str) -> str:
    return url.removeprefix(SCHEME).partition("/")[0]


@functools.cache
def _open_bucket(bucket: str) -> S3Store:
    """One client a process: it keeps its connections."""
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise UserError(
            f'{SCHEME}{bucket}: reading S3 takes obstore: pip install "densekit[s3]"'
        ) from error
    return S3Store(bucket, client_options={"allow_http": True})


def _reason(error: Exception) -> str:
    """What the store says, or what obstore says without the dump of its internals."""
    said = str(error).partition("\n\nDebug source")[0]
    message = re.search(r"<Message>(.*?)</Message>", said)
    return message[1] if message else " ".join(said.split())
