"""The kernels in C++ and in torch compute what they say, in float64.

Columns 1 to 70 take every width of vector and every rest; rows may stand in a wider map. Values are
eighths or quarters below 4, so that float32 holds every result exactly, and whether a relu is open
is no matter of rounding: what comes out is float64's, rounded once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from densekit.ops.lean.kernels import KERNEL_NAMES, kernels_for, native, plain
from densekit.ops.lean.kernels.plain import DeferredGrad, NormGrads, NormReluGrad, Pool
from densekit.ops.lean.layout import as_maps, as_rows

NO_NATIVE = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
KERNELS = pytest.mark.parametrize(
    "kernels",
    [
        pytest.param((native, "cpu"), marks=NO_NATIVE, id="native"),
        pytest.param((plain, "cpu"), id="plain"),
        pytest.param((None, "cuda"), marks=pytest.mark.gpu, id="cuda"),
        pytest.param((None, "cpu"), marks=pytest.mark.interpreted, id="interpreted"),
    ],
)


def implementing(kernels: tuple[Any, str]) -> Any:
    module, device = kernels
    if module is None and device == "cpu":
        from densekit.ops.lean.kernels import gpu  # imports Triton

        return gpu
    return module or kernels_for(torch.empty(0, device=device))


class Case:
    """Rows of c columns, with `beside` more columns on each side; and the kernels."""

    def __init__(self, kernels: tuple[Any, str], data: st.DataObject) -> None:
        self.kernels, self.device = kernels
        interpreted = self.kernels is None and self.device == "cpu"
        half = torch.float16 if interpreted else torch.bfloat16  # whose products it cannot compute
        self.dtype = data.draw(st.sampled_from([torch.float32, half]), "dtype")
        self.c = data.draw(st.integers(1, 70), "c")
        self.beside = data.draw(st.integers(0, 9), "beside")
        self.step, self.limit = 0.25, 16
        self.generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999), "seed"))
        self.kernels = implementing(kernels)

    def drawn(self, *shape: int) -> Tensor:
        """Multiples of a step, as many as the limit each way: quarters from -4 to 4."""
        whole = torch.randint(-self.limit, self.limit + 1, shape, generator=self.generator)
        return whole.to(self.device) * self.step

    def rows(self, count: int, wide: bool = True) -> Tensor:
        beside = self.beside if wide else 0
        whole = self.drawn(count, self.c + 2 * beside).to(self.dtype)
        return whole[:, beside : beside + self.c]

    def norm(self) -> Tensor:
        """mean, scale, shift and a rstd; each is float32."""
        return self.drawn(4, self.c)

    def sums(self) -> Tensor:
        """Columns of wider ones."""
        return self.drawn(2, self.c + self.beside).double()[:, self.beside :]

    def grads(self, line: bool = True) -> NormGrads:
        """To be written; the line, to be added to, is 0.25."""
        count, of = torch.tensor(12.0, dtype=torch.float64), self.drawn(2, self.c)
        before = torch.full_like(self.sums(), 0.25) if line else None
        return NormGrads(self.sums(), *of, count.to(self.device), before)


def normed(x: Tensor, norm: Tensor) -> Tensor:
    mean, scale, shift, _ = norm.double()
    return (x.double() - mean) * scale + shift


def truth_of_sums(g: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    return torch.stack([g.sum(0), (g * (x.double() - norm[0])).sum(0)])


def follow(grads: NormGrads, norm: Tensor) -> None:
    """That the rest follows from the sums."""
    first, second = grads.sums
    scale, rstd = norm[1].double(), norm[3].double()
    torch.testing.assert_close(grads.gamma, (second * rstd).float())
    torch.testing.assert_close(grads.beta, first.float())
    if grads.line is not None:
        lines = torch.stack([-scale * first, -scale * rstd**2 * second]) / grads.values
        torch.testing.assert_close(grads.line, lines + 0.25, rtol=1e-12, atol=1e-12)


def rounded(found: Tensor, truth: Tensor) -> bool:
    return torch.equal(found, truth.float().to(found.dtype))


COUNTS = st.integers(0, 200)


@KERNELS
@given(data=st.data(), count=COUNTS)
def test_norm_relu(kernels: Any, data: st.DataObject, count: int) -> None:
    case = Case(kernels, data)
    x, norm, out = case.rows(count), case.norm(), case.rows(count, wide=False)
    case.kernels.norm_relu(x, norm, out)
    assert rounded(out, normed(x, norm).relu())


@KERNELS
@given(data=st.data(), count=COUNTS)
def test_grad_sums(kernels: Any, data: st.DataObject, count: int) -> None:
    case = Case(kernels, data)
    x, norm, da, grads = case.rows(count), case.norm(), case.rows(count, False), case.grads()
    expected = truth_of_sums(da.double() * (normed(x, norm) > 0), x, norm)
    case.kernels.grad_sums(x, norm, da, grads, None)
    assert torch.equal(grads.sums, expected)
    follow(grads, norm)


@KERNELS
@given(data=st.data(), count=COUNTS, in_place=st.booleans())
def test_norm_relu_grad(kernels: Any, data: st.DataObject, count: int, in_place: bool) -> None:
    case = Case(kernels, data)
    x, norm, da, line = (
        case.rows(count),
        case.norm(),
        case.rows(count, False),
        case.sums(),
    )
    g = da.double() * (normed(x, norm) > 0)
    expected = g * norm[1] + line[0] + (x.double() - norm[0]) * line[1]
    out = da if in_place else case.rows(count, wide=False)
    case.kernels.norm_relu_grad(x, norm, da, line, out)
    assert rounded(out, expected)


@KERNELS
@given(data=st.data(), count=COUNTS)
def test_add_line(kernels: Any, data: st.DataObject, count: int) -> None:
    case = Case(kernels, data)
    x, d, out = case.rows(count), case.rows(count), case.rows(count, wide=False)
    mean, (shift, slope) = case.sums()[0], case.sums()
    case.kernels.add_line(DeferredGrad(d, x, mean, torch.stack([shift, slope])), out)
    assert rounded(out, d.double() + shift + (x.double() - mean) * slope)


# Pools --------------------------------------------------------------------------------------

MAPS = st.tuples(st.integers(0, 3), st.integers(2, 9), st.integers(2, 9))
POOLS = {"average": lambda x: F.avg_pool2d(x, 2), "max": lambda x: F.max_pool2d(x, 3, 2, 1)}


@KERNELS
@pytest.mark.parametrize("kind", POOLS)
@given(data=st.data(), maps=MAPS)
def test_pools(kernels: Any, kind: str, data: st.DataObject, maps: tuple[int, int, int]) -> None:
    """Values, and of equal ones which: torch's own gradient tells."""
    case, (n, h, w) = Case(kernels, data), maps
    case.step, case.limit = 0.5, 3  # so that bfloat16 is exact before the pool as well
    x, norm, line = case.rows(n * h * w), case.norm(), case.sums()
    y = normed(x, norm).requires_grad_()
    pooled = as_rows(POOLS[kind](as_maps(y.relu(), h, w)))
    out, da = case.rows(len(pooled), wide=False), case.rows(len(pooled), wide=False)
    (g,) = torch.autograd.grad(pooled, y, da.double())

    taken = torch.empty(out.shape, dtype=torch.uint8, device=out.device) if kind == "max" else None
    case.kernels.norm_relu_pool(x, norm, out, Pool(h, w, taken))
    assert rounded(out, pooled)
    grads, dx = case.grads(), case.rows(len(x), wide=False)
    case.kernels.grad_sums(x, norm, da, grads, Pool(h, w, taken))
    assert torch.equal(grads.sums, truth_of_sums(g, x, norm))
    follow(grads, norm)
    case.kernels.norm_relu_grad(x, norm, da, line, dx, Pool(h, w, taken))
    assert rounded(dx, g * norm[1] + line[0] + (x.double() - norm[0]) * line[1])


