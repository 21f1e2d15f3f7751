"""N ranks count like one: gradients, weights, statistics, losses and evaluations.

Steps go through train_step on real digits, in float64 where sums over ranks must agree to
1e-10. The truth is one process; that in turn is compared with autograd on the mean loss.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from densekit import distributed
from densekit.config import UserError
from densekit.data.listing import read_list
from densekit.data.loader import eval_batches, micro_batches
from densekit.data.transforms import Preprocessing
from densekit.infer.evaluate import evaluate, logits_of
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.precision import Precision
from densekit.training.loss import make_loss
from densekit.training.recipe import LoopConfig
from densekit.training.step import SUMS, Learner, train_step
from runs import WAIT, Runs
from runs import digits as all_digits

slow = pytest.mark.slow
IMAGES = 65
CONFIG = DenseNetConfig(
    growth_rate=4, block_config=(2, 2), num_init_features=8, in_channels=1, num_classes=10
)
CPU = torch.device("cpu")
Case = tuple[int, int]
"""Batch size and accumulation."""
STEPS = {2: 8, 3: 20}
"""By ranks. In 8 steps each case has seen its short batch twice and more."""
CASES: dict[int, list[Case]] = {2: [(32, 1), (64, 1), (32, 2)], 3: [(63, 1), (6, 2), (36, 2)]}
"""By ranks. 65 images leave 1, 1, 1 and 2, 5, 29: in most, a rank's share of the rest is empty."""
Found = dict[str, Tensor]


# What a rank does ---------------------------------------------------------------------------


def make_learner(dtype: torch.dtype) -> Learner:
    torch.manual_seed(0)
    model = DenseNet(CONFIG, sync_bn=True)
    for module in model.modules():  # a fresh norm0's gradient is all cancellation: shift it
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0, 0.3)
    model.to(dtype).train()
    precision = Precision(CPU, "fp32", "contiguous")

    def prepare(images: Tensor) -> Tensor:
        return (images.to(dtype) / 255 - 0.13) / 0.31

    return Learner(
        model=model,
        forward=distributed.wrap(model, prepare(torch.zeros(1, 1, 24, 24, dtype=torch.uint8))),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        ema=None,
        precision=precision,
        prepare=prepare,
        mix=lambda images, labels: (images, labels),
        loss=make_loss(LoopConfig(), "multiclass", torch.device("cpu")),
    )


def train(digits: Path, case: Case, dtype: torch.dtype, steps: int) -> Found:
    """`steps` steps of this rank: each one's sums and first gradients, weights and statistics."""
    images, labels = torch.load(digits)
    batch_size, accumulation = case
    learner = make_learner(dtype)
    found: Found = {}
    starts = range(0, IMAGES, batch_size)
    for step in range(steps):
        start = starts[step % len(starts)]
        count = min(batch_size, IMAGES - start)
        parts = micro_batches(
            count, batch_size, accumulation, distributed.rank(), distributed.world_size()
        )
        shares = [(images[start:][part], labels[start:][part]) for part in parts]
        found[f"sums {step}"] = train_step(learner, shares, count, step)
        if step < len(starts):
            for name, parameter in learner.model.named_parameters():
                assert parameter.grad is not None
                found[f"gradient {step} {name}"] = parameter.grad.clone()
    return found | {f"state {k}": v.clone() for k, v in learner.model.state_dict().items()}


def train_all(digits: Path, cases: list[Case], steps: int, results: Path) -> None:
    distributed.start(CPU, timeout=WAIT, threads=1)
    found = {
        (case, dtype): train(digits, case, dtype, steps)
        for case in cases
        for dtype in (torch.float64, torch.float32)
    }
    torch.save(found, results / f"{distributed.rank()}.pt")
    distributed.stop()


# Training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """65 images of 24 x 24 pixels, uint8, and their labels."""
    file = tmp_path_factory.mktemp("tensors") / "digits.pt"
    rows = (runs.data / "train_list.txt").read_text().splitlines()[:IMAGES]
    images = [np.asarray(Image.open(runs.data / row.split()[0])) for row in rows]
    labels = [int(row.split()[1]) for row in rows]
    torch.save(
        (torch.from_numpy(np.stack(images))[:, None, 2:26, 2:26], torch.tensor(labels)), file
    )
    return file


