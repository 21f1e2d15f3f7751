"""The kernels in C++ and in torch compute what they say, in float64.

Columns 1 to 70 take every width of vector and every rest; rows may stand in a wider map. Values are
eighths or quarters below 4, so that float32 holds every result exactly, and whether a relu is open
is no matter of rounding: what comes out is float64's, rounded once.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from truth import NO_CUDA

from densekit.ops.kernels import NAMES, kernels_for, native, plain
from densekit.ops.kernels.plain import Pool
from densekit.ops.rows import as_maps, as_rows

NO_NATIVE = pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
KERNELS = pytest.mark.parametrize(
    "kernels",
    [
        pytest.param((native, "cpu"), marks=NO_NATIVE, id="native"),
        pytest.param((plain, "cpu"), id="plain"),
        pytest.param((None, "cuda"), marks=NO_CUDA, id="cuda"),
    ],
)


class Case:
    """Rows of c columns, with `beside` more columns on each side; and the kernels."""

    def __init__(self, kernels: tuple[Any, str], data: st.DataObject) -> None:
        self.kernels, self.device = kernels
        self.dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]), "dtype")
        self.c = data.draw(st.integers(1, 70), "c")
        self.beside = data.draw(st.integers(0, 9), "beside")
        self.step, self.limit = 0.25, 16
        self.generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999), "seed"))
        if self.kernels is None:
            self.kernels = kernels_for(torch.empty(0, device=self.device))

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
        return self.drawn(2, self.c).double()


def normed(x: Tensor, norm: Tensor) -> Tensor:
    mean, scale, shift, _ = norm.double()
    return (x.double() - mean) * scale + shift


def truth_of_sums(g: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    return torch.stack([g.sum(0), (g * (x.double() - norm[0])).sum(0)])


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
@given(data=st.data(), count=COUNTS, again=st.booleans())
def test_grad_sums(kernels: Any, data: st.DataObject, count: int, again: bool) -> None:
    case = Case(kernels, data)
    x, norm, da, sums = case.rows(count), case.norm(), case.rows(count, wide=False), case.sums()
    a = case.rows(count, wide=False) if again else None
    y = normed(x, norm)
    expected = sums + truth_of_sums(da.double() * (y > 0), x, norm)
    case.kernels.grad_sums(x, norm, da, sums, None, a)
    assert torch.equal(sums, expected)
    assert a is None or rounded(a, y.relu())


@KERNELS
@given(data=st.data(), count=COUNTS, in_place=st.booleans())
def test_norm_relu_grad(kernels: Any, data: st.DataObject, count: int, in_place: bool) -> None:
    case = Case(kernels, data)
    x, norm, da, line = (
        case.rows(count),
        case.norm(),
        case.rows(count, False),
        case.drawn(2, case.c),
    )
    g = da.double() * (normed(x, norm) > 0)
    expected = g * norm[1] + line[0] + (x.double() - norm[0]) * line[1]
    out = da if in_place else case.rows(count, wide=False)
    case.kernels.norm_relu_grad(x, norm, da, line, out)
    assert rounded(out, expected)


@KERNELS
@given(data=st.data(), count=COUNTS, in_place=st.booleans(), again=st.booleans())
def test_accumulate(
    kernels: Any, data: st.DataObject, count: int, in_place: bool, again: bool
) -> None:
    case = Case(kernels, data)
    x, norm, da, sums = case.rows(count), case.norm(), case.rows(count, wide=False), case.sums()
    d = case.rows(count)
    to, a = d if in_place else case.rows(count), case.rows(count, False) if again else None
    y = normed(x, norm)
    g = da.double() * (y > 0)
    expected, expected_sums = d.double() + g * norm[1], sums + truth_of_sums(g, x, norm)
    case.kernels.accumulate(x, norm, da, d, to, sums, a)
    assert rounded(to, expected)
    assert torch.equal(sums, expected_sums)
    assert a is None or rounded(a, y.relu())


@KERNELS
@given(data=st.data(), count=COUNTS)
def test_add_line(kernels: Any, data: st.DataObject, count: int) -> None:
    case = Case(kernels, data)
    x, d, line, out = case.rows(count), case.rows(count), case.drawn(3, case.c), None
    out = case.rows(count, wide=False)
    case.kernels.add_line(d, x, line, out)
    mean, shift, slope = line
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
    x, norm, line = case.rows(n * h * w), case.norm(), case.drawn(2, case.c)
    y = normed(x, norm).requires_grad_()
    pooled = as_rows(POOLS[kind](as_maps(y.relu(), h, w)))
    out, da = case.rows(len(pooled), wide=False), case.rows(len(pooled), wide=False)
    (g,) = torch.autograd.grad(pooled, y, da.double())

    taken = torch.empty(out.shape, dtype=torch.uint8, device=out.device) if kind == "max" else None
    case.kernels.norm_relu_pool(x, norm, out, Pool(h, w, taken))
    assert rounded(out, pooled)
    sums, dx, a = case.sums(), case.rows(len(x), wide=False), case.rows(len(x), wide=False)
    expected = sums + truth_of_sums(g, x, norm)
    case.kernels.grad_sums(x, norm, da, sums, Pool(h, w, taken), a)
    assert torch.equal(sums, expected)
    assert rounded(a, y.relu())
    case.kernels.norm_relu_grad(x, norm, da, line, dx, Pool(h, w, taken))
    assert rounded(dx, g * norm[1] + line[0] + (x.double() - norm[0]) * line[1])


# Statistics ---------------------------------------------------------------------------------


@KERNELS
@pytest.mark.parametrize("mean", [0.0, 1000.0])
@given(data=st.data(), count=st.integers(1, 200), copied=st.booleans())
def test_moments(kernels: Any, mean: float, data: st.DataObject, count: int, copied: bool) -> None:
    """Of several calls together. In C++ the mean's size does not matter; plain rounds each mean."""
    case = Case(kernels, data)
    case.dtype = torch.float32 if mean else case.dtype
    noise = torch.randn(count, case.c, generator=case.generator).to(case.device)
    z = case.rows(count)
    z.copy_(noise + mean)
    kept, copy = z.clone(), case.rows(count) if copied else None
    found = torch.full((2, case.c), 7.0, dtype=torch.float64, device=case.device)
    cuts = [0, *sorted({data.draw(st.integers(1, count), "cut") for _ in range(2)}), count]
    for lo, hi in itertools.pairwise(cuts):
        if lo < hi:
            case.kernels.moments(z[lo:hi], found, lo, None if copy is None else copy[lo:hi])
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
    norm, line = case.norm(), case.sums()
    case.kernels.normalisation(moments[:, : case.c], count, gamma, beta, 1e-5, norm)
    mean, squares = moments[:, : case.c]
    rstd = (squares / count + 1e-5) ** -0.5
    torch.testing.assert_close(norm, torch.stack([mean, gamma * rstd, beta.double(), rstd]).float())
    case.kernels.correction(norm, sums, count, line)
    scale, rstd = norm[1].double(), norm[3].double()
    expected = torch.stack([-scale * sums[0], -scale * rstd**2 * sums[1]]) / count
    torch.testing.assert_close(line, expected, rtol=1e-12, atol=0)


