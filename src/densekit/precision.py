"""Device, number format, memory format and allocator: one place, one table, no timing at run time.

The table follows measurements (DenseNet-121 at 224 and DenseNet-BC-100-12 at 32, training):

==========================  =========  ==============================================
where                       precision  memory format
==========================  =========  ==============================================
CUDA, compute >= 8.0        bf16       channels_last
older CUDA                  fp16       channels_last (gradients scaled)
CPU with bf16 instructions  bf16       channels_last
other CPU, MPS              fp32       channels_last
==========================  =========  ==============================================

Evaluation is fp32 unless it is asked otherwise.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from densekit.config import UserError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
MemoryFormatName = Literal["auto", "contiguous", "channels_last"]

FLAG = "--{} {}"  # how a command's own options are typed
TRIMMED_EVERY = 50  # batches
AnyBatch = TypeVar("AnyBatch")
_looped = itertools.count(1)  # batches of this process
Format = Literal["fp32", "bf16", "fp16"]
MemoryLayout = Literal["contiguous", "channels_last"]
DTYPES: dict[Format, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
MEMORY_FORMATS: dict[MemoryLayout, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


@dataclass(frozen=True)
class Precision:
    """Where and in which formats a network runs; every `auto` is resolved."""

    device: torch.device
    name: Format = "fp32"
    memory_format_name: MemoryLayout = "channels_last"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]

    @property
    def memory_format(self) -> torch.memory_format:
        return MEMORY_FORMATS[self.memory_format_name]

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision for a forward pass; does nothing in fp32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.name != "fp32")

    def send(self, images: Tensor) -> Tensor:
        """Images on the device; from pinned memory a GPU copies them by a stream of its own, beside
        what it still computes."""
        if self.device.type != "cuda" or not images.is_pinned():
            return images.to(self.device, non_blocking=True)
        with torch.cuda.stream(copying_stream(self.device)):
            sent = images.to(self.device, non_blocking=True)
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(copying_stream(self.device))
        sent.record_stream(now)  # else its memory might be taken for the next copy too early
        return sent

    def place(self, model: nn.Module) -> nn.Module:
        """Moves the model, in place, to the device and its weights to the memory format."""
        return model.to(self.device).to(memory_format=self.memory_format)


def resolve(
    device: str = "auto",
    precision: str = "auto",
    memory_format: str = "auto",
    *,
    local_rank: int = 0,
    typed: str = "loop.{}={}",
) -> Precision:
    """The table above. Raises UserError for an unknown name and for what this machine lacks.

    `typed` is how the user writes such an option, for messages: FLAG on the command line.
    """
    where = resolve_device(device, local_rank, typed)
    if where.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
        # A run that goes on is the run that it would have been.
        torch.backends.cudnn.deterministic = True
    options = ("precision", precision, PrecisionName), (
        "memory_format", memory_format, MemoryFormatName
    )  # fmt: skip
    for option, value, known in options:
        if value not in get_args(known):
            names = ", ".join(get_args(known))
            raise UserError(f"{typed.format(option, value)}: unknown; known: {names}")
    name = precision
    if precision == "auto" and where.type == "cuda":
        name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif precision == "auto":
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        name = "bf16" if where.type == "cpu" and has_bf16 else "fp32"
    if name == "bf16" and where.type == "cuda" and not torch.cuda.is_bf16_supported():
        asked = typed.format("precision", precision)
        raise UserError(f"{asked}: this GPU has no bf16; use fp16 or fp32")
    if name == "fp16" and where.type == "cpu":
        asked = typed.format("precision", precision)
        raise UserError(f"{asked}: fp16 is for GPUs; on a CPU use bf16 or fp32")
    layout = "channels_last" if memory_format == "auto" else memory_format
    return Precision(where, cast("Format", name), cast("MemoryLayout", layout))


def resolve_device(device: str, local_rank: int = 0, typed: str = "loop.{}={}") -> torch.device:
    """`auto` is cuda, else mps, else cpu; a device asked for by name must be there."""
    if device not in get_args(DeviceName):
        raise UserError(
            f"{typed.format('device', device)}: unknown; known: {', '.join(get_args(DeviceName))} "
            "(CUDA_VISIBLE_DEVICES chooses among GPUs)"
        )
    asked = typed.format("device", device)
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if cuda else "mps" if mps else "cpu"
    if device == "cuda" and not cuda:
        raise UserError(f"{asked}: torch finds no GPU here; use cpu or auto")
    if device == "mps" and not mps:
        raise UserError(f"{asked}: torch finds no Apple GPU here; use cpu or auto")
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"local rank {local_rank} has no GPU of its own: this machine has "
                f"{torch.cuda.device_count()}; start at most that many processes on it"
            )
        return torch.device("cuda", local_rank)
    return torch.device(device)


def describe_device(device: torch.device, processes: int = 1) -> str:
    """For a results line: "2 x NVIDIA H100", "CPU (2 threads)"."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        cpu = f"CPU ({threads} thread{'s' if threads > 1 else ''})"
        name = cpu if device.type == "cpu" else "Apple GPU"
    return name if processes == 1 else f"{processes} x {name}"


@functools.cache
def copying_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def keep_freed_memory() -> bool:
    """On Linux with glibc: freed memory stays in the process for the next step.

    A training step frees and takes the same gigabytes again; handing them to the kernel in
    between costs page faults. The environment's own malloc settings win. Returns whether it was
    set.
    """
    theirs = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")
    if sys.platform != "linux" or any(name in os.environ for name in theirs):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX in malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def in_bounded_memory(batches: Iterable[AnyBatch]) -> Iterator[AnyBatch]:
    """`batches`; on Linux with glibc, memory that is free goes to the kernel now and then.

    glibc 2.36 may not join freed blocks of aligned memory, which tensors are, to larger ones (its
    bug 30723): a loop over many batches would take ever more, and so would many short loops, which
    are counted together.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    for batch in batches:
        yield batch
        if trim is not None and next(_looped) % TRIMMED_EVERY == 0:
            trim(0)
