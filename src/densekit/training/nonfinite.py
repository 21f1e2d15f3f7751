"""A loss or gradient that is not finite: what is said of it, and what is kept for a look."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from densekit import distributed
from densekit.data.listing import Examples
from densekit.files import write_atomically
from densekit.training.log import Reading

NAMED = 8  # files in a message; the kept batch has them all


def files(reading: Reading, examples: Examples) -> list[str]:
    """The files of the step's batch, of all ranks in rank order; on rank 0."""
    own = _own_files(reading, examples)
    return [file for names in distributed.gather_objects(own) or [] for file in names]


def _own_files(reading: Reading, examples: Examples) -> list[str]:
    return [examples.paths[i] for batch in reading.batches for i in batch.indices.tolist()]


def keep_batch(reading: Reading, examples: Examples, folder: Path) -> Path:
    """Writes this rank's share of the batch: uint8 images, labels, files."""
    rank = f"-rank{distributed.rank()}" if distributed.world_size() > 1 else ""
    target = folder / f"nonfinite-step-{reading.step + 1:08d}{rank}.pt"
    content = io.BytesIO()
    images = [batch.images for batch in reading.batches]
    labels = [batch.labels for batch in reading.batches]
    own = _own_files(reading, examples)
    torch.save({"images": torch.cat(images), "labels": torch.cat(labels), "files": own}, content)
    if folder.exists():  # other machines need not share it
        write_atomically(target, content.getbuffer())
    return target


def describe(reading: Reading, named: list[str], steps_per_epoch: int) -> str:
    """Which step, at what rate, on which files."""
    epoch, more = reading.step // steps_per_epoch + 1, len(named) - NAMED
    shown = ", ".join(named[:NAMED]) + (f" and {more} more" if more > 0 else "")
    return (
        f"step {reading.step + 1} (epoch {epoch}, learning rate {reading.lr:.4g}): the loss or a "
        f"gradient is not finite; batch: {shown}"
    )