@dataclass
class Trained:
    """What each rank of `ranks` found in CASES, and what one rank alone found in the same."""

    ranks: list[dict[tuple[Case, torch.dtype], Found]]
    alone: dict[tuple[Case, torch.dtype], Found]

    @property
    def cases(self) -> list[Case]:
        return CASES[len(self.ranks)]

    @property
    def steps(self) -> int:
        return STEPS[len(self.ranks)]


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=slow)])
def trained(
    request: pytest.FixtureRequest,
    runs: Runs,
    digits: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    def results(ranks: int) -> list:
        folder = tmp_path_factory.mktemp("results")
        how = CASES[request.param], STEPS[request.param]
        runs.on_ranks(partial(train_all, digits, *how, folder), ranks)
        return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]

    return Trained(results(request.param), results(1)[0])


def part(found: Found, kind: str) -> Found:
    return {key: value for key, value in found.items() if key.startswith(kind)}


def error(found: Found, truth: Found) -> float:
    """The largest relative error of a tensor, in the norm."""
    assert found.keys() == truth.keys()
    assert found
    return max(float((found[k] - truth[k]).norm() / truth[k].norm()) for k in truth)


def overall(found: Found, truth: Found) -> float:
    """The relative error of all tensors together."""
    apart = torch.cat([(found[k].double() - truth[k].double()).flatten() for k in truth])
    return float(apart.norm() / torch.cat([truth[k].double().flatten() for k in truth]).norm())


