"""Images in S3 and compatible stores: lists and reads `s3://bucket/key` (see `remote`)."""

from __future__ import annotations

from collections.abc import Iterator

from densekit.data.decode import UnreadableImage
from densekit.remote import NotThere, StoreFailed, open_store, read_url, reason_of

SCHEME = "s3://"


def is_object(name: str) -> bool:
    return name.startswith(SCHEME)


def read_object(url: str) -> bytes:
    """An object's bytes. Thread-safe.

    Raises UnreadableImage if it is missing or access is denied, StoreFailed if the store does not
    answer.
    """
    try:
        return read_url(url)
    except NotThere as error:
        raise UnreadableImage(url, error.reason) from error


def objects_below(url: str) -> Iterator[str]:
    """The URLs of all objects below a prefix, treated as a folder, in the store's order: by the
    keys' bytes. Raises UserError.
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
