"""A run's folder: recipe.yaml, log.jsonl, curves.png, state/, best/, last/; held by one run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import filelock

from densekit.config import UserError, build, read_yaml, to_yaml
from densekit.files import make_folder, write_atomically
from densekit.training.recipe import Recipe, differences
from densekit.training.state import StateFolder, read

Line = dict[str, Any]
LOCK_PATIENCE = 5.0  # seconds: the kernel may still be freeing a killed run's lock


class RunFolder:
    """The folder of `recipe`; `open_` it on rank 0 before anything is written."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.states = StateFolder(path / "state", keep)
        self.log_file = path / "log.jsonl"
        self._log: TextIO | None = None
        self._lock: filelock.BaseFileLock | None = None

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def last(self) -> Path:
        return self.path / "last"

    def open_(self, recipe: Recipe) -> None:
        """Takes the folder for a run of `recipe`: a new or empty one, or one of the same recipe.

        Raises UserError for a folder of something else, of another recipe, or in use.
        """
        ours = self.path / "recipe.yaml"
        if self.path.exists():
            self._refuse_foreign()
        else:
            make_folder(self.path)
        self.hold(rank=0)
        if ours.exists():
            self._refuse_other(recipe, build(Recipe, read_yaml(ours)))
        for leftover in self.path.rglob(".*.tmp"):
            leftover.unlink()
        # first of all: a folder with anything else and no recipe.yaml is taken for somebody's own
        write_atomically(ours, to_yaml(recipe.model_dump(mode="json")).encode())
        make_folder(self.path / "state")

    def hold(self, rank: int) -> None:
        """Locks the folder for this rank until the process ends, however it ends.

        Rank 0 first waits for the ranks of a run before it: orphans may outlive their rank 0.
        Machines that do not share the folder have nothing to lock.
        """
        if not self.path.exists() or self._lock is not None:
            return
        self._lock = self._acquire(self.path / f".lock-{rank}")
        if rank == 0:
            for other in sorted(self.path.glob(".lock-*")):
                if other.name != ".lock-0":
                    self._acquire(other).release()

    def _acquire(self, file: Path) -> filelock.BaseFileLock:
        lock = filelock.FileLock(file)
        try:
            lock.acquire(timeout=LOCK_PATIENCE)
        except filelock.Timeout as busy:
            raise UserError(
                f"{self.path}: another run holds this folder ({file.name}); wait for it or stop "
                f"it, or set loop.output_dir"
            ) from busy
        except OSError as error:
            raise UserError(f"{file}: cannot be locked: {error.strerror}") from error
        return lock

    def close(self) -> None:
        """Lets the folder go."""
        self.states.wait()
        self._close_log()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _refuse_foreign(self) -> None:
        if not self.path.is_dir():
            raise UserError(f"{self.path}: is a file; set loop.output_dir to a folder")
        named = [f.name for f in self.path.iterdir() if not f.name.startswith(".")]
        if named and "recipe.yaml" not in named:
            raise UserError(
                f"{self.path}: holds files that are not a run's ({named[0]}, ...); "
                f"set loop.output_dir to a new folder"
            )

    def _refuse_other(self, recipe: Recipe, theirs: Recipe) -> None:
        if recipe.loop.resume != "auto":
            raise UserError(
                f"{self.path}: already holds a run and loop.resume={recipe.loop.resume}; set "
                f"loop.output_dir to a new folder, or go on with loop.resume=auto"
            )
        changed = differences(theirs, recipe)
        if changed:
            raise UserError(
                f"{self.path}: holds a run of another recipe:\n  "
                + "\n  ".join(changed)
                + "\nto go on, leave these as they were; to start anew, set loop.output_dir"
            )

    def adopt(self, origin: Path, recipe: Recipe) -> None:
        """Begins this new folder with the newest state, the log and best/ of another run's.

        `origin` is a run's folder, or one state file in its state/. Raises UserError.
        """
        if not origin.exists():
            raise UserError(f"--resume {origin}: there is no such file or folder")
        run = origin.parent.parent if origin.is_file() else origin
        if not (run / "recipe.yaml").exists():
            raise UserError(f"--resume {origin}: not a run's folder, nor a state in one")
        changed = differences(build(Recipe, read_yaml(run / "recipe.yaml")), recipe)
        if changed:
            raise UserError(
                f"--resume {origin}: a run of another recipe:\n  " + "\n  ".join(changed)
            )
        state = origin if origin.is_file() else StateFolder(run / "state", 1).newest_file()
        if state is None:
            raise UserError(f"--resume {origin}: it holds no training state")
        read(state)
        for file in (run / "log.jsonl", *sorted((run / "best").glob("*"))):
            if file.is_file():
                target = self.path / file.relative_to(run)
                make_folder(target.parent)
                write_atomically(target, file.read_bytes())
        write_atomically(self.states.folder / state.name, state.read_bytes())

    # log.jsonl ------------------------------------------------------------------------------

    def log(self, line: Line) -> None:
        """Appends one line and hands it to the kernel."""
        if self._log is None:
            self._log = self.log_file.open("a", encoding="utf-8")
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def sync_log(self) -> None:
        """Lines so far are on the disk: call before the state that covers them is published."""
        if self._log is not None:
            os.fsync(self._log.fileno())

    def lines(self) -> Iterator[Line]:
        """The whole lines of log.jsonl; one cut short by a crash ends it."""
        if not self.log_file.exists():
            return
        with self.log_file.open(encoding="utf-8") as file:
            for text in file:
                try:
                    yield json.loads(text)
                except json.JSONDecodeError:
                    return

    def cut_log(self, lines: int) -> None:
        """Keeps the first `lines`: what a resumed run does again, it logs again."""
        self._close_log()  # the file that is open now is not the one that stays
        kept = [json.dumps(line) + "\n" for line in islice(self.lines(), lines)]
        write_atomically(self.log_file, "".join(kept).encode())
