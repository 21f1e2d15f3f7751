"""Training states on disk: whole or not at all, checked when read, written beside the training.

A state is one file, `step-00001234-<first 16 hex digits of its SHA-256>.pt`. It is written under a
temporary name, flushed to the disk and renamed, so that the rename alone publishes content and
checksum together: a file that has its name is whole unless the disk changed it afterwards.
"""

from __future__ import annotations

import copy
import hashlib
import io
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from densekit.config import UserError
from densekit.files import write_atomically

STATE_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")
State = dict[str, Any]
STATE_FORMAT = 1


@dataclass
class Progress:
    """Where a run stands: with the learner's, all that a training state holds."""

    step: int = 0
    """Optimizer steps done."""
    epochs: int = 0
    """Epochs that are trained and evaluated."""
    last: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    stale: int = 0
    """Evaluations since the best."""
    skipped: list[int] = field(default_factory=list)
    """Steps without an update: their loss or gradient was not finite."""
    bad_images: dict[int, str] = field(default_factory=dict)
    """Training images that were left out, by position, and why they cannot be read."""
    images: float = 0.0
    seconds: float = 0.0
    """Of training alone: with images, the run's images per second."""
    window: dict[str, Any] = field(default_factory=dict)
    """Sums of the steps since the last line of the log."""
    lines: int = 0
    """Of log.jsonl: a resumed run cuts it back to these."""

    def with_other_images(self, before: int, now: int) -> Progress:
        """The same place in a run whose lists have changed: steps per epoch `before` and `now`."""
        in_epoch = min(self.step - self.epochs * before, now)
        step = self.epochs * now + in_epoch
        return replace(self, step=step, skipped=[], bad_images={})


class StateFolder:
    """The `state/` folder of a run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.corrupt: dict[Path, str] = {}
        """Files that were found corrupt, and how; they stay, and do not count as kept."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="densekit-state")
        self._writing: Future[None] | None = None

    def files(self) -> list[Path]:
        """Published states, oldest first (of two at one step the one written later is newer)."""
        found = [f for f in self.folder.glob("step-*.pt") if STATE_NAME.fullmatch(f.name)]
        return sorted(found, key=lambda f: (step_of(f), f.stat().st_mtime_ns))

    def save(self, step: int, state: State) -> None:
        """Copies `state` to host memory now and writes it in the background.

        Raises UserError here or in `wait` when an earlier write failed: a full or read-only disk.
        """
        self.wait()
        self._writing = self._writer.submit(self._publish, step, _on_host(state))

    def wait(self) -> None:
        """Until the last `save` stands on the disk."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def newest(self) -> State | None:
        """The newest state that is whole; None if there was never one."""
        file = self.newest_file()
        return None if file is None else read_state(file)

    def newest_file(self) -> Path | None:
        """Its file. Corrupt ones are passed over and noted; UserError if all are corrupt."""
        files = self.files()
        for file in reversed(files):
            try:
                read_state(file)
            except UserError as damage:
                self.corrupt[file] = f"{damage}; going on from the state before it"
            else:
                return file
        if files:
            raise UserError(
                f"{self.folder}: all of its {len(files)} states are corrupt; to start again, set "
                f"loop.output_dir to a new folder"
            )
        return None

    def _publish(self, step: int, state: State) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        target = self.folder / f"step-{step:08d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        write_atomically(target, content)
        self.corrupt.pop(target, None)  # of the same content, and whole again
        others = [f for f in self.files() if f != target and f not in self.corrupt]
        replaced = [f for f in others if step_of(f) == step]
        older = [f for f in others if step_of(f) != step]
        for old in [*replaced, *older[: max(0, len(older) - (self.keep - 1))]]:
            old.unlink()


def read_state(file: Path) -> State:
    """A state whose content has the checksum in its name. Raises UserError."""
    name = STATE_NAME.fullmatch(file.name)
    if not name:
        raise UserError(f"{file}: not a training state; they are named step-<step>-<checksum>.pt")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest()[:16] != name[2]:
        raise UserError(f"{file}: corrupt: its content does not have the checksum in its name")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def step_of(file: Path) -> int:
    name = STATE_NAME.fullmatch(file.name)
    assert name, file
    return int(name[1])


def _on_host(state: State) -> State:
    """A copy that later steps cannot change, tensors in host memory."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: _on_host(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_on_host(value) for value in state)
    return copy.copy(state)