# Convolutions -------------------------------------------------------------------------------


SIZES = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 60))  # n, h, w
WINDOWS = st.sampled_from([1, 3])


def convolution(
    kernels: Any, data: st.DataObject, window: int, long: str
) -> tuple[Case, Case, Tensor]:
    """What draws c channels, what draws k, and a weight [k, c, window, window] in some layout.

    Values are so small that in C++, where products are summed up in float32, sums are exact.
    `long`, c or k unless empty, is at times more than C++ multiplies in one part.
    """
    case = Case(kernels, data)
    behind = Case(kernels, data)
    behind.dtype = case.dtype
    for of in (case, behind):
        of.limit = 4
        of.c = 1 + of.c % (20 if window == 3 else 70)
    if long and data.draw(st.booleans(), "in parts"):
        (case if long == "c" else behind).c += 400 // window
    weight = case.drawn(behind.c, case.c, window, window)
    if data.draw(st.booleans(), "channels_last"):
        weight = weight.contiguous(memory_format=torch.channels_last)
    return case, behind, weight


def agrees(case: Case, found: Tensor, truth: Tensor) -> bool:
    """Exactly in C++; elsewhere as far as the library's convolutions go."""
    if case.kernels is native:
        return rounded(found, truth) if found.dtype != torch.float64 else torch.equal(found, truth)
    limit = 1e-5 if case.dtype == torch.float32 else 2e-2
    return bool(((found.double() - truth).abs() <= limit * (1 + truth.abs().max())).all())


