"""Processes: start, stop, rank, reduce. One process is the same path with world size 1.

Under `torchrun` every rank runs the same command; the collectives are gloo on CPU, NCCL on GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from densekit.config import UserError
from densekit.distributed.failures import PeerFailed, Peers, meet

T = TypeVar("T")
THREADS_PER_CORE = 16  # more only wait for each other, and a process has a limit
PACES = (0.01, 1.0)  # seconds between questions whether all ranks have done what takes long
_peers: Peers | None = None  # of the process group, as torch keeps that itself
_sums: list[dist.Work] = []  # of gradients, those that may not have ended


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes that this process may still take; None where the system does not tell."""
    table, limits = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not table.exists():
        return None
    lines = dict(line.split(":", 1) for line in table.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) << 10
    limit, used = limits / "memory.max", limits / "memory.current"  # of a container
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free


def start(device: torch.device, timeout: float = 600.0, threads: int | None = None) -> int:
    """Joins the process group that torchrun describes, if there are several processes, and takes
    this one's threads, see `set_threads`; returns their number.

    A collective that waits longer than `timeout` seconds for a rank fails, and with it the run.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size() > 1 and not active():
        _join(device, timeout)
    return set_threads(threads)


def _join(device: torch.device, timeout: float) -> None:
    global _peers
    wait = timedelta(seconds=timeout)
    try:
        store, own, world = next(dist.rendezvous("env://", timeout=wait))
        store = dist.PrefixStore(meet(store, own, world, timeout), store)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=wait,
            store=dist.PrefixStore("collectives", store),
            rank=own,
            world_size=world,
            device_id=device if device.type == "cuda" else None,
        )
    except dist.DistError as error:
        address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise PeerFailed(
            f"rank {rank()} of {world_size()} did not find the others at {address} within "
            f"{timeout:.0f} s ({error}); start all ranks, with the same MASTER_ADDR and MASTER_PORT"
        ) from error
    _peers = Peers(dist.PrefixStore("peers", store), own, world)


def stop(failed: bool = False) -> None:
    """Leaves the process group; after a failure of this rank or another's, the others notice.

    A gloo group is left, but never freed: its destructor would hold the interpreter's lock while
    it joins gloo's threads, and these need the lock to drop their last tensors and callbacks. For
    the same reason sums of gradients that broke are waited for, else they would end after Python.
    """
    global _peers
    if active():
        for work in _sums:
            with contextlib.suppress(dist.DistError, RuntimeError):  # told already, by the first
                work.wait()
        _sums.clear()
        if dist.get_backend() == "gloo":
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
        dist.destroy_process_group()
    if _peers is not None:
        _peers.close(failed)
        _peers = None


def at_step(step: int) -> None:
    """Notes where this rank is, for the others if it does not come back."""
    if _peers is not None:
        _peers.step = step


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Around a command of several ranks: a failure is told to the others, or learnt from them.

    A collective that broke raises PeerFailed with the rank whose fault it was; that rank keeps
    its own error. Leaves the process group in any case.
    """
    failed = False
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and _peers is None:
            error.shared = True  # before the group starts every rank reads the same recipe
        if _peers is None or getattr(error, "shared", False):
            raise
        failed = True
        culprit = _peers.culprit() if _broke(error) else None
        if culprit is not None:
            raise PeerFailed(f"rank {rank()} stops: {culprit}") from error
        _peers.say(f"{type(error).__name__}: {error}")
        raise
    finally:
        stop(failed)


def _broke(error: Exception) -> bool:
    """Whether a collective raised this: torch's own kinds, or gloo's, which are plain ones."""
    gloo = type(error) is RuntimeError and re.search(r"\bgloo[/:]", str(error))
    return isinstance(error, dist.DistError) or gloo is not None


