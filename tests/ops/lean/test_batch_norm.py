"""Vectors of channels: running statistics as nn.BatchNorm2d's, and moments put together."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from truth import ON, draw_norms

from densekit.ops.lean.batch_norm import (
    mean_and_variance,
    refuse_one_value,
    refuse_second_derivative,
    running_moments,
    update_running,
)
from densekit.ops.lean.kernels.plain import merge_moments


def norms(momenta: list[float | None], device: str) -> nn.ModuleList:
    made = nn.ModuleList(nn.BatchNorm2d(3 + i, momentum=m) for i, m in enumerate(momenta))
    draw_norms(made)
    return made.double().to(device)


def statistics_of(x: Tensor) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x, (0, 2, 3))
    return mean, var


@ON
@pytest.mark.parametrize(
    "momenta", [[0.1], [None], [0.0, 1.0], [0.1, None, 0.1, 0.3, None]], ids=str
)
def test_running_statistics_are_batchnorms(momenta: list[float | None], device: str) -> None:
    found = norms(momenta, device)
    expected = copy.deepcopy(found)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        xs = [
            torch.randn(2, norm.num_features, 3, 2, generator=generator).double().to(device)
            for norm in found
        ]
        for norm, x in zip(expected, xs, strict=True):
            norm(x)
        update_running(list(found), *zip(*map(statistics_of, xs), strict=True))
    for (name, ours), theirs in zip(found.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15, msg=name)


@ON
def test_nan_reaches_running_statistics_as_in_batchnorm(device: str) -> None:
    found = norms([0.1], device)
    expected = copy.deepcopy(found)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, device=device)
    x[0, 1] = float("nan")
    expected[0](x)
    update_running(list(found), *([part] for part in statistics_of(x)))
    for ours, theirs in zip(found.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_buffers_are_updated_in_place_and_without_a_graph() -> None:
    norm = nn.BatchNorm2d(3)
    kept = norm.running_mean
    update_running([norm], [torch.ones(3, requires_grad=True)], [torch.ones(3)])
    assert norm.running_mean is kept
    assert not kept.requires_grad


@given(
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    mean=st.sampled_from([0.0, -3.0, 1e3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_merged_moments_are_those_of_all_values(counts: list[int], mean: float, seed: int) -> None:
    parts = [np.random.default_rng(seed).normal(mean, 1.0, (count, 3)) for count in counts]
    moments = np.stack([[p.mean(0), ((p - p.mean(0)) ** 2).sum(0)] for p in parts])
    whole = np.concatenate(parts)
    merged = merge_moments(torch.from_numpy(moments), torch.tensor(counts, dtype=torch.float64))
    expected = [whole.mean(0), ((whole - whole.mean(0)) ** 2).sum(0)]
    np.testing.assert_allclose(merged, expected, rtol=1e-9, atol=1e-12)


def test_a_part_without_values_adds_nothing() -> None:
    """As a rank whose share of a batch is empty."""
    parts = torch.tensor([[[2.0], [6.0]], [[0.0], [0.0]]], dtype=torch.float64)
    assert torch.equal(merge_moments(parts, torch.tensor([4.0, 0.0]).double()), parts[0])


def test_mean_and_unbiased_variance_come_in_the_buffers_format() -> None:
    moments = torch.tensor([[[2.0], [6.0]]], dtype=torch.float64)
    mean, variance = mean_and_variance(moments, torch.tensor(4.0), nn.BatchNorm2d(1))
    assert (mean.item(), variance.item()) == (2.0, 2.0)
    assert mean.dtype == variance.dtype == torch.float32


def test_running_statistics_serve_as_moments_of_one_value() -> None:
    norm = norms([0.1], "cpu")[0]
    moments, count = running_moments(norm)
    assert torch.equal(moments, torch.stack([norm.running_mean, norm.running_var]))
    assert count == 1


def test_one_value_is_refused_with_torchs_own_words() -> None:
    x = torch.ones(1, 4, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel") as theirs:
        nn.BatchNorm2d(4)(x)
    with pytest.raises(ValueError, match="more than 1 value per channel") as ours:
        refuse_one_value(x, sync=False)
    assert str(ours.value).split(", got")[0] == str(theirs.value).split(", got")[0]
    refuse_one_value(x, sync=True)  # other ranks may have more
    refuse_one_value(torch.ones(2, 4, 1, 1), sync=False)


def test_a_second_derivative_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match=r"model\.op=reference"):
        refuse_second_derivative()
