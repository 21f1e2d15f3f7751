"""What a person sees of a run on the terminal: a bar for each epoch, and lines that stay."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from densekit import distributed
from densekit.progress import LIVE


class EpochBars:
    """A bar for the epoch that runs; a finished one leaves its line, also without a terminal."""

    def __init__(self, epochs: int, steps_per_epoch: int) -> None:
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.console = Console(stderr=True, quiet=not distributed.is_main(), highlight=False)
        self._live = self.console.is_terminal and distributed.is_main()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            disable=not self._live,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> EpochBars:
        self._progress.start()
        LIVE.append(self._progress)
        return self

    def __exit__(self, *error: object) -> None:
        LIVE.remove(self._progress)
        self._progress.stop()

    def start(self, epoch: int, step: int) -> None:
        """A bar for `epoch` (from 0), of which `step` steps are already done."""
        width = len(str(self.epochs))
        self._task = self._progress.add_task(
            f"epoch {epoch + 1:{width}}/{self.epochs}",
            total=self.steps_per_epoch,
            completed=step,
            text="",
        )

    def advance(self, step: int, text: str | None = None) -> None:
        """`step` steps of the epoch are done."""
        assert self._task is not None
        self._progress.update(self._task, completed=step)
        if text is not None:
            self._progress.update(self._task, text=text)

    def finish(self, epoch: int, text: str) -> None:
        """The epoch's last words, which stay on the screen."""
        self.advance(self.steps_per_epoch, text)
        if not self._live:
            self.say(f"epoch {epoch + 1}/{self.epochs}  {text}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
