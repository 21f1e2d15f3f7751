"""Indexes shards that have no index, such as other programs' WebDataset, from their headers.

The index is made once, and kept in the cache's folder until a shard changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from densekit.config import UserError
from densekit.data.paths import Paths
from densekit.data.shards.index import INDEX_SUFFIX, MEMBER, ShardIndex, index_from_bytes
from densekit.data.shards.place import ShardPlace
from densekit.data.shards.spec import ShardSpec
from densekit.data.shards.tar import TarSample, read_samples
from densekit.files import make_folder, write_atomically
from densekit.progress import bar


def scanned(spec: ShardSpec, place: ShardPlace) -> ShardIndex:
    """In the shards' own order. Raises UserError."""
    shards = place.shards(spec.names)
    identity = "\n".join(f"{place.name(s)} {s.size} {s.version}" for s in shards)
    kept = place.cache.folder / f"{hashlib.sha256(identity.encode()).hexdigest()}{INDEX_SUFFIX}"
    if kept.is_file():
        return index_from_bytes(kept.read_bytes(), str(kept))
    found: list[list[TarSample]] = []
    for shard in bar(shards, len(shards), f"indexing {spec.origin}"):
        with place.file(shard).open("rb") as file:
            found.append(list(read_samples(file, place.name(shard))))
    samples = [sample for each in found for sample in each]
    members = np.zeros(len(samples), MEMBER)
    members["offset"] = [sample.offset for sample in samples]
    members["size"] = [sample.size for sample in samples]
    members["shard"] = np.repeat(np.arange(len(found)), [len(each) for each in found])
    names = Paths.of(sample.key + sample.suffix for sample in samples)
    labels = _label_array(samples, spec.origin)
    index = ShardIndex(shards, members, labels, names, {}, has_checksums=False)
    make_folder(kept.parent)
    write_atomically(kept, index.to_bytes())
    return index


def _label_array(samples: Sequence[TarSample], origin: str) -> np.ndarray:
    """int64 [n], or int8 [n, K]. Raises UserError if only some images have several classes."""
    single = [sample.labels for sample in samples if isinstance(sample.labels, int)]
    several = [sample.labels for sample in samples if not isinstance(sample.labels, int)]
    if single and several:
        raise UserError(f"{origin}: some images have one class and some have several")
    if not several:
        return np.array(single, np.int64)
    count = max((label for sets in several for some in sets for label in some), default=-1) + 1
    labels = np.zeros((len(several), count), np.int8)
    for row, (there, unknown) in zip(labels, several, strict=True):
        row[list(there)], row[list(unknown)] = 1, -1
    return labels
