"""Images in S3 and what answers like it: `s3://bucket/key`, listed and read (see `remote`)."""

from __future__ import annotations

from collections.abc import Iterator

from densekit.data.decode import UnreadableImage
from densekit.remote import NotThere, StoreFailed, open_store, read_url, reason_of

SCHEME = "s3://"


def is_object(name: str) -> bool:
    return name.startswith(SCHEME)


def read_object(url: str) -> bytes:
    """An object's bytes. Safe in threads.

    Raises UnreadableImage where there is none or it may not be read, StoreFailed where that
    cannot be told.
    """
    try:
        return read_url(url)
    except NotThere as error:
        raise UnreadableImage(url, error.reason) from error


def objects_below(url: str) -> Iterator[str]:
    """The URLs of all objects below a prefix, taken as a folder, in the order of the store, which
    is that of the keys' bytes. Raises UserError.
    """
    store, prefix = open_store(url)
    from obstore.exceptions import BaseError

    bucket = url.removesuffix(prefix).rstrip("/")
    try:
        for found in store.list(prefix):
            for each in found:
                yield f"{bucket}/{each['path']}"
    except BaseError as error:
        raise StoreFailed(f"{url}: cannot be listed: {reason_of(error)}") from error
