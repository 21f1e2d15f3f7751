"""The table: device, number format and memory format by what the machine has."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from densekit import precision
from densekit.config import UserError
from densekit.precision import FLAG, Precision, describe_device, resolve, resolve_device
from runs import forked

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Pretends to be a machine with these capabilities."""

    def pretend(
        cuda: int = 0, cuda_bf16: bool = False, mps: bool = False, cpu_bf16: bool = False
    ) -> None:
        def bf16(including_emulation: bool = True) -> bool:
            return cuda_bf16 or (including_emulation and bool(cuda))

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    return pretend


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"cuda": 1, "cuda_bf16": True}, ("cuda", "bf16", "channels_last")),
        ({"cuda": 1}, ("cuda", "fp16", "channels_last")),
        ({"cpu_bf16": True}, ("cpu", "bf16", "channels_last")),
        ({}, ("cpu", "fp32", "channels_last")),
        ({"mps": True}, ("mps", "fp32", "channels_last")),
        ({"mps": True, "cuda": 1, "cuda_bf16": True}, ("cuda", "bf16", "channels_last")),
    ],
)
def test_auto_is_the_table(
    machine: Machine, has: dict[str, int], expected: tuple[str, str, str]
) -> None:
    machine(**has)
    found = resolve()
    assert (found.device.type, found.name, found.memory_format_name) == expected


def test_what_is_asked_for_wins(machine: Machine) -> None:
    machine(cpu_bf16=True)
    found = resolve("cpu", "fp32", "contiguous")
    assert (found.name, found.memory_format_name) == ("fp32", "contiguous")
    assert resolve("cpu", "bf16").memory_format_name == "channels_last"


@pytest.mark.parametrize(
    ("device", "name", "message"),
    [
        ("cuda", "auto", "loop.device=cuda: torch finds no GPU"),
        ("mps", "auto", "loop.device=mps: torch finds no Apple GPU"),
        ("cpu", "fp16", "loop.precision=fp16: fp16 is for GPUs"),
    ],
)
def test_what_the_machine_lacks_is_refused(
    machine: Machine, device: str, name: str, message: str
) -> None:
    machine()
    with pytest.raises(UserError, match=message):
        resolve(device, name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("gpu",), "loop.device=gpu: unknown; known: auto, cpu, cuda, mps"),
        (("cuda:1",), "loop.device=cuda:1: unknown.*CUDA_VISIBLE_DEVICES chooses"),
        (("cpu", "fp99"), "loop.precision=fp99: unknown; known: auto, fp32, bf16, fp16"),
        (
            ("cpu", "fp32", "nhwc"),
            "loop.memory_format=nhwc: unknown; known: auto, contiguous",
        ),
    ],
)
def test_what_there_is_not_is_refused_by_name(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(*names)


def test_a_commands_own_option_is_named_as_typed(machine: Machine) -> None:
    machine()
    with pytest.raises(UserError, match="--device cuda: torch finds no GPU"):
        resolve("cuda", typed=FLAG)
    with pytest.raises(UserError, match="--precision fp99: unknown"):
        resolve("cpu", "fp99", typed=FLAG)


def test_each_rank_has_a_gpu_of_its_own(machine: Machine) -> None:
    machine(cuda=2, cuda_bf16=True)
    assert resolve_device("auto", local_rank=1) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="local rank 2 has no GPU of its own"):
        resolve_device("auto", local_rank=2)


