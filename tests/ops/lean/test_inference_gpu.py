"""A network's evaluation by the Triton kernels, in the interpreter and on a GPU; its graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from test_inference import AT_MOST, NETWORKS, batch, error, network
from torch import Tensor

from densekit.models.densenet import DenseNet
from densekit.models.one_call import _parts, one_call
from densekit.ops.lean import graphs
from densekit.ops.lean.graphs import CAPTURED_SHAPES, Graphs
from densekit.ops.lean.inference_gpu import GpuNetwork

WHERE = pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.interpreted),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)


@torch.no_grad()
def by_modules(model: DenseNet, x: Tensor, dtype: torch.dtype) -> Tensor:
    model = copy.deepcopy(model)
    model.set_op("reference")
    if dtype == torch.float64:
        return model.double()(x.double())
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        return model(x)


def formats(device: str) -> tuple[torch.dtype, ...]:
    """The interpreter's products have no bfloat16."""
    return (torch.float32, torch.float16, *((torch.bfloat16,) if device == "cuda" else ()))


@WHERE
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_as_near_to_the_truth_as_the_modules(name: str, device: str) -> None:
    config, (n, h, w) = NETWORKS[name]
    model, x = network(config).to(device), batch(config, n, h, w).to(device)
    true = by_modules(model, x, torch.float64)
    for dtype in formats(device):
        with torch.inference_mode():
            found = GpuNetwork(_parts(model), dtype)(x)
        assert found.dtype == torch.float32
        assert error(found, true) <= AT_MOST * error(by_modules(model, x, dtype), true), dtype


@WHERE
def test_images_in_any_layout_and_a_nan_that_spoils_its_own_image(device: str) -> None:
    config, (n, h, w) = NETWORKS["cifar"]
    model, x = network(config).to(device), batch(config, n, h, w).to(device)
    ours = GpuNetwork(_parts(model), torch.float32)
    with torch.no_grad():
        expected = ours(x)
        assert torch.equal(ours(x.contiguous(memory_format=torch.channels_last)), expected)
        x[1, 0, 3, 4] = torch.nan
        found = ours(x)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_answer_as_launches_do_bit_for_bit(dtype: torch.dtype) -> None:
    """Of several shapes in turn, by way of the model, whose op asks for it."""
    config, (_, h, w) = NETWORKS["imagenet"]
    model = network(config).cuda()
    model.set_op("lean")
    with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        batches = [batch(config, n, h, w).cuda() for n in (3, 1, 5, 3, 1, 2)]
        form = one_call(model, batches[0], DenseNet)
        assert isinstance(form, GpuNetwork)
        expected = [form.launched(x) for x in batches]
        for _ in range(3):
            assert all(map(torch.equal, map(model, batches), expected))


# Graphs, with a GPU that is pretended ---------------------------------------------------------


class Pretended:
    """torch.cuda's graphs: what is captured is computed again at each replay, where it lies."""

    def __init__(self) -> None:
        self.captured, self.replays, self.stream, self.full = 0, 0, "first", False
        self.pools: list[object] = []

    def install(self, monkeypatch: pytest.MonkeyPatch, call: Callable[[Tensor], Tensor]) -> Graphs:
        @contextmanager
        def capture(graph: SimpleNamespace, pool: object, **_: str) -> Iterator[None]:
            if self.full:
                raise torch.OutOfMemoryError("no memory is left")
            self.captured += 1
            self.pools.append(pool)
            self.last = graph
            yield

        def graph() -> SimpleNamespace:
            return SimpleNamespace(pool=lambda: "shared", work=[])

        def counted(x: Tensor) -> Tensor:
            found = call(x)
            if self.captured > len(self.kept):
                self.kept.append((x, found))
                self.last.replay = lambda: self.replay(x, found)
            return found

        self.kept: list[tuple[Tensor, Tensor]] = []
        self.call = call
        monkeypatch.setattr(graphs.torch.cuda, "graph", capture)
        monkeypatch.setattr(graphs.torch.cuda, "CUDAGraph", graph)
        monkeypatch.setattr(graphs.torch.cuda, "current_stream", lambda: self.stream)
        monkeypatch.setattr(graphs.torch.cuda, "is_current_stream_capturing", lambda: False)
        return Graphs(counted)

    def replay(self, x: Tensor, found: Tensor) -> None:
        self.replays += 1
        found.copy_(self.call(x))


def doubled(x: Tensor) -> Tensor:
    return x * 2


def test_a_shape_that_comes_again_is_captured_and_answers_are_the_callers_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Pretended()
    call = gpu.install(monkeypatch, doubled)
    first = call(torch.ones(2, 3))
    assert gpu.captured == 0
    answers = [call(torch.full((2, 3), float(i))) for i in range(4)]
    assert (gpu.captured, gpu.replays) == (1, 4)
    assert [float(a.mean()) for a in answers] == [0.0, 2.0, 4.0, 6.0]
    assert torch.equal(first, torch.full((2, 3), 2.0))
    call(torch.ones(1, 3))  # an evaluation's last batch
    assert gpu.captured == 1


def test_there_are_few_graphs_of_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Pretended()
    call = gpu.install(monkeypatch, doubled)
    for _ in range(3):
        for n in range(1, CAPTURED_SHAPES + 4):
            assert torch.equal(call(torch.ones(n)), torch.full((n,), 2.0))
    assert gpu.captured == CAPTURED_SHAPES
    assert gpu.pools == [None, *["shared"] * (CAPTURED_SHAPES - 1)]


def test_another_stream_and_a_capture_of_ones_own_are_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Pretended()
    call = gpu.install(monkeypatch, doubled)
    for _ in range(3):
        call(torch.ones(2))
    replays = gpu.replays
    gpu.stream = "second"
    assert torch.equal(call(torch.ones(2)), torch.full((2,), 2.0))
    gpu.stream = "first"
    monkeypatch.setattr(graphs.torch.cuda, "is_current_stream_capturing", lambda: True)
    call(torch.ones(2))
    assert gpu.replays == replays


def test_a_gpu_too_full_for_graphs_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Pretended()
    call = gpu.install(monkeypatch, doubled)
    gpu.full = True
    call(torch.ones(2))
    with pytest.warns(UserWarning, match=r"no CUDA graph of \[2\]: no memory is left"):
        assert torch.equal(call(torch.ones(2)), torch.full((2,), 2.0))
    assert torch.equal(call(torch.ones(2)), torch.full((2,), 2.0))  # and without a warning
