"""The index of a set of shards: each image's position (24 bytes), name and labels.

One .npz file of numpy beside the shards, written atomically, with a checksum of each array.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from densekit.config import UserError
from densekit.data.paths import Paths

INDEX_FORMAT = 1
INDEX_SUFFIX = "-index.npz"
MEMBER = np.dtype([("offset", "<u8"), ("size", "<u8"), ("shard", "<u4"), ("crc32", "<u4")])
COLUMN = "column:"  # prefix of an array's name, before the column's


class Shard(NamedTuple):
    """A tar file."""

    name: str
    size: int
    """Bytes."""
    sha256: str | None = None
    """None: unknown."""
    version: str | None = None
    """If sha256 is None: a tag that changes with the content."""


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """n images in shards, in the order of the packed list or folder."""

    shards: tuple[Shard, ...]
    members: np.ndarray
    """MEMBER [n]; `shard` is a position in shards."""
    labels: np.ndarray
    """As in Examples."""
    names: Paths
    """Each image's original path below the root of the list or folder."""
    classes: Mapping[int, str]
    is_folder: bool = False
    """Whether labels come from the order of class folders."""
    unlisted: int = 0
    """As in Examples."""
    has_checksums: bool = True
    """Whether `crc32` holds any."""
    packed: Mapping[str, Any] = field(default_factory=dict)
    """The options of `densekit data pack`."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """As in Examples."""

    def to_bytes(self) -> bytes:
        about = {
            "format": INDEX_FORMAT,
            "shards": self.shards,
            "classes": {str(label): name for label, name in self.classes.items()},
            "is_folder": self.is_folder,
            "unlisted": self.unlisted,
            "has_checksums": self.has_checksums,
            "packed": self.packed,
        }
        arrays: dict[str, Any] = {
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
            "members": self.members,
            "labels": self.labels,
            "names": np.frombuffer(self.names.text.replace(b"\0", b""), np.uint8),
            "name_ends": self.names.ends - np.arange(len(self.names)),
            **{COLUMN + head: column.astype(str) for head, column in self.columns.items()},
        }
        out = io.BytesIO()
        np.savez(out, **arrays)
        return out.getvalue()

    def of_shards(self, chosen: Sequence[str], origin: str) -> ShardIndex:
        """Only the images in these shards. Raises UserError for one that the index lacks."""
        numbers = {shard.name: number for number, shard in enumerate(self.shards)}
        missing = next((name for name in chosen if name not in numbers), None)
        if missing is not None:
            raise UserError(
                f"{origin}: lists {len(self.shards)} shards but not {missing}; name shards that it "
                f"lists, or remove it to index the shards again"
            )
        if len(set(chosen)) == len(self.shards):
            return self
        kept = np.isin(self.members["shard"], [numbers[name] for name in chosen])
        names = self.names.take(np.flatnonzero(kept))
        columns = {head: column[kept] for head, column in self.columns.items()}
        return replace(
            self, members=self.members[kept], labels=self.labels[kept], names=names, columns=columns
        )


def index_from_bytes(content: bytes, origin: str) -> ShardIndex:
    """Parses what `to_bytes` made; `origin` is its file. Raises UserError."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as whole:
            if broken := whole.testzip():
                raise ValueError(f"the checksum of {broken} does not match")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["format"] != INDEX_FORMAT:
                raise UserError(
                    f"{origin}: has format {about['format']}, this densekit reads {INDEX_FORMAT}"
                )
            index = ShardIndex(
                shards=tuple(Shard(*shard) for shard in about["shards"]),
                members=arrays["members"].astype(MEMBER, copy=False),
                labels=arrays["labels"],
                names=_names(arrays["names"], arrays["name_ends"]),
                classes={int(label): name for label, name in about["classes"].items()},
                is_folder=about["is_folder"],
                unlisted=about["unlisted"],
                has_checksums=about["has_checksums"],
                packed=about["packed"],
                columns={
                    head.removeprefix(COLUMN): arrays[head].astype(object)
                    for head in arrays.files
                    if head.startswith(COLUMN)
                },
            )
    except UserError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds for corrupt files
        raise UserError(
            f"{origin}: is corrupt ({error}); put an intact copy in its place"
        ) from error
    lengths = {len(index.members), len(index.labels), len(index.names)}
    if len(lengths) > 1 or index.members["shard"].max(initial=0) >= max(len(index.shards), 1):
        raise UserError(
            f"{origin}: is corrupt: its arrays do not match; put an intact copy in its place"
        )
    return index


def _names(text: np.ndarray, ends: np.ndarray) -> Paths:
    """`text` has the names without separators; `ends` is where each ends."""
    apart = np.insert(text, ends[:-1], 0) if len(ends) else text
    return Paths(apart.tobytes(), ends + np.arange(len(ends)))