@pytest.mark.parametrize(("threads", "text"), [(1, "CPU (1 thread)"), (2, "CPU (2 threads)")])
def test_a_device_is_described_for_a_results_line(
    threads: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert describe_device(torch.device("cpu")) == text
    assert describe_device(torch.device("cpu"), 3) == f"3 x {text}"


def test_autocast_and_formats_go_together() -> None:
    full, half = Precision(torch.device("cpu")), Precision(torch.device("cpu"), "bf16")
    linear, x = nn.Linear(2, 2), torch.ones(1, 2)
    with full.autocast():
        assert linear(x).dtype == torch.float32
    with half.autocast():
        assert linear(x).dtype == torch.bfloat16
    conv = half.place(nn.Conv2d(3, 4, 3))
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv.weight.dtype == torch.float32


def test_pinned_images_are_copied_by_a_stream_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU that is pretended: the step waits for the copy, and its memory for the step."""
    told: list[tuple[object, ...]] = []

    class Images:
        pinned = True

        def is_pinned(self) -> bool:
            return self.pinned

        def to(self, device: torch.device, non_blocking: bool) -> Images:
            assert non_blocking
            told.append(("copied by", streams[-1]))
            return Images()

        def record_stream(self, stream: object) -> None:
            told.append(("kept for", stream))

    class Stream:
        def wait_stream(self, other: object) -> None:
            told.append((self, "waits for", other))

    @contextlib.contextmanager
    def by(stream: Stream) -> Iterator[None]:
        streams.append(stream)
        yield
        streams.pop()

    now, beside = Stream(), Stream()
    streams = [now]
    monkeypatch.setattr(torch.cuda, "stream", by)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: streams[-1])
    monkeypatch.setattr(precision, "copying_stream", lambda _: beside)
    gpu, images = Precision(torch.device("cuda", 0)), Images()
    gpu.send(images)  # type: ignore[arg-type]
    assert told == [("copied by", beside), (now, "waits for", beside), ("kept for", now)]
    told.clear()
    images.pinned = False
    gpu.send(images)  # type: ignore[arg-type]
    assert told == [("copied by", now)]


@pytest.mark.gpu
def test_copies_beside_a_busy_gpu_arrive_whole() -> None:
    """Each batch is overwritten on the host when its copy is done, and its memory freed at once."""
    gpu, busy = precision.resolve("cuda"), torch.rand(2000, 2000, device="cuda")
    images = torch.empty(64, 3, 224, 224, dtype=torch.uint8).pin_memory()
    sums = []
    for value in range(20):
        torch.cuda.synchronize()
        images.fill_(value)
        busy = torch.tanh(busy @ busy)
        sums.append(gpu.send(images).sum())
    assert [int(total) for total in sums] == [value * images.numel() for value in range(20)]


def probe(environment: dict[str, str]) -> None:
    for name in [n for n in os.environ if n.startswith(("MALLOC_", "LD_PRELOAD"))]:
        del os.environ[name]
    os.environ.update(environment)
    print(precision.keep_freed_memory())


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, sys.platform == "linux"), ({"MALLOC_TRIM_THRESHOLD_": "100"}, False)],
)
def test_the_environments_malloc_settings_win(environment: dict[str, str], expected: bool) -> None:
    """In a process of its own: it cannot be taken back."""
    found = forked(partial(probe, environment))
    assert found.stdout.strip() == str(expected), found.stderr


def test_the_allocator_is_left_alone_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision.sys, "platform", "win32")
    assert not precision.keep_freed_memory()


def freed_and_looped() -> None:
    """Resident MiB with 400 MiB that were freed: before loops over batches, and after them."""
    precision.keep_freed_memory()
    kept = [torch.ones(1 << 14) for _ in range(6400)]
    pin = torch.ones(1 << 14)  # above them, so that they cannot just be cut off the heap's end
    del kept
    before = resident()
    loops = 10  # each shorter than what passes between two times
    order = [*range(precision.TRIMMED_EVERY // loops)]
    found = [[*precision.in_bounded_memory(order)] == order for _ in range(loops)]
    print(before, resident(), all(found), pin.shape[0])


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loops_over_batches_hand_free_memory_back() -> None:
    found = forked(freed_and_looped)
    before, after, in_order, _ = found.stdout.split()
    assert in_order == "True", found.stderr
    assert int(before) - int(after) > 300