def set_threads(threads: int | None = None) -> int:
    """Threads of this process: `threads`, else OMP_NUM_THREADS, else a share of the cores.

    torchrun itself exports OMP_NUM_THREADS=1 when nobody set it, so with several local ranks a 1
    there is not taken for the user's wish; `loop.threads=1` is. Raises UserError for more than
    any machine has a use for, which torch would answer with a crash.
    """
    asked = f"loop.threads={threads}"
    exported = os.environ.get("OMP_NUM_THREADS", "")
    if threads is None and exported.isdecimal() and (exported != "1" or local_world_size() == 1):
        threads, asked = int(exported), f"OMP_NUM_THREADS={exported}"
    threads = threads or max(1, cores() // local_world_size())
    most = THREADS_PER_CORE * cores()
    if threads > most:
        raise UserError(f"{asked} on {cores()} cores; take at most {most}")
    torch.set_num_threads(threads)
    return threads


def reduce_sum(tensor: Tensor) -> Tensor:
    """Sums `tensor` over all ranks, in place."""
    if active():
        dist.all_reduce(tensor)
    return tensor


def gather_objects(value: T) -> list[T] | None:
    """Every rank's value in rank order, on rank 0; None elsewhere."""
    if not active():
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values


def broadcast_object(value: T) -> T:
    """Rank 0's value, on every rank."""
    if not active():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box)
    return box[0]


def broadcast_buffers(module: nn.Module) -> None:
    """Gives every rank rank 0's buffers: BatchNorm's running statistics are each rank's own."""
    if active():
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def from_main(make: Callable[[], T]) -> T:
    """What rank 0's `make()` returns, on every rank. Its UserError is raised on every rank."""
    made: list[T] = []
    mistake: str | None = None
    if is_main():
        try:
            made.append(make())
        except UserError as error:
            mistake = str(error)
    made, mistake = broadcast_object((made, mistake))
    if mistake is not None:
        raise UserError(mistake, shared=True)
    return made[0]


def on_every_rank(make: Callable[[], T]) -> T:
    """This rank's `make()`. If any rank's raises a UserError, every rank raises them all."""
    made: list[T] = []
    mistake: str | None = None
    try:
        made.append(make())
    except UserError as error:
        mistake = str(error)
    mistakes = broadcast_object(gather_objects(mistake))
    assert mistakes is not None
    if not any(mistakes):
        return made[0]
    if len(set(mistakes)) == 1:
        raise UserError(str(mistakes[0]), shared=True)
    named = [f"rank {r}: {m}" for r, m in enumerate(mistakes) if m]
    raise UserError("\n".join(named), shared=True)


def while_others_wait(work: Callable[[], T] | None) -> T | None:
    """This rank's `work()`, if it has any, which may take longer than ranks wait for one another:
    all ask each other whether they are done, until they are. Who fails tells the others; who dies
    meanwhile is missed at the next question.
    """
    if work is None or not active():
        done: Future[T | None] = Future()
        _settle(done, work or (lambda: None))
    else:
        done = Future()
        threading.Thread(
            target=_settle, args=(done, work), name="densekit-work", daemon=True
        ).start()
    pace, longest = PACES
    while True:
        answers = broadcast_object(gather_objects(done.done()))
        assert answers is not None
        if all(answers):
            return done.result()
        time.sleep(pace)
        pace = min(2 * pace, longest)


def _settle(done: Future[T | None], work: Callable[[], T | None]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:  # which `result` raises
        done.set_exception(error)


def wrap(model: nn.Module, image: Tensor) -> nn.Module:
    """DistributedDataParallel that sums gradients, in a bucket layout that never changes.

    DDP lays its buckets out anew after the first backward pass, and with three ranks or more
    another layout sums in another order: a resumed run would begin with the first layout and
    differ. So one backward pass of `image`, [1, C, H, W], in evaluation mode, is spent on that
    beforehand; it costs a step of one image and leaves nothing in the model.
    """
    if not active():
        return model
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
    ddp = DistributedDataParallel(
        model,
        device_ids=[image.device.index] if image.device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
    # a lambda, since DDP compares a hook's annotations with types and ours are strings
    ddp.register_comm_hook(None, lambda _, bucket: _sum_gradients(bucket))
    model.eval()
    ddp(image).sum().backward()
    model.train()
    model.zero_grad(set_to_none=True)
    return ddp


def _sum_gradients(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's communication hook: a sum, where DDP's own takes the mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    _sums[:] = [*(sum_ for sum_ in _sums if not sum_.is_completed()), work]
    return work.get_future().then(lambda done: done.value()[0])
