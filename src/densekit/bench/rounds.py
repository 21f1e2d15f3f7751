"""Speed by rule: sides, each in a process of its own, take turns on one machine.

A B A B ...: `pairs` turns each, of `steps` timed steps after `warmup` that are not timed. A turn's
rate is its images over its median step, a side's the median of its turns. The ratio is taken pair
by pair, so that what slows the machine down slows both sides. Activation memory is the peak of
all steps but the first, minus what the process held before that one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from densekit.bench.steps import Step, TrainingStep
from densekit.config import Section, UserError
from densekit.precision import keep_freed_memory

GOODBYE = 30.0  # seconds that a side has to end


class Rule(Section):
    """How it is measured."""

    pairs: int = 5
    steps: int = 7
    """Timed, in each turn."""
    warmup: int = 1
    """Before them, in each turn."""
    threads: int = torch.get_num_threads()
    """CPU threads of each side."""


@dataclass(frozen=True)
class Side:
    """What makes its step, in a process of its own."""

    name: str
    make: Callable[[], Step]
    """A function of some module, or a partial of one: it goes to the process by name."""
    keeps_memory: bool = False
    """Whether freed memory stays in the process (see precision.keep_freed_memory)."""


class Spread(Section):
    """Several measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), low=min(values), high=max(values))


class Result(Section):
    """What one side came to."""

    name: str
    op: str | None = None
    """What `ops.choose` took for densekit's dense blocks in training."""
    measured: Spread
    """Over turns: images per second, or seconds where the row's unit is s."""
    activation_bytes: int | None = None
    """None where the system does not tell."""
    keeps_memory: bool = False


@dataclass(frozen=True)
class Turn:
    """One side's part of a round."""

    seconds: list[float]
    """Of each timed step."""
    activation_bytes: int | None
    """The largest since the side's second step."""
    keeps_memory: bool
    peak_bytes: int | None = None
    """What the process held at most since then, all in all."""
    op: str | None = None

    @property
    def step(self) -> float:
        return statistics.median(self.seconds)


# Taking turns -------------------------------------------------------------------------------


def alternate(sides: Sequence[Side], rule: Rule) -> Iterator[tuple[Turn, ...]]:
    """Round by round, a turn of each side.

    Raises RuntimeError for a side that fails; UserError and torch.OutOfMemoryError as they are.
    """
    with contextlib.ExitStack() as running:
        take_turn = [running.enter_context(_started(side, rule)) for side in sides]
        for _ in range(rule.pairs):
            yield tuple(turn() for turn in take_turn)


def ratio(pairs: Sequence[tuple[Turn, ...]]) -> Spread:
    """How many times as fast the first of two sides is."""
    return Spread.of([second.step / first.step for first, second in pairs])


def result(side: Side, turns: Sequence[Turn], images: int) -> Result:
    """What the turns of a side come to, in steps of `images` images."""
    peaks = [turn.activation_bytes for turn in turns if turn.activation_bytes is not None]
    return Result(
        name=side.name,
        op=turns[-1].op,
        measured=Spread.of([images / turn.step for turn in turns]),
        activation_bytes=max(peaks, default=None),
        keeps_memory=all(turn.keeps_memory for turn in turns),
    )


@contextlib.contextmanager
def _started(side: Side, rule: Rule) -> Iterator[Callable[[], Turn]]:
    """The side's process after its first step; what is yielded has it take a turn."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_live, args=(side, rule, theirs))
    process.start()
    theirs.close()  # so that the process' end is seen here

    def answer() -> Turn:
        try:
            said = ours.recv()
        except EOFError:
            raise RuntimeError(f"{side.name}: its process failed; see its own words") from None
        if isinstance(said, Exception):
            raise said
        return said

    def turn() -> Turn:
        ours.send("go")
        return answer()

    try:
        answer()
        yield turn
    finally:
        ours.close()
        process.join(GOODBYE)
        if process.is_alive():
            process.kill()


def _live(side: Side, rule: Rule, pipe: Connection) -> None:
    """A side's process: step 1, and then a turn whenever it is asked for one."""
    with contextlib.suppress(EOFError):  # the other end is closed: no more turns
        try:
            for turn in _turns(side, rule):
                pipe.send(turn)
                pipe.recv()
        except (UserError, torch.OutOfMemoryError) as error:
            pipe.send(error)


def _turns(side: Side, rule: Rule) -> Iterator[Turn]:
    """Step 1, and then turns without end."""
    torch.set_num_threads(rule.threads)
    keeps_memory = side.keeps_memory and keep_freed_memory()
    step = side.make()
    before = _memory("VmRSS")
    first = _timed(step)
    op = step.op if isinstance(step, TrainingStep) else None
    _forget_peak()
    yield Turn([first], None, keeps_memory, None, op)
    while True:
        for _ in range(rule.warmup):
            step()
        seconds = [_timed(step) for _ in range(rule.steps)]
        peak = _memory("VmHWM")
        held = None if peak is None or before is None else peak - before
        yield Turn(seconds, held, keeps_memory, peak, op)


def _timed(step: Step) -> float:
    began = time.perf_counter()
    step()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _memory(field: str) -> int | None:
    """Bytes that this process holds (VmRSS) or has held at most (VmHWM); of a GPU's, tensors'."""
    if torch.cuda.is_initialized():
        now = field == "VmRSS"
        return torch.cuda.memory_allocated() if now else torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines[field].split()[0]) << 10


def _forget_peak() -> None:
    """The peak is counted from now on."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM, see Linux' proc(5)
