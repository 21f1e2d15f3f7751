"""loop.track: trackers that follow log.jsonl.

The log is what a run came to: a run that goes on cuts it back to its state. Each tracker is
followed up by a thread of its own, which tells it each row of the log once, so that no step waits
for a server. What a tracker does not take is said, never raised, and told again later: from the
log, so nothing is lost, and at the number of rows that the tracker has, so nothing is doubled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from densekit.config import UserError, needs_extra
from densekit.progress import say, waiting
from densekit.training.recipe import Recipe, TrackerName
from densekit.training.trackers import LogRow, MLflow, TensorBoard, Tracker, WandB, row_of

TRACKERS: dict[TrackerName, type[TensorBoard | MLflow | WandB]] = {
    "tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB
}  # fmt: skip
AGAIN_AFTER = 30.0  # seconds after a failure
LAST_WAIT = 90.0  # seconds that the end of a run waits for a tracker that answers
DOWN_WAIT = 5.0  # seconds that it waits for one that does not
ROWS_AT_ONCE = 1000  # rows
LogLine = dict[str, Any]


class Tracking:
    """All trackers of a run; none, and every method does nothing."""

    def __init__(self, followers: Sequence[Follower] = ()) -> None:
        self._followers = followers
        self._finished = False

    @classmethod
    def start(cls, recipe: Recipe, folder: Path, begun: bool) -> Tracking:
        """The trackers that loop.track names, found or made.

        Raises UserError for one that does not answer; of a run that has `begun` to train, it says
        so and tries again later: a server that is down must not end what a scheduler restarts.
        """
        followers = [Follower(name, TRACKERS[name](folder, recipe)) for name in recipe.loop.track]
        for each in followers:
            with waiting(f"looking for {each.name}"):
                error = each.first_answer()
            if error is not None and not begun:
                for other in followers:
                    other.close(finished=False)
                raise UserError(f"loop.track={each.name}: {first_line(error)}") from error
            if error is not None:
                say(f"loop.track={each.name}: {first_line(error)}; the run goes on")
        return cls(followers)

    def follow(self, lines: Iterable[LogLine]) -> None:
        """The log is these lines now, the first ones of what it was."""
        if self._followers:
            known = list(lines)
            self._note_end(known)
            rows = [row for line in known if (row := row_of(line)) is not None]
            for each in self._followers:
                each.follow(rows)

    def tell(self, line: LogLine) -> None:
        """The log's next line."""
        self._note_end([line])
        row = row_of(line)
        if row is not None:
            for each in self._followers:
                each.tell(row)

    def close(self) -> None:
        """Waits until every tracker has the whole log; says which has not."""
        for each in self._followers:
            each.close(self._finished)
        since = time.monotonic()
        for each in self._followers:
            each.wait(since)

    def _note_end(self, lines: Sequence[LogLine]) -> None:
        """Whether the last of them is the run's last."""
        if lines:
            self._finished = lines[-1].get("event") == "end"


def require(trackers: Iterable[TrackerName]) -> None:
    """Raises UserError for one whose library is not installed."""
    for name in trackers:
        with needs_extra(name, f"loop.track={name}"):
            found = find_spec(name)
            if found is None or found.origin is None:  # a folder of that name is no library
                raise ModuleNotFoundError(name=name)


class Follower:
    """The thread that tells one tracker."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name = name
        self._tracker = tracker
        self._changed = threading.Condition()
        self._rows: list[LogRow] = []
        """Those of the log that the tracker may not have: from `_first` on."""
        self._first = 0
        self._told: int | None = None
        """Rows that the tracker has; None: it is to be asked."""
        self._closing: bool | None = None
        """Whether the run was finished, once it is over for this process."""
        self._error: Exception | None = None
        """What the tracker said last; None: it took what it was told."""
        self._answered = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"densekit-{name}", daemon=True)
        self._thread.start()

    def first_answer(self) -> Exception | None:
        """Waits for it; what went wrong."""
        self._answered.wait()
        return self._error

    def follow(self, rows: list[LogRow]) -> None:
        """The log has these rows, and the tracker is asked how many it has."""
        with self._changed:
            self._rows, self._first, self._told = list(rows), 0, None
            self._changed.notify()

    def tell(self, row: LogRow) -> None:
        """The log's next row."""
        with self._changed:
            self._rows.append(row)
            self._changed.notify()

    def close(self, finished: bool) -> None:
        """The thread ends when all is told, or cannot be."""
        with self._changed:
            self._closing = finished
            self._changed.notify()

    def wait(self, since: float) -> None:
        """Until the thread has ended, or LAST_WAIT from the time.monotonic() `since` on, of a
        tracker that failed last DOWN_WAIT; says what is missing."""
        with waiting(f"{self.name} takes what is left"):
            while self._thread.is_alive():
                patience = LAST_WAIT if self._error is None else DOWN_WAIT
                if time.monotonic() >= since + patience:
                    break
                self._thread.join(0.05)
        error = self._error
        if error is not None or self._thread.is_alive():
            why = f"no end within {LAST_WAIT:.0f} s" if error is None else first_line(error)
            say(
                f"loop.track={self.name}: it may lack the last rows of log.jsonl ({why}); the same "
                f"command tells it what is missing"
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._is_due)
                rows, told, closing = self._rows, self._told, self._closing
                new = [] if told is None else self._untold(told)
            try:
                if told is None:
                    told = self._tracker.open()
                elif new:
                    self._tracker.send(new)
                    told += len(new)
                else:
                    assert closing is not None
                    self._tracker.close(closing)
                    return
            except Exception as error:  # of a library and a network: whatever it is, it is said
                if not self._tries_again(error):
                    return
            else:
                self._has(told, rows)

    def _is_due(self) -> bool:
        if self._told is None or self._closing is not None:
            return True
        return bool(self._untold(self._told))

    def _untold(self, told: int) -> list[LogRow]:
        start = max(0, told - self._first)
        return self._rows[start : start + ROWS_AT_ONCE]

    def _has(self, told: int, rows: list[LogRow]) -> None:
        """The tracker has `told` of the log, of which `rows` were the last ones known."""
        with self._changed:
            if self._rows is rows:  # else the log was cut back meanwhile
                self._told = told
                done = min(max(0, told - self._first), len(rows))
                del rows[:done]
                self._first += done
        if self._error is not None and not self._untold(told):
            say(f"loop.track={self.name}: it answers again, and has been told everything")
            self._error = None
        self._answered.set()

    def _tries_again(self, error: Exception) -> bool:
        """After AGAIN_AFTER, from asking on; says so once. False at the second time in a row when
        the run is over."""
        again = self._error is not None
        if not again and self._answered.is_set():
            say(
                f"loop.track={self.name}: {first_line(error)}; training goes on, log.jsonl has "
                f"everything, and it is told later"
            )
        self._error = error
        self._answered.set()
        with self._changed:
            self._told = None
            if self._closing is not None:
                return not again
            self._changed.wait_for(lambda: self._closing is not None, AGAIN_AFTER)
        return True


def first_line(error: Exception | None) -> str:
    """An error's first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
