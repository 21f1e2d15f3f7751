"""What `make gpu` measures: rows against torchvision, and a step's time kernel by kernel."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import densekit_steps
import rows
import torchvision_steps
from densekit.bench.rounds import Candidate, Settings, StepFunction, measure_rounds
from densekit.ops.lean.kernels.plain import DeferredGrad, NormGrads
from densekit_steps import Workload

OF_A_ROW = 40.0  # seconds that a row may take; none begins with less
PROFILED_STEPS = 3


@dataclass(frozen=True)
class Budget:
    ends: float
    """By time.monotonic()."""

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()

    def within(self, seconds: float) -> Budget:
        return Budget(min(self.ends, time.monotonic() + seconds))

    def but(self, seconds: float) -> Budget:
        return Budget(self.ends - seconds)


@dataclass(frozen=True)
class Rehearsal:
    """Where it is done, and whether all sizes are tiny."""

    device: str
    tiny: bool
    out: Path

    def work(self, model: str, image_size: int, batch_size: int) -> Workload:
        if self.tiny:
            model, image_size, batch_size = "densenet_bc_10_4", 32, 2
        return Workload(
            model=model, image_size=image_size, batch_size=batch_size, device=self.device
        )


# Parts --------------------------------------------------------------------------------------


class TimeIsUp(Exception):  # noqa: N818 (not a mistake)
    """Of a part."""


def attempt(name: str, call: Callable[[], None], budget: Budget) -> None:
    """Whatever becomes of it is said, and the next part goes on."""

    def stop(*_: object) -> None:
        raise TimeIsUp

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, budget.left))
    try:
        call()
    except TimeIsUp:
        say(f"{name}: its time was up")
    except Exception:  # of any kind: what else can be proved is
        say(f"{name} FAILED\n{traceback.format_exc()}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def say(text: str) -> None:
    print(text, flush=True)


# Rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contest:
    """One of our sides against several of torchvision's, of which the fastest counts."""

    name: str
    work: Workload
    ours: Candidate
    theirs: tuple[Candidate, ...]


def contests(where: Rehearsal) -> list[Contest]:
    """In the order in which they matter."""
    imagenet = where.work("densenet121", 224, 128)
    if where.tiny:
        return [training(imagenet, where), inference(imagenet, where)]
    cifar = where.work("densenet_bc_100_12", 32, 64)
    large = [where.work(f"densenet{depth}", 224, 64) for depth in (201, 161, 264)]
    return [
        training(imagenet, where),
        training(cifar, where),
        training_graph(imagenet, where),
        training_graph(cifar, where),
        training(where.work("densenet121", 224, 256), where),
        inference(where.work("densenet121", 224, 256), where),
        inference(where.work("densenet121", 224, 1), where),
        *(training(work, where) for work in large),
    ]


def training(work: Workload, where: Rehearsal) -> Contest:
    """bf16; both sides with a fused optimizer. torchvision under torch.compile is left out: it took
    more than 190 s to compile, and was no faster on densekit's reference."""
    ours = Candidate(
        "densekit train bf16, lean", partial(densekit_steps.training, work, "bf16", "lean")
    )
    peer = partial(torchvision_steps.training, work, "bf16", "channels_last")
    return Contest(f"train-{work.model}-{work.batch_size}", work, ours, sides(peer, where))


def training_graph(work: Workload, where: Rehearsal) -> Contest:
    """The same with our step captured, too, against torchvision's captured step alone."""
    eager = training(work, where)
    step = partial(densekit_steps.training, work, "bf16", "lean", "on")
    ours = Candidate(f"{eager.ours.name}, CUDA graph", step)
    return Contest(f"train-graph-{work.model}-{work.batch_size}", work, ours, eager.theirs[-1:])


def inference(work: Workload, where: Rehearsal) -> Contest:
    """bf16; densekit starts from uint8 images on the host; from its third step on it replays a
    CUDA graph."""
    ours = Candidate("densekit bf16, lean", partial(densekit_steps.inference, work, "bf16", "lean"))
    peer = partial(torchvision_steps.inference, work, "bf16", "channels_last")
    return Contest(f"inference-{work.model}-{work.batch_size}", work, ours, sides(peer, where))


def sides(peer: Callable[..., StepFunction], where: Rehearsal) -> tuple[Candidate, ...]:
    eager = Candidate("torchvision, channels_last, bf16", peer)
    graph = Candidate(f"{eager.name}, CUDA graph", partial(peer, graph=True))
    return (eager, graph) if where.device == "cuda" else (eager,)


