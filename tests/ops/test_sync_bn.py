"""Every comparison is with one process that has all the images: the meaning of the statistics."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from densekit.config import UserError
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.ops.sync_bn import SyncBatchNorm2d

Shares = tuple[int, ...]
"""Images of each rank."""
Results = dict[str, Tensor]
Work = Callable[[Shares, int, torch.dtype], Results]
Ranks = list[dict[Any, Results]]
"""By rank: what each work on each split gave."""

IMAGES = 5
SHARES: dict[int, list[Shares]] = {2: [(3, 2), (5, 0)], 3: [(2, 2, 1), (0, 4, 1), (5, 0, 0)]}
DTYPES = (torch.float64, torch.float32)
CONFIG = DenseNetConfig(
    growth_rate=4, block_config=(2, 2), num_init_features=6, bn_size=2, num_classes=3
)


# What a rank does ---------------------------------------------------------------------------


def images(dtype: torch.dtype, *size: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(IMAGES, *size, generator=generator, dtype=torch.float64).to(dtype)


def share_of(x: Tensor, shares: Shares, rank: int) -> Tensor:
    return x.split(list(shares))[rank].clone()


def network_steps(shares: Shares, rank: int, dtype: torch.dtype) -> Results:
    """Two steps of a small DenseNet: own logits and input gradients, summed weight gradients."""
    torch.manual_seed(0)
    model = DenseNet(CONFIG, sync_bn=True)
    for module in model.modules():  # a fresh norm0's gradient is all cancellation: shift it
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0, 0.3)
    model.to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    labels = share_of(torch.arange(IMAGES) % 3, shares, rank)
    x = share_of(images(dtype, 3, 17, 19), shares, rank).requires_grad_()
    results: Results = {}
    for step in range(2):
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / IMAGES
        optimizer.zero_grad()
        x.grad = None
        loss.backward()
        gradients = [p.grad for p in model.parameters()]
        for gradient in gradients:
            assert gradient is not None
            if dist.is_initialized():
                dist.all_reduce(gradient)
        assert x.grad is not None
        results |= {f"own output {step}": logits.detach(), f"own input {step}": x.grad}
        results |= {f"gradient {step} {n}": p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
    return results | {f"state {key}": value for key, value in model.state_dict().items()}


def norm_steps(shares: Shares, rank: int, dtype: torch.dtype) -> Results:
    """Two batches through single norms of every kind, channels_last, at mean = 1000 std."""
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "cumulative": {"momentum": None, "eps": 1e-3},
        "not affine": {"affine": False},
        "untracked": {"track_running_stats": False},
    }
    results: Results = {}
    for kind, options in kinds.items():
        norm = SyncBatchNorm2d(4, **options).to(dtype)
        for batch in range(2):
            x = share_of(images(dtype, 4, 5, 3), shares, rank) * (batch + 1) + 1000
            x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
            y = norm(x)
            y.backward(share_of(images(dtype, 4, 5, 3, seed=2), shares, rank))
            assert x.grad is not None
            results[f"own {kind} output {batch}"] = y.detach()
            results[f"own {kind} input {batch}"] = x.grad
        for name, parameter in norm.named_parameters():
            assert parameter.grad is not None
            if dist.is_initialized():
                dist.all_reduce(parameter.grad)
            results[f"{kind} gradient {name}"] = parameter.grad
        results |= {f"{kind} state {key}": value for key, value in norm.state_dict().items()}
    return results


def one_nan(shares: Shares, rank: int, dtype: torch.dtype) -> Results:
    """A NaN in one pixel of one channel of the last image."""
    x = images(dtype, 4, 5, 3)
    x[-1, 2, 1, 1] = torch.nan
    norm = SyncBatchNorm2d(4).to(dtype)
    return {"own output": norm(share_of(x, shares, rank)).detach(), **norm.state_dict()}


def autocast(shares: Shares, rank: int, dtype: torch.dtype) -> Results:
    """bfloat16 images through a float32 norm."""
    norm = SyncBatchNorm2d(4)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(share_of(images(torch.bfloat16, 4, 5, 3), shares, rank))
    return {"own output": y.detach(), **norm.state_dict()}


def lone_pixel(shares: Shares, rank: int, dtype: torch.dtype) -> Results:
    """One value per channel over all ranks is refused on every rank; one on each is not."""
    norm = SyncBatchNorm2d(1, eps=1e-300).to(dtype)
    with pytest.raises(UserError, match="more than one value per channel"):
        norm(torch.zeros(int(rank == 1), 1, 1, 1, dtype=dtype))
    return {"own output": norm(torch.full((1, 1, 1, 1), float(rank), dtype=dtype)).detach()}


# Running ranks ------------------------------------------------------------------------------


def run_rank(rank: int, world: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    results = {}
    for shares in SHARES[world]:
        for work, dtype in product((network_steps, norm_steps), DTYPES):
            results[work.__name__, shares, dtype] = work(shares, rank, dtype)
    for work in (one_nan, autocast, lone_pixel):
        results[work.__name__] = work(SHARES[world][0], rank, torch.float64)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(
    scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)], ids="{}ranks".format
)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Every work on every split, in one start of two and one of three processes."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(
        run_rank, (request.param, folder), nprocs=request.param, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def joined(ranks: Ranks, key: Any) -> Results:
    """All ranks' own results in rank order, as one process has them; the rest is alike."""
    results = {}
    for name, value in ranks[0][key].items():
        values = [rank[key][name] for rank in ranks]
        if name.startswith("own"):
            value = torch.cat(values)
        else:
            assert all(torch.equal(v.nan_to_num(-1), value.nan_to_num(-1)) for v in values), name
        results[name] = value
    return results