@KERNELS
@given(data=st.data(), size=SIZES, window=WINDOWS, with_moments=st.booleans())
def test_norm_relu_conv(
    kernels: Any, data: st.DataObject, size: tuple[int, int, int], window: int, with_moments: bool
) -> None:
    case, behind, weight = convolution(kernels, data, window, "" if with_moments else "c")
    n, h, w = size
    x, norm, z = case.rows(n * h * w), case.norm(), behind.rows(n * h * w)
    found = behind.sums() if with_moments else None
    a = normed(x, norm).relu().to(case.dtype).double()
    maps = F.conv2d(as_maps(a, h, w), weight.double(), padding=window // 2)
    case.kernels.norm_relu_conv(x, norm, weight, z, (h, w), found)
    assert agrees(case, z, as_rows(maps))
    if found is not None:
        var, mean = torch.var_mean(z.double(), 0, correction=0)
        rounding = mean.abs() * 1e-6  # of a value near the mean
        assert ((found[0] - mean).abs() <= rounding + var.sqrt() * 1e-6).all()
        assert ((found[1] / len(z) - var).abs() <= rounding**2 + var * 1e-5).all()


@KERNELS
@given(
    data=st.data(),
    size=SIZES,
    window=WINDOWS,
    asked=st.sampled_from(["d in place", "d", "da", "sums", "weight"]),
)
def test_norm_relu_conv_backward(
    kernels: Any, data: st.DataObject, size: tuple[int, int, int], window: int, asked: str
) -> None:
    case, back, weight = convolution(kernels, data, window, "k")
    n, h, w = size
    m = n * h * w
    x, norm = case.rows(m), case.norm()
    if data.draw(st.booleans(), "before a norm"):
        y, da, norm_y, line = (
            back.rows(m, False),
            back.rows(m, False),
            back.norm(),
            back.sums(),
        )
        behind: Any = NormReluGrad(y, norm_y, da, line)
        g = da.double() * (normed(y, norm_y) > 0)
        dz = g * norm_y[1] + line[0] + (y.double() - norm_y[0]) * line[1]
    else:
        behind = DeferredGrad(back.rows(m), back.rows(m), back.sums()[0], back.sums())
        mean, (shift, slope) = behind.mean, behind.line
        dz = behind.d.double() + shift + (behind.x.double() - mean) * slope
    a = normed(x, norm).relu().to(case.dtype).double()
    leaves = [as_maps(a, h, w).requires_grad_(), weight.double().requires_grad_()]
    maps = F.conv2d(*leaves, padding=window // 2)
    gradient, of_weight = torch.autograd.grad(
        maps, leaves, as_maps(dz.to(case.dtype).double(), h, w)
    )
    g = as_rows(gradient) * (normed(x, norm) > 0)

    grads = None if asked == "weight" else case.grads(line=asked != "d")
    grad = None if asked == "sums" else torch.ones_like(weight)
    expected = truth_of_sums(g, x, norm)
    d = to = result = None
    if asked.startswith("d"):
        d = None if asked == "da" else case.rows(m)
        result = g if d is None else d.double() + g * norm[1]
        to = d if asked == "d in place" else case.rows(m)
    case.kernels.norm_relu_conv_backward(behind, x, norm, weight, (h, w), grads, grad, d, to)
    assert to is None or agrees(case, to, result)
    assert grad is None or agrees(case, grad, of_weight)
    if grads is not None:
        assert agrees(case, grads.sums, expected)
        follow(grads, norm)


# Statistics ---------------------------------------------------------------------------------


@KERNELS
@pytest.mark.parametrize("mean", [0.0, 1000.0])
@given(data=st.data(), count=st.integers(1, 200), copied=st.booleans())
def test_moments(kernels: Any, mean: float, data: st.DataObject, count: int, copied: bool) -> None:
    """In C++ the mean's size does not matter; plain rounds each mean."""
    case = Case(kernels, data)
    case.dtype = torch.float32 if mean else case.dtype
    noise = torch.randn(count, case.c, generator=case.generator).to(case.device)
    z = case.rows(count)
    z.copy_(noise + mean)
    kept, copy = z.clone(), case.rows(count) if copied else None
    found = torch.full((2, case.c), 7.0, dtype=torch.float64, device=case.device)
    case.kernels.moments(z, found, copy)
    var, true_mean = torch.var_mean(z.double(), 0, correction=0)
    off = 1e-6 if case.kernels is native else 1e-6 + mean * 2**-23
    torch.testing.assert_close(found[0], true_mean, rtol=0, atol=off)
    torch.testing.assert_close(found[1], var * count, rtol=1e-5, atol=4 * off * count)
    assert torch.equal(z, kept)
    assert copy is None or torch.equal(copy, z)


@KERNELS
@given(data=st.data())
def test_vectors(kernels: Any, data: st.DataObject) -> None:
    """normalisation reads the first columns of a block's moments; correction is its backward."""
    case = Case(kernels, data)
    moments = torch.randn(2, case.c + case.beside, generator=case.generator).double()
    moments[1].abs_()
    moments, count = moments.to(case.device), torch.tensor(12.0, device=case.device).double()
    gamma, beta, sums = case.drawn(case.c), case.drawn(case.c), case.sums()
    norm, line = case.norm(), torch.full_like(case.sums(), 0.25)
    case.kernels.normalisation(moments[:, : case.c], count, gamma, beta, 1e-5, norm)
    mean, squares = moments[:, : case.c]
    rstd = (squares / count + 1e-5) ** -0.5
    torch.testing.assert_close(norm, torch.stack([mean, gamma * rstd, beta.double(), rstd]).float())
    case.kernels.correction(norm, sums, count, line)
    scale, rstd = norm[1].double(), norm[3].double()
    expected = torch.stack([-scale * sums[0], -scale * rstd**2 * sums[1]]) / count
    torch.testing.assert_close(line, expected + 0.25, rtol=1e-12, atol=1e-12)


# Rounding -----------------------------------------------------------------------------------


@KERNELS
def test_bfloat16_is_rounded_to_nearest_even_and_keeps_nan(kernels: Any) -> None:
    """At, and right beside, the middle above every bfloat16 of full precision."""
    _, device = kernels
    if kernels == (None, "cpu"):
        return  # Triton's interpreter cuts bfloat16 off
    of = implementing(kernels)
    upper = torch.arange(0x0080, 0x7F80, dtype=torch.int32).repeat_interleave(4) << 16
    lower = torch.tensor([0, 0x7FFF, 0x8000, 0x8001], dtype=torch.int32).repeat(0x7F80 - 0x0080)
    values = torch.cat([(upper | lower).view(torch.float32), torch.tensor([torch.inf, torch.nan])])
    values = torch.cat([values, values.new_zeros(-len(values) % 29)]).view(-1, 29).to(device)
    d = values.bfloat16()
    x = torch.zeros_like(d)
    out, line = torch.empty_like(d), values.new_zeros(2, 29).double()
    for row, shift in enumerate(values.split(1)):  # 29 columns are vectors of 16, 8, 4 and 1
        line[0], zeros = shift, x[row : row + 1]
        of.add_line(DeferredGrad(zeros, zeros, torch.zeros_like(line[0]), line), out[row : row + 1])
    assert torch.equal(out.isnan(), values.isnan())
    assert torch.equal(out.nan_to_num(7.0), d.nan_to_num(7.0))


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_spreads_as_in_torch(
    kernels: Any, dtype: torch.dtype, value: float
) -> None:
    _, device = kernels
    of = implementing(kernels)
    c = 29
    norm = torch.ones(4, c, device=device)
    norm[1, ::2] = -1.0
    x, da = torch.zeros(5, c, dtype=dtype, device=device), torch.ones(5, c, device=device).to(dtype)
    x[2] = value
    y = normed(x, norm).requires_grad_()
    (g,) = torch.autograd.grad(y.relu(), y, da.double())
    a, dx = torch.empty_like(x), torch.empty_like(x)
    of.norm_relu(x, norm, a)
    assert torch.equal(a.isnan(), y.isnan())
    assert torch.equal(a.nan_to_num(7.0), y.relu().to(dtype).nan_to_num(7.0))
    of.norm_relu_grad(x, norm, da, norm.new_zeros(2, c).double(), dx)
    assert torch.equal(dx, (g * norm[1]).to(dtype))
    found = torch.zeros(2, c, dtype=torch.float64, device=device)
    of.moments(x, found)
    assert not found.isfinite().any()


def test_every_kernel_is_in_both() -> None:
    assert all(hasattr(native, name) and hasattr(plain, name) for name in KERNEL_NAMES)
