"""on_cpu.py: the bits and strides that torch's own operations give, whatever the layout."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from densekit.data import on_cpu
from densekit.data.transforms import Preprocessing
from densekit.native_code import COMPILERS

FORMATS = (torch.contiguous_format, torch.channels_last)
compiled = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="a C++ compiler")


def by_torch(x: Tensor, mean: Tensor, std: Tensor, memory_format: torch.memory_format) -> Tensor:
    if memory_format != torch.preserve_format:
        x = x.contiguous(memory_format=memory_format)
    return (x - mean if x.is_floating_point() else x.div(255).sub(mean)).div(std)


def pixels(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """16 bits deep where they are floats."""
    draw = np.random.default_rng(seed)
    if dtype == torch.uint8:
        return torch.from_numpy(draw.integers(0, 256, shape, np.uint8))
    return torch.from_numpy(draw.integers(0, 65536, shape).astype(np.float32) / np.float32(65535))


@compiled
@settings(max_examples=60)
@given(
    shape=st.tuples(
        st.integers(0, 3), st.sampled_from([1, 2, 3, 4, 7, 70]), st.integers(1, 40),
        st.integers(1, 150),
    ),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    layout=st.sampled_from(FORMATS),
    asked=st.sampled_from([torch.preserve_format, *FORMATS]),
    one_value=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_bits_and_strides_are_torchs(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format,
    asked: torch.memory_format, one_value: bool, threads: int, seed: int,
) -> None:  # fmt: skip
    x = pixels(shape, dtype, seed).contiguous(memory_format=layout)
    draw = torch.Generator().manual_seed(seed)
    of = (1, 1 if one_value else shape[1], 1, 1)
    mean, std = torch.rand(of, generator=draw), torch.rand(of, generator=draw) + 0.1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = on_cpu.normalize_batch(x, mean, std, asked, None)
    finally:
        torch.set_num_threads(before)
    expected = by_torch(x, mean, std, asked)
    if not x.numel():
        assert found is None
        return
    assert found is not None
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    scaled = x.double() / (255 if dtype == torch.uint8 else 1)
    exact = (scaled - mean.double()) / std.double()
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=2e-6)


@compiled
@pytest.mark.parametrize("given_format", FORMATS)
@pytest.mark.parametrize("out_format", FORMATS)
def test_into_memory_that_is_there(
    given_format: torch.memory_format, out_format: torch.memory_format
) -> None:
    x = pixels((2, 3, 9, 11), torch.uint8, 0).contiguous(memory_format=given_format)
    out = torch.full(x.shape, torch.nan).contiguous(memory_format=out_format)
    seen = Preprocessing()
    assert seen.normalize(x, out=out) is out
    assert torch.equal(out, seen.normalize(x))


@compiled
def test_values_that_are_not_finite_stay_so() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1.0]).view(1, 1, 1, 5)
    one = torch.ones(1, 1, 1, 1)
    found = on_cpu.normalize_batch(x, one, one, torch.channels_last, None)
    assert found is not None
    torch.testing.assert_close(found, x - 1, rtol=0, atol=0, equal_nan=True)


def test_without_a_compiler_torch_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """And for what the kernel does not take: part of a larger batch, other memory, gradients."""
    whole = pixels((3, 3, 20, 30), torch.uint8, 1)
    seen, part = Preprocessing(), whole[:, :, 3:, :17]
    floats = part.div(255).requires_grad_()
    sides = []
    for functions in (on_cpu._functions, lambda _: {}):
        monkeypatch.setattr(on_cpu, "_functions", functions)
        into = torch.empty(3, 20, 30, 3).permute(0, 3, 1, 2)[:, :, 3:, :17]
        sides.append(
            [
                *(seen.normalize(x, asked) for x in (whole, part, floats) for asked in FORMATS),
                seen.normalize(part, out=into),
            ]
        )
        seen.normalize(floats).sum().backward()
    assert all(map(torch.equal, *sides))
    assert floats.grad is not None


# Crops --------------------------------------------------------------------------------------


@compiled
@settings(max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4),
    channels=st.sampled_from([1, 2, 3, 5]),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    side=st.integers(1, 14),
    data=st.data(),
)
def test_crops_are_slices_of_padded_images(
    sizes: list[tuple[int, int]], channels: int, dtype: torch.dtype, side: int, data: st.DataObject
) -> None:
    """Also such as lie outside of the image altogether; in any order of rows."""
    images = [pixels((height, width, channels), dtype, 9) for height, width in sizes]
    starts = np.cumsum([0, *(image.numel() for image in images)])
    rows = data.draw(st.permutations(range(len(images))))
    crops, expected = [], torch.empty((len(images), channels, side, side), dtype=dtype)
    border = 30
    for row, image, start in zip(rows, images, starts, strict=False):
        height, width = image.shape[:2]
        top, left = data.draw(st.integers(-16, 16)), data.draw(st.integers(-16, 16))
        mirrored = data.draw(st.booleans())
        crops.append((row, on_cpu.Crop(int(start), height, width, top, left, mirrored)))
        padded = torch.nn.functional.pad(image.permute(2, 0, 1), [border] * 4)
        square = padded[:, top + border :, left + border :][:, :side, :side]
        expected[row] = square.flip(-1) if mirrored else square
    out = torch.full_like(expected, 77)
    on_cpu.copy_crops(torch.cat([image.flatten() for image in images]), crops, out)
    assert torch.equal(out, expected)
