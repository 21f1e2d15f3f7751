"""lean on several processes: sync-BN and DDP, held against one process with all the images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_sync_bn import CONFIG, IMAGES, Ranks, Results, Shares, error, images, joined, share_of
from torch import nn

from densekit import distributed
from densekit.models.densenet import DenseNet

SHARES: dict[int, list[Shares]] = {2: [(3, 2), (5, 0)], 3: [(2, 2, 1), (0, 4, 1), (5, 0, 0)]}
PRECISIONS = ("fp64", "fp32", "bf16")
SLOW = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """A network and how its ranks work together."""

    bottleneck: bool = True
    sync_bn: bool = True
    ddp: bool = False
    frozen: str = ""


CASES = {
    "sync-BN": Case(),
    "sync-BN without bottleneck": Case(bottleneck=False),
    "DDP and sync-BN": Case(ddp=True),
    "DDP and sync-BN, frozen": Case(ddp=True, frozen="transition1"),
    "DDP": Case(ddp=True, sync_bn=False),
}


# What a rank does ---------------------------------------------------------------------------


def steps(case: Case, op: str, precision: str, shares: Shares, rank: int) -> Results:
    """Two steps of SGD: own logits and input gradients, summed weight gradients, the state."""
    dtype = torch.float64 if precision == "fp64" else torch.float32
    config = CONFIG if case.bottleneck else CONFIG.model_copy(update={"bn_size": 0})
    torch.manual_seed(0)
    model = DenseNet(config, op, case.sync_bn)
    for module in model.modules():  # a fresh norm0's gradient is all cancellation: shift it
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0, 0.3)
    model.to(dtype)
    if case.frozen:
        model.freeze(case.frozen)
    x = share_of(images(dtype, 3, 17, 19), shares, rank).requires_grad_(not case.frozen)
    forward = distributed.wrap(model, torch.zeros(1, 3, 17, 19, dtype=dtype)) if case.ddp else model
    labels = share_of(torch.arange(IMAGES) % 3, shares, rank)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    results: Results = {}
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = forward(x)
        loss = nn.functional.cross_entropy(logits.to(dtype), labels, reduction="sum") / IMAGES
        optimizer.zero_grad()
        x.grad = None
        loss.backward()
        for name, parameter in trained.items():
            assert parameter.grad is not None
            if dist.is_initialized() and not case.ddp:
                dist.all_reduce(parameter.grad)
            results[f"gradient {step} {name}"] = parameter.grad.clone()
        results[f"own output {step}"] = logits.detach()
        if x.grad is not None:
            results[f"own input {step}"] = x.grad
        optimizer.step()
    kind = "state" if case.sync_bn else "own state"  # running statistics are each rank's then
    return results | {f"{kind} {key}": value for key, value in model.state_dict().items()}


def computed(world: int) -> list[tuple[str, Shares, str]]:
    """All in float64; in other precisions one network on two ranks (quick), all on three (slow)."""
    return [
        (name, shares, precision)
        for (name, case), shares, precision in product(CASES.items(), SHARES[world], PRECISIONS)
        # BatchNorm of one rank alone cannot do without images
        if (case.sync_bn or min(shares) > 0)
        and (precision == "fp64" or name == "sync-BN" or world > 2)
    ]


def run_rank(rank: int, world: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    results = {
        (name, shares, precision): steps(CASES[name], "lean", precision, shares, rank)
        for name, shares, precision in computed(world)
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=SLOW)], ids="{}ranks".format)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(
        run_rank, (request.param, folder), nprocs=request.param, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


# Tests --------------------------------------------------------------------------------------

SYNCHRONISED = [name for name, case in CASES.items() if case.sync_bn]


@pytest.mark.parametrize("name", SYNCHRONISED)
def test_in_float64_ranks_equal_one_process_by_the_reference(name: str, ranks: Ranks) -> None:
    want = steps(CASES[name], "reference", "fp64", (IMAGES,), 0)
    for shares in SHARES[len(ranks)]:
        got = joined(ranks, (name, shares, "fp64"))
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert error(got[key], value) < 1e-10, (shares, key)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_in_less_the_error_is_at_most_three_times_the_references(
    precision: str, ranks: Ranks
) -> None:
    """Of the root mean square over tensors, for each kind of tensor."""
    chosen = [key for key in ranks[0] if key[0] in SYNCHRONISED and key[2] == precision]
    assert chosen
    for name, shares, _ in chosen:
        truth, one = (steps(CASES[name], "reference", p, (IMAGES,), 0) for p in ("fp64", precision))
        got = joined(ranks, (name, shares, precision))
        for kind in ("output", "input", "gradient", "state"):
            names = [key for key in truth if kind in key.split()]
            ours, ones = (
                sum(error(result[key], truth[key]) ** 2 for key in names) ** 0.5
                for result in (got, one)
            )
            assert not names or 0 < ours <= 3 * ones, (name, shares, kind, ours, ones)


def test_ddp_sums_what_each_rank_would_have_alone(ranks: Ranks) -> None:
    """The first step's gradients, in float64; each rank's norms see its own images."""
    shares = SHARES[len(ranks)][0]
    alone = [steps(CASES["DDP"], "reference", "fp64", shares, r) for r in range(len(ranks))]
    for rank, own in enumerate(ranks):
        found = own["DDP", shares, "fp64"]
        for key, value in found.items():
            if key.startswith("gradient 0"):
                assert error(value, sum(other[key] for other in alone)) < 1e-10, key
            if key == "own output 0":
                assert error(value, alone[rank][key]) < 1e-10


def test_a_frozen_part_of_a_ddp_network_stays(ranks: Ranks) -> None:
    """It has no gradients, and DDP waits for none (find_unused_parameters is off)."""
    found = joined(ranks, ("DDP and sync-BN, frozen", SHARES[len(ranks)][0], "fp64"))
    torch.manual_seed(0)
    begun = DenseNet(CONFIG).state_dict()
    frozen = [key for key in begun if "denseblock1" in key and "norm" not in key]
    assert frozen
    for key in frozen:
        assert torch.equal(found[f"state {key}"].float(), begun[key]), key
        assert f"gradient 0 {key}" not in found
    assert "gradient 0 features.denseblock2.denselayer1.conv1.weight" in found
