"""A loss or gradient that is not finite: what is said, what is kept, when the run stops."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from densekit import distributed
from densekit.config import UserError
from densekit.data.listing import Examples
from densekit.files import write_atomically
from densekit.training.log import Reading, RunLog

FILES_NAMED = 8  # files in a message; the kept batch has them all


class NonFinite(Exception):  # noqa: N818 (an event of training, see loop.on_nonfinite=rollback)
    """A step whose loss or gradient is not finite, under loop.on_nonfinite=rollback."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(f"step {reading.step}")
        self.reading = reading


def leave_out(reading: Reading, log: RunLog, what: str) -> dict[str, Any]:
    """Notes a step that makes no update; returns its event, still without the event's own step.

    Raises UserError under loop.on_nonfinite=stop, and after loop.max_skips such steps; this
    rank's share of the batch is then kept in the run's folder.
    """
    plan, loop, folder = log.plan, log.plan.recipe.loop, log.folder
    named = files(reading, plan.train)
    text = describe_step(reading, named, plan.steps_per_epoch)
    skipped = log.progress.skipped
    if loop.on_nonfinite == "stop" or len(skipped) >= loop.max_skips:
        kept = keep_batch(reading, plan.train, folder.path)
        folder.states.wait()
        newest = folder.states.newest_file() if distributed.is_main() else None
        remedy = (
            "go on with a lower optim.lr in a new folder, or leave such batches out with "
            "loop.on_nonfinite=skip or rollback"
            if loop.on_nonfinite == "stop"
            else f"loop.max_skips={loop.max_skips} batches have been left out before it"
        )
        raise UserError(
            f"{text}\nits images are kept in {kept}; the last good state is {newest}\n{remedy}",
            shared=True,
        )
    skipped.append(reading.step)
    log.bars.say(f"{text}: {what}")
    return {"kind": "event", "event": what, "bad_step": reading.step + 1, "files": named}


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
    images = [batch.images.cpu() for batch in reading.batches]
    labels = [batch.labels for batch in reading.batches]
    own = _own_files(reading, examples)
    torch.save({"images": torch.cat(images), "labels": torch.cat(labels), "files": own}, content)
    if folder.exists():  # other machines need not share it
        write_atomically(target, content.getbuffer())
    return target


def describe_step(reading: Reading, named: list[str], steps_per_epoch: int) -> str:
    """Which step, at what rate, on which files."""
    epoch, more = reading.step // steps_per_epoch + 1, len(named) - FILES_NAMED
    shown = ", ".join(named[:FILES_NAMED]) + (f" and {more} more" if more > 0 else "")
    return (
        f"step {reading.step + 1} (epoch {epoch}, learning rate {reading.rate:.4g}): the loss or a "
        f"gradient is not finite; batch: {shown}"
    )
