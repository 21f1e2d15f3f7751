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
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from densekit.config import UserError
from densekit.files import write_atomically

STATE_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")
State = dict[str, Any]


class StateFolder:
    """The `state/` folder of a run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
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
        return None if file is None else read(file)

    def newest_file(self) -> Path | None:
        """Its file. Damaged ones are passed over with a warning; UserError if all are damaged."""
        files = self.files()
        for file in reversed(files):
            try:
                read(file)
            except UserError as damage:
                warnings.warn(f"{damage}; going on from the state before it", stacklevel=2)
            else:
                return file
        if files:
            raise UserError(
                f"{self.folder}: none of its {len(files)} states is whole; to start again, set "
                f"loop.output_dir to a new folder"
            )
        return None

    def _publish(self, step: int, state: State) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        target = self.folder / f"step-{step:08d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        write_atomically(target, content)
        others = [file for file in self.files() if file != target]
        for old in others[: max(0, len(others) - (self.keep - 1))]:
            old.unlink()


def read(file: Path) -> State:
    """A state whose content has the checksum in its name. Raises UserError."""
    name = STATE_NAME.fullmatch(file.name)
    if not name:
        raise UserError(f"{file}: not a training state; they are named step-<step>-<checksum>.pt")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest()[:16] != name[2]:
        raise UserError(f"{file}: damaged: its content does not have the checksum in its name")
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