def test_float64_gradients_are_one_ranks(trained: Trained) -> None:
    for case in trained.cases:
        truth = trained.alone[case, torch.float64]
        for rank in trained.ranks:
            found = rank[case, torch.float64]
            short = -(-IMAGES // case[0]) - 1  # the step of the short batch
            for step in (0, short):
                kind = f"gradient {step} "
                assert error(part(found, kind), part(truth, kind)) < 1e-10


def test_float64_weights_and_statistics_after_many_steps(trained: Trained) -> None:
    for case in trained.cases:
        truth = part(trained.alone[case, torch.float64], "state ")
        assert any("running_var" in key for key in truth)
        counts = [key for key in truth if key.endswith("num_batches_tracked")]
        floats = {key: value for key, value in truth.items() if key not in counts}
        for rank in trained.ranks:
            found = part(rank[case, torch.float64], "state ")
            assert all(torch.equal(found.pop(key), truth[key]) for key in counts)
            assert error(found, floats) < 1e-9


@pytest.mark.parametrize("kind", ["gradient 0 ", "state "])
def test_fp32_is_as_near_to_float64_as_one_rank(trained: Trained, kind: str) -> None:
    for case in trained.cases:
        truth = part(trained.alone[case, torch.float64], kind)
        own = overall(part(trained.alone[case, torch.float32], kind), truth)
        assert own > 0
        for rank in trained.ranks:
            assert overall(part(rank[case, torch.float32], kind), truth) <= 2 * own


def test_every_rank_has_the_same_weights_and_sums(trained: Trained) -> None:
    first, *others = trained.ranks
    for key, found in first.items():
        for other in others:
            assert all(torch.equal(found[name], other[key][name]) for name in found)


def test_losses_are_sums_over_images(trained: Trained) -> None:
    """Counted once each, with the short batch; the loss is what one rank's is."""
    for case in trained.cases:
        found, truth = trained.ranks[0][case, torch.float64], trained.alone[case, torch.float64]
        starts = range(0, IMAGES, case[0])
        for step in range(trained.steps):
            sums = dict(zip(SUMS, found[f"sums {step}"].tolist(), strict=True))
            assert sums["count"] == min(case[0], IMAGES - starts[step % len(starts)])
            assert sums["bad"] == 0
            alone = dict(zip(SUMS, truth[f"sums {step}"].tolist(), strict=True))
            assert sums["loss"] == pytest.approx(alone["loss"], rel=1e-9)
            assert (sums["top1"], sums["top5"]) == (alone["top1"], alone["top5"])


def test_one_ranks_gradient_is_the_mean_losss(digits: Path) -> None:
    """With accumulation too: the mean over the step's images, not over micro-batches' means."""
    images, labels = torch.load(digits)
    for batch, accumulation in ((60, 1), (60, 2), (36, 3)):
        count = batch - 1  # the last micro-batch is one short
        learner, plain = make_learner(torch.float64), make_learner(torch.float64)
        parts = micro_batches(count, batch, accumulation)
        shares = [(images[p], labels[p]) for p in parts]
        sums = train_step(learner, shares, count, 0)
        logits = torch.cat([plain.model(plain.prepare(images[p])) for p in parts])
        loss = F.cross_entropy(logits, labels[:count])
        loss.backward()
        assert sums[0].item() / count == pytest.approx(loss.item(), rel=1e-12)
        pairs = zip(learner.model.parameters(), plain.model.parameters(), strict=True)
        for own, direct in pairs:
            assert torch.allclose(own.grad, direct.grad, rtol=1e-9, atol=1e-14)


# Evaluation ---------------------------------------------------------------------------------

VAL = 997
BATCHES = (1000, 64, 10)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """997 digits and their list."""
    root = tmp_path_factory.mktemp("many")
    pixels, labels = all_digits()
    rows = []
    for index in np.random.Generator(np.random.PCG64(1)).permutation(len(labels))[:VAL]:
        Image.fromarray(pixels[index].reshape(28, 28).astype(np.uint8)).save(root / f"{index}.png")
        rows.append(f"{index}.png {labels[index]}\n")
    (root / "list.txt").write_text("".join(rows))
    return root


def count_all(root: Path, workers: int, results: Path) -> None:
    distributed.start(CPU, timeout=WAIT, threads=1)
    preprocessing = Preprocessing(channels=1, resize=None, crop=28, mean=(0.13,), std=(0.31,))
    model = make_learner(torch.float32).model
    examples = read_list(root / "list.txt", root)
    logits = logits_of(model, preprocessing, Precision(CPU))
    place = distributed.rank(), distributed.world_size()
    found = [
        evaluate(logits, eval_batches(examples, preprocessing, size, workers, *place)).summary
        for size in BATCHES
    ]
    (results / f"{distributed.rank()}.json").write_text(json.dumps(found))
    distributed.stop()


@pytest.fixture(scope="module")
def alone(runs: Runs, many: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What one process counts."""
    folder = tmp_path_factory.mktemp("one")
    runs.on_ranks(partial(count_all, many, 0, folder))
    return json.loads((folder / "0.json").read_text())


@pytest.mark.parametrize(
    ("ranks", "workers"),
    [(2, 0), *(pytest.param(n, w, marks=slow) for n, w in [(1, 2), (2, 3), (3, 1), (4, 0)])],
)
def test_evaluation_counts_each_image_once(
    runs: Runs, many: Path, tmp_path: Path, alone: list[Any], ranks: int, workers: int
) -> None:
    """Equal to the last bit at the same batch size; equal counts at any."""
    runs.on_ranks(partial(count_all, many, workers, tmp_path), ranks)
    for rank in range(ranks):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone
    assert [found["count"] for found in alone] == [VAL] * len(BATCHES)
    assert len({(found["top1"], found["top5"]) for found in alone}) == 1
    assert 0 < alone[0]["top1"] < 1


# Processes ----------------------------------------------------------------------------------


def talk(results: Path) -> None:
    """What the small collectives give."""
    distributed.start(CPU, timeout=WAIT, threads=1)
    rank = distributed.rank()

    def fail_on(*bad: int) -> Callable[[], int]:
        def make() -> int:
            if rank in bad:
                raise UserError(f"no such file on {rank}")
            return rank

        return make

    def outcome(call: Callable[[], object]) -> object:
        try:
            return call()
        except UserError as error:
            return f"{error} shared={error.shared}"

    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(rank)
    distributed.broadcast_buffers(norm)
    found = {
        "gathered": distributed.gather_objects(rank),
        "told": distributed.broadcast_object(f"from {rank}"),
        "from main": outcome(lambda: distributed.from_main(fail_on())),
        "main fails": outcome(lambda: distributed.from_main(fail_on(0))),
        "all do": outcome(lambda: distributed.on_every_rank(fail_on())),
        "one fails": outcome(lambda: distributed.on_every_rank(fail_on(1))),
        "two fail": outcome(lambda: distributed.on_every_rank(fail_on(0, 2))),
        "buffers": norm.running_mean.tolist(),
    }
    (results / f"{rank}.json").write_text(json.dumps(found))
    distributed.stop()


def test_small_collectives(runs: Runs, tmp_path: Path) -> None:
    runs.on_ranks(partial(talk, tmp_path), 3)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [f.pop("gathered") for f in found] == [[0, 1, 2], None, None]
    assert [f.pop("all do") for f in found] == [0, 1, 2]
    assert found[0] == found[1] == found[2]
    assert found[0] == {
        "told": "from 0",
        "from main": 0,
        "main fails": "no such file on 0 shared=True",
        "one fails": "rank 1: no such file on 1 shared=True",
        "two fail": "rank 0: no such file on 0\nrank 2: no such file on 2 shared=True",
        "buffers": [0.0, 0.0],
    }


def layout(results: Path) -> None:
    """Two equal backward passes straight after `wrap`."""
    distributed.start(CPU, timeout=WAIT, threads=1)
    learner = make_learner(torch.float32)
    model = learner.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = make_learner(torch.float32).model.state_dict()
    untouched = all(torch.equal(fresh[name], value) for name, value in before.items())
    clean = all(p.grad is None for p in model.parameters()) and model.training
    images = torch.randint(0, 256, (4, 1, 24, 24), dtype=torch.uint8)
    gradients = []
    for _ in range(3):
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
        learner.forward(learner.prepare(images)).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    same = all(
        torch.equal(a, b)
        for later in gradients[1:]
        for a, b in zip(gradients[0], later, strict=True)
    )
    (results / f"{distributed.rank()}.json").write_text(json.dumps([untouched, clean, same]))
    distributed.stop()


def test_the_bucket_layout_never_changes(runs: Runs, tmp_path: Path) -> None:
    """With three ranks another layout would add in another order, and differ in the last bit."""
    runs.on_ranks(partial(layout, tmp_path), 3)
    for rank in range(3):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [True, True, True]


@pytest.mark.parametrize(
    ("asked", "exported", "local", "expected"),
    [
        (3, "1", 2, 3),  # loop.threads wins
        (None, "4", 2, 4),  # the user's own wish
        (None, "1", 2, 4),  # torchrun's, with several ranks
        (None, "1", 1, 1),
        (None, None, 1, 8),
        (None, None, 3, 2),
        (None, None, 16, 1),
        (None, "many", 1, 8),
    ],
)
def test_threads(
    monkeypatch: pytest.MonkeyPatch,
    asked: int | None,
    exported: str | None,
    local: int,
    expected: int,
) -> None:
    monkeypatch.setattr(distributed, "cores", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    if exported is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", exported)
    before = torch.get_num_threads()
    try:
        assert distributed.set_threads(asked) == expected
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_more_threads_than_a_machine_could_use_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"loop\.threads=100000 on \d+ cores; take at most"):
        distributed.set_threads(100_000)
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    with pytest.raises(UserError, match=r"OMP_NUM_THREADS=100000 on \d+ cores; take at most"):
        distributed.set_threads()


def test_one_process_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.start(CPU, threads=torch.get_num_threads()) == torch.get_num_threads()
    assert not distributed.active()
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.from_main(lambda: 7) == 7
    with pytest.raises(UserError):
        distributed.on_every_rank(lambda: (_ for _ in ()).throw(UserError("no")))
    module = nn.Linear(1, 1)
    assert distributed.wrap(module, torch.zeros(1)) is module
    assert distributed.cores() == len(os.sched_getaffinity(0))
