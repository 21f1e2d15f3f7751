"""Speed by rule: two sides, each in a process of its own, take turns on one machine.

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
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch

from densekit import optim
from densekit.config import Section
from densekit.data.config import DataConfig
from densekit.data.loader import TrainStream
from densekit.data.mix import mixing
from densekit.data.sources import open_examples
from densekit.data.transforms import Preprocessing
from densekit.loop import Learner, LoopConfig, train_step
from densekit.models import variants
from densekit.models.variants import ModelConfig
from densekit.optim import OptimConfig
from densekit.precision import Precision, keep_freed_memory, resolve

Step = Callable[[], object]
NUM_CLASSES = 1000
GOODBYE = 30.0  # seconds that a side has to end


class Workload(Section):
    """What both sides compute."""

    model: str = "densenet121"
    image_size: int = 224
    batch_size: int = 16
    device: str = "auto"


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
    """One of the two: what makes its step, in a process of its own."""

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
    measured: Spread
    """Over turns: images per second, or seconds where the row's unit is s."""
    activation_bytes: int | None = None
    """None where the system does not tell."""
    keeps_memory: bool = False


@dataclass(frozen=True)
class Turn:
    """One side's part of a pair."""

    seconds: list[float]
    """Of each timed step."""
    activation_bytes: int | None
    """The largest since the side's second step."""
    keeps_memory: bool

    @property
    def step(self) -> float:
        return statistics.median(self.seconds)


# Taking turns -------------------------------------------------------------------------------


def alternate(one: Side, other: Side, rule: Rule) -> Iterator[tuple[Turn, Turn]]:
    """The pairs, one after the other. Raises RuntimeError for a side that fails."""
    with _started(one, rule) as first, _started(other, rule) as second:
        for _ in range(rule.pairs):
            yield first(), second()


def results(
    one: Side, other: Side, pairs: Sequence[tuple[Turn, Turn]], images: int
) -> tuple[tuple[Result, Result], Spread]:
    """Of steps of `images` images: both sides, and how many times as fast `one` is."""
    ratios = [second.step / first.step for first, second in pairs]
    turns = zip(*pairs, strict=True)
    first, second = (_result(*pair, images) for pair in zip((one, other), turns, strict=True))
    return (first, second), Spread.of(ratios)


def _result(side: Side, turns: Sequence[Turn], images: int) -> Result:
    peaks = [turn.activation_bytes for turn in turns if turn.activation_bytes is not None]
    return Result(
        name=side.name,
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
            return ours.recv()
        except EOFError:
            raise RuntimeError(f"{side.name}: its process failed; see its own words") from None

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
    torch.set_num_threads(rule.threads)
    keeps_memory = side.keeps_memory and keep_freed_memory()
    step = side.make()
    before = _memory("VmRSS")
    first = _timed(step)
    _forget_peak()
    pipe.send(Turn([first], None, keeps_memory))
    with contextlib.suppress(EOFError):  # the other end is closed: no more turns
        while pipe.recv():
            for _ in range(rule.warmup):
                step()
            seconds = [_timed(step) for _ in range(rule.steps)]
            peak = _memory("VmHWM")
            held = None if peak is None or before is None else peak - before
            pipe.send(Turn(seconds, held, keeps_memory))


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


# densekit's sides ---------------------------------------------------------------------------


def training(work: Workload, precision: str = "auto") -> Step:
    """`densekit train`'s optimizer step: uint8 images to updated weights, its sums read."""
    formats = resolve(work.device, precision, image_size=work.image_size)
    learner = _learner(work, formats)
    images, labels = _batch(work)
    config, steps = LoopConfig(), count()

    def step() -> list[float]:
        optim.set_lr(learner.optimizer, 1.0)
        sums = train_step(learner, config, [(images, labels)], len(images), next(steps))
        return sums.tolist()

    return step


def _learner(work: Workload, formats: Precision) -> Learner:
    """As densekit.learner makes it."""
    model = formats.place(_model(work, "auto").train())
    preprocessing = Preprocessing()
    return Learner(
        model=model,
        forward=model,
        optimizer=optim.create_optimizer(model, OptimConfig(), work.batch_size),
        scaler=formats.scaler(),
        ema=None,
        precision=formats,
        prepare=lambda images: preprocessing.normalize(formats.send(images)),
        mix=mixing(DataConfig(), NUM_CLASSES),
    )


def inference(work: Workload, precision: str = "fp32") -> Step:
    """What `densekit evaluate` computes of a batch, as densekit.engines has it."""
    formats = resolve(work.device, precision)
    model = formats.place(_model(work, "reference").eval())
    preprocessing = Preprocessing()
    images, _ = _batch(work)

    def step() -> torch.Tensor:
        with torch.inference_mode(), formats.autocast():
            return model(preprocessing.normalize(formats.send(images))).float().cpu()

    return step


def reading(list_file: str, work: Workload) -> Step:
    """`densekit train`'s next batch of the listed images, read by one worker and normalised."""
    config = DataConfig(
        image_size=work.image_size, batch_size=work.batch_size, workers=1, drop_last=True
    )
    preprocessing = Preprocessing.from_config(config)
    stream = iter(TrainStream(open_examples(list_file), config, seed=0, epochs=1_000_000))

    def step() -> list[torch.Tensor]:
        return [preprocessing.normalize(batch.images) for batch in next(stream).batches]

    return step


def _model(work: Workload, op: Literal["auto", "reference"]) -> torch.nn.Module:
    return variants.create(ModelConfig(name=work.model, num_classes=NUM_CLASSES, op=op))


def _batch(work: Workload) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [n, 3, S, S] and labels [n]; noise, since no side's speed depends on the pixels."""
    shape = (work.batch_size, 3, work.image_size, work.image_size)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
    return images, torch.randint(NUM_CLASSES, (work.batch_size,), generator=draw)
