"""A run's folder: recipe.yaml, split.csv, log.jsonl, curves.png, state/, best/, last/; held by one
run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import filelock

from densekit import distributed
from densekit.config import UserError, to_yaml
from densekit.data.config import DataConfig
from densekit.data.holdout import SPLIT_FILE, Sides, read_sides, split_text
from densekit.data.listing import Examples
from densekit.files import make_folder, remove_left_over, write_atomically
from densekit.training.log_file import Line, LogFile
from densekit.training.recipe import Recipe, differences, stored_recipe
from densekit.training.state import STATE_FORMAT, State, StateFolder, read_state, step_of
from densekit.training.trackers import KNOWN_TO_MLFLOW, KNOWN_TO_WANDB
from densekit.training.tracking import Tracking, require

LOCK_PATIENCE = 5.0  # seconds: the kernel may still be freeing a killed run's lock


class RunFolder:
    """A run's folder; `open_` it on rank 0 before anything is written."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.notes: list[str] = []
        """What a person should know of how it was opened."""
        self.states = StateFolder(path / "state", keep)
        self.log_file = LogFile(path / "log.jsonl")
        self.tracking = Tracking()
        self._lock: filelock.BaseFileLock | None = None

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def last(self) -> Path:
        return self.path / "last"

    @classmethod
    @contextmanager
    def opened(cls, recipe: Recipe, digest: str) -> Iterator[RunFolder]:
        """The folder of a run of `recipe`, held by every rank until the run ends, however it ends.

        loop.output_dir, or else the first of runs/<name>, runs/<name>-2, ... that is free or holds
        a run of this recipe on these images (`digest` is of their lists). Raises UserError as
        `open_` does.
        """
        path, notes = distributed.from_main(lambda: _choose(recipe, digest))
        folder = cls(path, recipe.loop.keep)
        folder.notes += notes
        distributed.from_main(lambda: folder.open_(recipe))
        distributed.on_every_rank(lambda: folder.hold(distributed.rank()))
        try:
            yield folder
        finally:
            folder.close()

    @classmethod
    def look(cls, recipe: Recipe, digest: str) -> list[str]:
        """The notes that `opened` would give, and its UserErrors, without writing anything."""
        require(recipe.loop.track)
        path, notes = _choose(recipe, digest)
        folder = cls(path, recipe.loop.keep)
        if path.exists():
            folder._refuse_foreign()
        stored = path / "recipe.yaml"
        if stored.exists() and folder._started():
            folder._refuse_other(recipe, stored_recipe(stored))
        return notes

    def open_(self, recipe: Recipe) -> None:
        """Takes the folder for a run of `recipe`: a new or empty one, or one of the same recipe.

        A run that has not done its first step holds nothing: its folder may be taken by another
        recipe, so that a mistaken start is simply corrected. Raises UserError for a folder of
        something else, of another recipe, or in use.
        """
        require(recipe.loop.track)
        ours = self.path / "recipe.yaml"
        if self.path.exists():
            self._refuse_foreign()
        else:
            make_folder(self.path)
        self.hold(rank=0)
        if ours.exists():
            theirs = stored_recipe(ours)
            if self._started():
                self._refuse_other(recipe, theirs)
            else:
                stale = [*self.states.files(), self.log_file.path]
                if _other(theirs, recipe):  # another run, also to the trackers
                    stale += [self.path / KNOWN_TO_MLFLOW, self.path / KNOWN_TO_WANDB]
                for file in stale:
                    file.unlink(missing_ok=True)
            if theirs.loop.epochs < recipe.loop.epochs and self._started():
                self.notes.append(
                    f"{self.path}: its run of {theirs.loop.epochs} epochs is extended to "
                    f"loop.epochs={recipe.loop.epochs}"
                )
        remove_left_over(self.path, self.states.folder, self.best, self.last)
        # first of all: a folder with anything else and no recipe.yaml is taken for somebody's own
        write_atomically(ours, to_yaml(recipe.model_dump(mode="json")).encode())
        make_folder(self.path / "state")
        self.tracking = Tracking.start(recipe, self.path, begun=self._started())

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
        try:
            self.states.wait()
        finally:
            self.tracking.close()
            self.log_file.close()
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

    def _started(self) -> bool:
        """Whether a step of the run that is there was done and saved."""
        return any(step_of(file) > 0 for file in self.states.files())

    def _refuse_other(self, recipe: Recipe, theirs: Recipe) -> None:
        if recipe.loop.resume != "auto":
            raise UserError(
                f"{self.path}: already holds a run and loop.resume={recipe.loop.resume}; set "
                f"loop.output_dir to a new folder, or go on with loop.resume=auto"
            )
        changed = _other(theirs, recipe)
        if changed:
            raise UserError(
                f"{self.path}: holds a run of another recipe:\n  "
                + "\n  ".join(changed)
                + "\nto go on, leave these as they were; to start anew, set loop.output_dir"
            )

    def starting_point(self, recipe: Recipe, digest: str) -> tuple[State | None, Sides | None]:
        """The state that loop.resume names, None at step 0; and, where the images are others than
        the state's, on which side each of those that are held out was. Alike on all ranks.

        `digest` is of the lists of images. Raises UserError.
        """
        return distributed.from_main(lambda: self._starting_point(recipe, digest))

    def _starting_point(self, recipe: Recipe, digest: str) -> tuple[State | None, Sides | None]:
        origin = recipe.loop.resume
        if origin not in ("auto", "never") and not self.states.files():
            self.adopt(Path(origin), recipe)
        state = self.states.newest()
        if state is not None and state["format"] != STATE_FORMAT:
            raise UserError(
                f"{self.path}: its state has format {state['format']}, this densekit reads format "
                f"{STATE_FORMAT}; go on with the densekit that wrote it, or set loop.output_dir"
            )
        known = None
        if state is not None and state["data"] != digest:
            if not recipe.loop.accept_data_change:
                raise UserError(
                    f"{self.path}: its state was trained on other lists of images than "
                    f"data.train={recipe.data.train} and data.val={recipe.data.val} hold now; to "
                    f"start anew, set loop.output_dir; to go on all the same (some were added, "
                    f"removed or renamed), -o loop.accept_data_change=true"
                )
            self.notes.append(
                f"{self.path}: the images are not those that it began with; it goes on from where "
                f"it is, but is not the run that it would have been"
            )
            known = self.known_sides()
        return state, known

    def adopt(self, origin: Path, recipe: Recipe) -> None:
        """Begins this new folder with the newest state, the log and best/ of another run's.

        `origin` is a run's folder, or one state file in its state/. Raises UserError.
        """
        if not origin.exists():
            raise UserError(f"--resume {origin}: there is no such file or folder")
        run = origin.parent.parent if origin.is_file() else origin
        if not (run / "recipe.yaml").exists():
            raise UserError(f"--resume {origin}: not a run's folder, nor a state in one")
        changed = differences(stored_recipe(run / "recipe.yaml"), recipe)
        if changed:
            raise UserError(
                f"--resume {origin}: a run of another recipe:\n  " + "\n  ".join(changed)
            )
        state = origin if origin.is_file() else StateFolder(run / "state", 1).newest_file()
        if state is None:
            raise UserError(f"--resume {origin}: it holds no training state")
        read_state(state)
        for file in (run / "log.jsonl", *sorted((run / "best").glob("*"))):
            if file.is_file():
                target = self.path / file.relative_to(run)
                make_folder(target.parent)
                write_atomically(target, file.read_bytes())
        write_atomically(self.states.folder / state.name, state.read_bytes())

    # split.csv ------------------------------------------------------------------------------

    def known_sides(self) -> Sides | None:
        """On which side each image has been so far: a run that goes on with others validates on
        none that it was trained on. None: it holds none out, or began before there was a file."""
        split = self.path / SPLIT_FILE
        return read_sides(split) if split.exists() else None

    def keep_split(self, train: Examples, val: Examples, data: DataConfig) -> None:
        """Writes who is held out of the training list, for people, `evaluate` and `known_sides`."""
        split = self.path / SPLIT_FILE
        if distributed.is_main() and data.held_out:
            write_atomically(split, split_text(train, val))
        elif distributed.is_main():
            split.unlink(missing_ok=True)  # of a start that did no step

    # log.jsonl ------------------------------------------------------------------------------

    def log(self, line: Line) -> None:
        """Appends one line, and tells the trackers."""
        self.log_file.append(line)
        self.tracking.tell(line)

    def cut_log(self, lines: int) -> None:
        """Keeps the first `lines`, also in the trackers."""
        self.log_file.cut(lines)
        self.tracking.follow(self.log_file.lines())


