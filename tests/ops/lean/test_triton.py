"""What a machine without a GPU can prove of the Triton kernels.

They compute what they should in Triton's interpreter, in a process of its own; Triton's compiler
takes every kernel for the GPUs that are served; and a layer needs few launches.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from test_forward import SHAPE, SIZES, block, compare
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from truth import FP32, channels_last, images

from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.one_call import _parts
from densekit.ops import reference
from densekit.ops.lean import backward, forward, norm_relu
from densekit.ops.lean.inference_gpu import GpuNetwork
from densekit.ops.lean.layout import as_maps

triton = pytest.importorskip("triton")

from densekit.data import on_gpu  # noqa: E402 (imports triton)

HERE = Path(__file__).parent
SHARED = {80: 163 << 10, 90: 227 << 10}
"""Bytes of shared memory that a program may take, by compute capability."""
SPILLED = 1024  # bytes of a thread's registers that may go to memory; far more is a wrong tile
LAUNCHES = {12: (6, 7), 32: (8, 8)}
"""Of a layer forward and backward, by growth rate: with our 3x3 kernels, and with cuDNN's."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Triton's kernels, which lean takes for tensors on the CPU too."""
    from densekit.ops.lean.kernels import gpu

    for module in (forward, backward, norm_relu):
        monkeypatch.setattr(module, "kernels_for", lambda x: gpu)
    return gpu


# Interpreted --------------------------------------------------------------------------------


@pytest.mark.slow
def test_interpreted() -> None:
    """The tests of all kernels, and what is marked interpreted below."""
    options = ["-m", "interpreted", "-p", "no:cacheprovider", "--hypothesis-profile=few"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE), "tests/data/test_transforms.py"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


AWKWARD = ("batch 1", "odd sides", "one pixel", "odd channels", "growth 12", "no bottleneck")
ONE = FP32._replace(draws=1)


@pytest.mark.interpreted
@pytest.mark.parametrize("size", AWKWARD)
def test_a_block_is_the_references(size: str, gpu: Any) -> None:
    shape, config = SIZES[size]
    module = block(shape[1], **{**config, "layers": 2})
    compare(module, ONE, "cpu", lambda draw: images(shape, draw))


@pytest.mark.interpreted
def test_statistics_hold_at_a_mean_of_1000_deviations(gpu: Any) -> None:
    compare(block(layers=2), ONE, "cpu", lambda draw: images(SHAPE, draw, mean=1000.0))


@pytest.mark.interpreted
def test_a_nan_spreads_as_in_the_reference(gpu: Any) -> None:
    found = []
    for function in (forward.dense_block, reference.dense_block):
        x = images(SHAPE)[0].float()
        x[0, 3, 2, 2] = torch.nan
        found.append(function(channels_last(x), list(block(layers=2).values())))
    ours, theirs = found
    assert torch.equal(ours.isnan(), theirs.isnan())


@pytest.mark.interpreted
def test_two_runs_are_bit_identical(gpu: Any) -> None:
    def run() -> list[Tensor]:
        module, x = block(layers=1), channels_last(images(SHAPE)[0].float()).requires_grad_()
        forward.dense_block(x, list(module.values())).square().sum().backward()
        return [x.grad, *(p.grad for p in module.parameters()), *module.buffers()]  # type: ignore[list-item]

    assert all(map(torch.equal, run(), run()))


# Compiled for GPUs that are not there ---------------------------------------------------------


class Launch(NamedTuple):
    """A kernel's, with its arguments by name and its warps and stages."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]

    def source(self) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], Any]]:
        """Types, constants and divisibilities, as a launch on a GPU has them."""
        types, constants, divisible = {}, {}, {}
        for place, param in enumerate(self.kernel.params):
            value = self.arguments[param.name]
            fixed = type(value) is int and value == 1 and not param.do_not_specialize
            if param.is_constexpr or value is None or fixed:
                types[param.name], constants[param.name] = "constexpr", value
            elif isinstance(value, Tensor):
                types[param.name] = "*" + TYPES[value.dtype]
                if value.data_ptr() % 16 == 0:
                    divisible[(place,)] = [["tt.divisibility", 16]]
            else:
                types[param.name] = "fp32" if isinstance(value, float) else "i32"
                if isinstance(value, int) and value % 16 == 0 and not param.do_not_specialize:
                    divisible[(place,)] = [["tt.divisibility", 16]]
        return types, constants, divisible

    def key(self) -> str:
        return repr((self.kernel.fn.__name__, *self.source(), self.options))


TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.uint8: "u8",
}  # fmt: skip


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Every launch in this test, which computes nothing."""
    made: list[Launch] = []

    def note(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        assert all(side > 0 for side in grid)
        options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
        names = [param.name for param in kernel.params]
        by_name = {**dict(zip(names, arguments, strict=False)), **named}
        assert list(by_name) == names, kernel.fn.__name__
        made.append(Launch(kernel, by_name, options))

    monkeypatch.setattr(triton.runtime.JITFunction, "run", note)
    return made


SHALLOW = {"block_config": (2, 2)}


def launch_everything(gpu: Any, dtype: torch.dtype) -> None:
    """As DenseNet-121 does, 161, DenseNet-BC-100-12, and a DenseNet without bottlenecks."""

    def step(function: Callable[[Tensor], Tensor], c: int) -> None:
        x = channels_last(torch.zeros(2, c, 8, 8, dtype=dtype)).requires_grad_()
        function(x).sum().backward()

    for c, growth_rate, bn_size in ((64, 32, 4), (96, 48, 4), (24, 12, 4), (16, 12, 0)):
        layers = list(block(c, 2, growth_rate, bn_size=bn_size).values())
        step(partial(forward.dense_block, layers=layers), c)
    for pool in ("none", "average", "max"):
        step(partial(norm_relu.norm_relu, norm=torch.nn.BatchNorm2d(64), pool=pool), 64)
    pixels, vector = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 1, 1)
    for layout in (torch.channels_last, torch.contiguous_format):
        on_gpu.normalize(pixels, vector, vector, layout)
    for config in (DenseNetConfig(), DenseNetConfig(growth_rate=12, stem="cifar")):
        infer = GpuNetwork(_parts(DenseNet(config.model_copy(update=SHALLOW)).eval()), dtype)
        infer(torch.zeros(2, 3, 32, 32))
    vectors = torch.zeros(2, 64, dtype=torch.float64)
    gpu.correction(torch.zeros(4, 64), vectors, vectors[0, 0], vectors)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("capability", [80, 90])
def test_triton_compiles_every_kernel(
    gpu: Any, launches: list[Launch], dtype: torch.dtype, capability: int
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch_everything(gpu, dtype)
    different = {launch.key(): launch for launch in launches}
    left = set(kernels_of(gpu)) - {launch.kernel for launch in launches}
    assert left == ({gpu.conv3.conv3_kernel} if dtype == torch.float32 else set())
    for launch in different.values():
        source = ASTSource(launch.kernel, *launch.source())
        made = triton.compile(source, GPUTarget("cuda", capability, 32), dict(launch.options))
        assert made.asm["cubin"]
        assert made.metadata.shared <= SHARED[capability], launch.key()
        assert spilled(made.asm["ptx"], capability) <= SPILLED, launch.key()


def spilled(ptx: str, capability: int) -> int:
    """Bytes a thread, as NVIDIA's assembler has it, which comes with Triton."""
    name = f"sm_{capability}{'a' if capability == 90 else ''}"
    command = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name", name, "-", "-o", os.devnull]
    done = subprocess.run(command, input=ptx, capture_output=True, text=True, check=True)
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", done.stderr)))


def kernels_of(gpu: Any) -> Iterator[Any]:
    """What is launched, not what that calls."""
    for module in (gpu.rows, gpu.sums, gpu.conv1, gpu.conv3, on_gpu):
        yield from (f for name, f in vars(module).items() if name.endswith("_kernel"))


# Few launches -------------------------------------------------------------------------------


class Counted(TorchDispatchMode):
    """How many of torch's operations compute something; a convolution's backward counts twice."""

    FREE = ("empty", "new_empty", "empty_like", "view", "slice", "select", "permute",
            "unsqueeze", "expand", "as_strided", "detach", "unbind", "_unsafe_view",
            "alias", "split", "t")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in self.FREE:
            self.names += [name] * (2 if name == "convolution_backward" else 1)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("growth_rate", LAUNCHES)
def test_a_layer_needs_few_launches(gpu: Any, launches: list[Launch], growth_rate: int) -> None:
    """By the second of three layers, in bfloat16, weights cast beforehand."""
    module = block(64, 3, growth_rate)
    parameters = [t for layer in module.values() for t in forward._layer_parameters(layer)]
    x, on = channels_last(torch.zeros(2, 64, 8, 8, dtype=torch.bfloat16)), [True] * 6
    found = []
    with torch.no_grad():
        going = forward._Forward(x, parameters, [], [1e-5] * 6, on, True, False)
        going.add_layer(0, 0.0)
        found.append(launched(lambda: going.add_layer(1, 0.0), launches))
        going.add_layer(2, 0.0)
        maps = as_maps(going.buffer, 8, 8)
        coming = backward._Backward(
            torch.zeros_like(maps), maps, going.moments, going.count, parameters, going.norms,
            going.bottlenecks, on, False, [True] * 19,
        )  # fmt: skip
        coming.through_layer(2, None, 0.0)
        found.append(launched(lambda: coming.through_layer(1, None, 0.0), launches))
    assert tuple(map(len, found)) == LAUNCHES[growth_rate], found


@pytest.mark.parametrize(("growth_rate", "expected"), [(12, 2), (32, 3)])
def test_a_layer_needs_fewer_where_it_is_evaluated(
    launches: list[Launch], growth_rate: int, expected: int
) -> None:
    """Three more, or two, for a layer more; nothing for its weights, which were cast once."""
    found = []
    for layers in (2, 3):
        config = DenseNetConfig(growth_rate=growth_rate, block_config=(layers, 2))
        infer = GpuNetwork(_parts(DenseNet(config).eval()), torch.bfloat16)
        with torch.no_grad():
            found.append(launched(partial(infer, torch.zeros(2, 3, 32, 32)), launches))
    assert len(found[1]) - len(found[0]) == expected, found[1]
    ends = ["_to_copy", "convolution", "norm_relu_pool_kernel", "norm_relu_mean_kernel", "addmm"]
    transition = ["norm_relu_pool_kernel", "conv1_kernel"]
    assert len(found[0]) == 4 * expected + len(ends) + len(transition), found[0]


def launched(call: Callable[[], object], launches: list[Launch]) -> list[str]:
    launches.clear()
    with Counted() as counted:
        call()
    return [*(launch.kernel.fn.__name__ for launch in launches), *counted.names]