def measure(contest: Contest, where: Rehearsal) -> None:
    settings = Settings(rounds=2 if where.tiny else 5, steps=2 if where.tiny else 10)
    candidates = [contest.ours, *contest.theirs]
    rounds = list(measure_rounds(candidates, settings))
    samples = list(zip(*rounds, strict=True))
    results = [
        rows.result(candidate, own, contest.work.batch_size)
        for candidate, own in zip(candidates, samples, strict=True)
    ]
    for each in results:
        held = "" if each.activation_bytes is None else f", {each.activation_bytes / 2**30:.2f} GiB"
        say(f"  {each.name} ({each.op}): {each.measured.median:.1f} img/s{held}")
    best = max(range(1, len(results)), key=lambda i: results[i].measured.median)
    ratio = rows.speed_ratio([(each[0], each[best]) for each in rounds])
    say(f"  {ratio.median:.2f} times as fast ({ratio.low:.2f} - {ratio.high:.2f})")
    if not where.tiny:
        said = {**contest.work.model_dump(), "device": where.device, **rows.settings_of(settings)}
        row = rows.row(f"gpu/{contest.name}", "images/s", (results[0], results[best]), ratio, said)
        rows.append(row, where.out)


def run_rows(where: Rehearsal, budget: Budget) -> None:
    """A row that hangs is cut off with its part's time."""
    for contest in contests(where):
        if budget.left < OF_A_ROW:
            say(f"{contest.name}: left out, no time is left")
            continue
        say(contest.name)
        attempt(contest.name, partial(measure, contest, where), budget)


# By kernel ----------------------------------------------------------------------------------


def run_profile(where: Rehearsal, budget: Budget) -> None:
    """Where a step of ours takes its time, kernel by kernel; and 3x3 convolutions both ways."""
    step = densekit_steps.training(where.work("densenet121", 224, 128), "bf16", "lean")
    for _ in range(2):
        step()
    with torch.profiler.profile() as profile:
        for _ in range(PROFILED_STEPS):
            step()
        synchronize(where)
    key = "self_device_time_total" if where.device == "cuda" else "self_cpu_time_total"
    text = profile.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=60)
    text += f"\nof {PROFILED_STEPS} steps\n"
    if where.device == "cuda":
        text += launches_of(profile) + three_by_three()
    (where.out / "gpu-profile.txt").write_text(text, encoding="utf-8")
    say(text)


def launches_of(profile: torch.profiler.profile) -> str:
    """How many kernels a step launched, cuDNN's own among them."""
    kernels = torch.autograd.DeviceType.CUDA
    count = sum(event.device_type == kernels for event in profile.events() or [])
    return f"kernels and copies of a step: {count / PROFILED_STEPS:.0f}\n"


def three_by_three() -> str:
    """Milliseconds of norm, relu and a 3x3 convolution, bf16: by cuDNN and by our own kernels."""
    lines = ["3x3, ms: forward by cuDNN, by conv3.py; backward by cuDNN, by conv3.py"]
    for n, side, c, k in ((128, 56, 128, 32), (128, 14, 128, 32), (64, 32, 48, 16)):
        times = ", ".join(f"{each:.3f}" for each in _both_ways(n, side, c, k))
        lines.append(f"  {n} x {side} x {side}, {c} -> {k}: {times}")
    return "\n".join(lines) + "\n"


def _both_ways(n: int, side: int, c: int, k: int) -> list[float]:
    from densekit.ops.lean.kernels import gpu  # imports Triton

    m, size = n * side * side, (side, side)
    x, to = torch.randn(2, m, c, device="cuda").bfloat16()
    z, d = torch.randn(2, m, k, device="cuda").bfloat16()
    weight = torch.randn(k, c, 3, 3, device="cuda").bfloat16()
    weight = weight.contiguous(memory_format=torch.channels_last)
    norm, found = torch.rand(4, c, device="cuda"), x.new_zeros(2, k, dtype=torch.float64)
    sums, line = found.new_zeros(2, 2, c)
    grads = NormGrads(sums, norm[0].clone(), norm[1].clone(), sums.new_ones(()), line)
    grad = torch.empty_like(weight, dtype=torch.float32)
    behind = DeferredGrad(d, z, found[0], found.clone())

    def own_backward() -> None:
        dz: Tensor = torch.empty_like(d)
        gpu.add_line(behind, dz)
        gpu.conv3_backward(dz, x, norm, weight, size, grads, grad, None, to)

    asked = (behind, x, norm, weight, size, grads, grad, None, to)
    return [
        timed(partial(gpu.norm_relu_conv, x, norm, weight, z, size, found)),
        timed(partial(gpu.conv3_forward, x, norm, weight, z, size, found)),
        timed(partial(gpu.norm_relu_conv_backward, *asked)),
        timed(own_backward),
    ]


def timed(call: Callable[[], object], times: int = 20) -> float:
    """Milliseconds of a call, of several in a row."""
    for _ in range(3):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / times


def synchronize(where: Rehearsal) -> None:
    if where.device == "cuda":
        torch.cuda.synchronize()