def error(got: Tensor, want: Tensor) -> float:
    """Of the norms, relative."""
    return float((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-300))


# Tests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [network_steps, norm_steps])
def test_in_float64_ranks_equal_one_rank(work: Work, ranks: Ranks) -> None:
    want = work((IMAGES,), 0, torch.float64)
    for shares in SHARES[len(ranks)]:
        got = joined(ranks, (work.__name__, shares, torch.float64))
        assert list(got) == list(want)
        for name, value in want.items():
            assert error(got[name], value) < 1e-10, (shares, name)


@pytest.mark.parametrize("work", [network_steps, norm_steps])
def test_in_float32_the_error_is_at_most_twice_one_ranks(work: Work, ranks: Ranks) -> None:
    """Of the root mean square over tensors, for each kind of tensor."""
    truth, one = (work((IMAGES,), 0, dtype) for dtype in (torch.float64, torch.float32))
    for shares in SHARES[len(ranks)]:
        got = joined(ranks, (work.__name__, shares, torch.float32))
        for kind in ("output", "input", "gradient", "state"):
            names = [name for name in truth if kind in name.split()]
            ours, ones = (
                sum(error(result[name], truth[name]) ** 2 for name in names) ** 0.5
                for result in (got, one)
            )
            assert 0 < ours <= 2 * ones, (shares, kind, ours, ones)


def test_nan_reaches_every_rank_and_no_other_channel(ranks: Ranks) -> None:
    got = joined(ranks, "one_nan")
    assert got["own output"][:, 2].isnan().all()
    assert not got["own output"][:, [0, 1, 3]].isnan().any()
    assert got["running_mean"].isnan().tolist() == [False, False, True, False]
    assert got["running_var"].isnan().tolist() == [False, False, True, False]


def test_under_autocast_images_keep_their_dtype(ranks: Ranks) -> None:
    got, one = joined(ranks, "autocast"), autocast((IMAGES,), 0, torch.float64)
    assert got["own output"].dtype == one["own output"].dtype == torch.bfloat16
    assert got["running_var"].dtype == torch.float32
    for name, value in one.items():
        assert error(got[name], value) < 2**-8, name


def test_a_lone_pixel_is_refused_and_two_are_not(ranks: Ranks) -> None:
    got = joined(ranks, "lone_pixel")["own output"].flatten()
    places = torch.arange(len(ranks), dtype=torch.float64)
    assert torch.allclose(got, (places - places.mean()) / places.std(correction=0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"track_running_stats": False}])
def test_without_a_group_it_is_batch_norm_bit_for_bit(
    options: dict[str, Any], training: bool
) -> None:
    norms = [kind(4, **options).train(training) for kind in (SyncBatchNorm2d, nn.BatchNorm2d)]
    results = []
    for norm in norms:
        for _ in range(2):
            x = images(torch.float32, 4, 5, 3).requires_grad_()
            y = norm(x)
            y.square().sum().backward()
        results.append([y, x.grad, norm.weight.grad, norm.bias.grad, *norm.state_dict().values()])
    assert list(norms[0].state_dict()) == list(norms[1].state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
