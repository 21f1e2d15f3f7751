"""Small image files, written with PIL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Writer = Callable[..., Path]


@pytest.fixture(scope="session")
def write_image() -> Writer:
    def write(
        path: Path, size: tuple[int, int] = (10, 8), mode: str = "RGB", seed: int = 0
    ) -> Path:
        """`size` is PIL's (width, height)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
        return path

    return write


@pytest.fixture(scope="session")
def write_folder(write_image: Writer) -> Writer:
    def write(root: Path, counts: dict[str, int], suffix: str = ".png", **how: object) -> Path:
        """One folder per class with so many images, no two alike."""
        for c, (name, count) in enumerate(counts.items()):
            for i in range(count):
                write_image(root / name / f"{i:03d}{suffix}", seed=1000 * c + i, **how)
        return root

    return write