# Rounding -----------------------------------------------------------------------------------


@KERNELS
def test_bfloat16_is_rounded_to_nearest_even_and_keeps_nan(kernels: Any) -> None:
    """At, and right beside, the middle above every bfloat16 of full precision."""
    _, device = kernels
    of = kernels_for(torch.empty(0, device=device)) if kernels[0] is None else kernels[0]
    upper = torch.arange(0x0080, 0x7F80, dtype=torch.int32).repeat_interleave(4) << 16
    lower = torch.tensor([0, 0x7FFF, 0x8000, 0x8001], dtype=torch.int32).repeat(0x7F80 - 0x0080)
    values = torch.cat([(upper | lower).view(torch.float32), torch.tensor([torch.inf, torch.nan])])
    values = torch.cat([values, values.new_zeros(-len(values) % 29)]).view(-1, 29).to(device)
    d = values.bfloat16()
    x = torch.zeros_like(d)
    out, line = torch.empty_like(d), values.new_zeros(3, 29)
    for row, shift in enumerate(values.split(1)):  # 29 columns are vectors of 16, 8, 4 and 1
        line[1] = shift
        of.add_line(x[row : row + 1], x[row : row + 1], line, out[row : row + 1])
    assert torch.equal(out.isnan(), values.isnan())
    assert torch.equal(out.nan_to_num(7.0), d.nan_to_num(7.0))


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_spreads_as_in_torch(
    kernels: Any, dtype: torch.dtype, value: float
) -> None:
    _, device = kernels
    of = kernels_for(torch.empty(0, device=device)) if kernels[0] is None else kernels[0]
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
    of.norm_relu_grad(x, norm, da, norm.new_zeros(2, c), dx)
    assert torch.equal(dx, (g * norm[1]).to(dtype))
    found = torch.zeros(2, c, dtype=torch.float64, device=device)
    of.moments(x, found)
    assert not found.isfinite().any()


def test_every_kernel_is_in_both() -> None:
    assert all(hasattr(native, name) and hasattr(plain, name) for name in NAMES)
