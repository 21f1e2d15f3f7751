"""Time and memory of steps, measured in rounds: A B A B, so that all meet the same machine.

Each candidate has a process of its own. In a round every candidate in turn takes `steps` timed
steps, after `warmup` steps that are not timed. A process' first step (compilation, the choice of
kernels) is never timed. Activation memory is the peak of all later steps, minus what the process
held before the first one.
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

from densekit.config import Section, UserError
from densekit.precision import keep_freed_memory

EXIT_TIMEOUT = 30.0  # seconds
StepFunction = Callable[[], object]
"""May have an `op`: the text that says how it computes dense blocks."""


class Settings(Section):
    """How it is measured."""

    rounds: int = 5
    steps: int = 7
    """Timed steps of each candidate in a round."""
    warmup: int = 1
    """Steps before them that are not timed."""
    threads: int = torch.get_num_threads()
    """CPU threads of each candidate."""


@dataclass(frozen=True)
class Candidate:
    """What is measured."""

    name: str
    make_step: Callable[[], StepFunction]
    """Called in the candidate's process, so it must pickle: a module's function, or a partial."""
    keep_freed_memory: bool = False
    """See densekit.precision.keep_freed_memory."""


@dataclass(frozen=True)
class RoundSample:
    """What a candidate took in one round."""

    seconds: list[float]
    """Of each timed step."""
    activation_bytes: int | None
    """The peak since the process' second step; None where the system does not tell."""
    keeps_memory: bool
    """Whether the process does keep what it freed: not every system can."""
    peak_bytes: int | None = None
    """All that the process held at that peak."""
    op: str | None = None

    @property
    def step_seconds(self) -> float:
        return statistics.median(self.seconds)


class Spread(Section):
    """Several measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), low=min(values), high=max(values))


def images_per_second(samples: Sequence[RoundSample], images: int) -> Spread:
    """Over the samples, of steps of `images` images; a sample's rate is of its median step."""
    return Spread.of([images / sample.step_seconds for sample in samples])


def activation_bytes(samples: Sequence[RoundSample]) -> int | None:
    """The largest; None where the system does not tell."""
    known = (sample.activation_bytes for sample in samples)
    return max((held for held in known if held is not None), default=None)


def measure_rounds(
    candidates: Sequence[Candidate], settings: Settings
) -> Iterator[tuple[RoundSample, ...]]:
    """Yields each round: a sample of every candidate, in their order.

    Raises RuntimeError where a candidate's process fails, but its UserError and
    torch.OutOfMemoryError as they are.
    """
    with contextlib.ExitStack() as stack:
        take = [stack.enter_context(_process(each, settings)) for each in candidates]
        for _ in range(settings.rounds):
            yield tuple(sample() for sample in take)


@contextlib.contextmanager
def _process(candidate: Candidate, settings: Settings) -> Iterator[Callable[[], RoundSample]]:
    """A process that has made its first step; what is yielded takes a sample there."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(candidate, settings, theirs))
    process.start()
    theirs.close()  # so that the end of the process is noticed here

    def receive() -> RoundSample:
        try:
            received = ours.recv()
        except EOFError:
            raise RuntimeError(
                f"{candidate.name}: its process failed; its traceback is above"
            ) from None
        if isinstance(received, Exception):
            raise received
        return received

    def sample() -> RoundSample:
        ours.send("next")
        return receive()

    try:
        receive()
        yield sample
    finally:
        ours.close()
        process.join(EXIT_TIMEOUT)
        if process.is_alive():
            process.kill()


def _serve(candidate: Candidate, settings: Settings, pipe: Connection) -> None:
    """The candidate's process: a sample of its first step, then one whenever it is asked."""
    with contextlib.suppress(EOFError):  # the other end is closed: no more rounds
        try:
            for sample in _samples(candidate, settings):
                pipe.send(sample)
                pipe.recv()
        except (UserError, torch.OutOfMemoryError) as error:
            pipe.send(error)


def _samples(candidate: Candidate, settings: Settings) -> Iterator[RoundSample]:
    torch.set_num_threads(settings.threads)
    keeps_memory = candidate.keep_freed_memory and keep_freed_memory()
    step = candidate.make_step()
    before = _process_memory("VmRSS")
    first = _timed(step)
    op = getattr(step, "op", None)
    _reset_peak()
    yield RoundSample([first], None, keeps_memory, None, op)
    while True:
        for _ in range(settings.warmup):
            step()
        seconds = [_timed(step) for _ in range(settings.steps)]
        peak = _process_memory("VmHWM")
        activations = None if peak is None or before is None else peak - before
        yield RoundSample(seconds, activations, keeps_memory, peak, op)


def _timed(step: StepFunction) -> float:
    began = time.perf_counter()
    step()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _process_memory(field: str) -> int | None:
    """Bytes resident now (VmRSS) or at the peak (VmHWM); on a GPU, of allocated tensors."""
    if torch.cuda.is_initialized():
        now = field == "VmRSS"
        return torch.cuda.memory_allocated() if now else torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines[field].split()[0]) << 10


def _reset_peak() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see Linux' proc(5)
