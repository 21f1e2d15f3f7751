"""Folders of images, and their shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from densekit.data.shards.pack import Packed, PackOptions, pack_splits

Packer = Callable[..., list[Packed]]


@pytest.fixture(scope="session")
def pack_into() -> Packer:
    def packed(
        source: Path, folder: Path, split: str | None = None, **options: int
    ) -> list[Packed]:
        """With `task`, and the fields of PackOptions."""
        task = str(options.pop("task", "multiclass"))
        asked = PackOptions(**{"shard_images": 4, **options})
        return pack_splits(str(source), folder, split, task, asked)[0]

    return packed