def _choose(recipe: Recipe, digest: str) -> tuple[Path, list[str]]:
    """The folder that a run of `recipe` takes, and why it is not the first that would do."""
    if recipe.loop.output_dir is not None:
        return recipe.output_dir, []
    first = recipe.output_dir
    notes: list[str] = []
    for number in count(2):
        path = recipe.output_dir if number == 2 else first.with_name(f"{first.name}-{number - 1}")
        stored = path / "recipe.yaml"
        if not stored.exists():
            return path, notes
        changed = _other(stored_recipe(stored), recipe)
        if not changed and not recipe.loop.accept_data_change:
            state = StateFolder(path / "state", 1).newest()
            changed += ["other images"] if state and state["data"] != digest else []
        if recipe.loop.resume == "auto" and not changed:
            return path, notes
        why = "; ".join(changed) or f"loop.resume={recipe.loop.resume}"
        notes = notes or [
            f"{first} holds a run of another recipe ({why}): this one has a folder of its own; "
            f"loop.output_dir chooses it"
        ]
    raise AssertionError("count() does not end")


def _other(theirs: Recipe, recipe: Recipe) -> list[str]:
    """What keeps a run of the recipe `theirs` from going on by `recipe`; nothing: it may.

    More epochs are fine where the rates of those that are done do not depend on their number.
    """
    changed = differences(theirs, recipe)
    if theirs.loop.epochs < recipe.loop.epochs:
        key = f"loop.epochs: {theirs.loop.epochs} -> {recipe.loop.epochs}"
        schedule = recipe.optim.schedule
        if schedule in ("step", "constant"):
            changed.remove(key)
        else:
            changed[changed.index(key)] += f" (a {schedule} schedule falls otherwise over these)"
    return changed
