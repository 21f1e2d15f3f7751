"""One optimizer step of one process; several are in test_distributed.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.precision import Precision
from densekit.training.ema import MovingAverage
from densekit.training.loss import make_loss
from densekit.training.recipe import LoopConfig
from densekit.training.step import SUMS, Learner, train_step

N, K = 12, 10
CPU = torch.device("cpu")
Share = tuple[Tensor, Tensor]


def learner(
    drop_rate: float = 0.0,
    ema: float = 0.0,
    lr: float = 0.1,
    loop: LoopConfig | None = None,
    **how: Any,
) -> Learner:
    torch.manual_seed(0)
    config = DenseNetConfig(
        growth_rate=4, block_config=(2, 2), num_init_features=8, in_channels=1, num_classes=K,
        drop_rate=drop_rate,
    )  # fmt: skip
    model, precision = DenseNet(config).train(), Precision(CPU, "fp32", "contiguous")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
    return Learner(
        model=model,
        forward=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        ema=average,
        precision=precision,
        prepare=lambda images: images / 255,
        mix=lambda images, labels: (images, labels),
        loss=make_loss(loop or LoopConfig(), "multiclass", CPU),
        **how,
    )


def share(n: int = N, seed: int = 0) -> Share:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 20, 20), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, K, (n,), generator=generator)


def step(own: Learner, shares: list[Share], at: int = 0, **how):
    count = max(1, sum(len(labels) for _, labels in shares))
    sums = train_step(own, shares, count, at, **how)
    return dict(zip(SUMS, sums.tolist(), strict=True))


def snapshot(own: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in own.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# LoopConfig ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 500, "1 minute", "10 minutes"])
def test_states_are_saved_by_steps_or_minutes(value: int | str) -> None:
    assert LoopConfig(save_every=value).save_every == value


@pytest.mark.parametrize(
    "value", [0, -1, "10", "minutes", "0 minutes", "ten minutes", "3 hours", "1.5 minutes"]
)
def test_and_by_nothing_else(value: int | str) -> None:
    with pytest.raises(ValidationError, match=r"loop\.save_every is a number of steps or"):
        LoopConfig(save_every=value)


# Sums ---------------------------------------------------------------------------------------


def test_sums_are_over_the_images() -> None:
    own, (images, labels) = learner(), share()
    logits = copy.deepcopy(own.model)(images / 255).detach()
    found = step(own, [(images, labels)])
    order = logits.argsort(1, descending=True)
    assert found["count"] == N
    assert found["loss"] == pytest.approx(
        F.cross_entropy(logits, labels, reduction="sum").item(), rel=1e-6
    )
    assert found["top1"] == (order[:, 0] == labels).sum()
    assert found["top5"] == (order[:, :5] == labels[:, None]).any(1).sum()
    assert 0 < found["top5"] < N
    assert (found["stop"], found["save"], found["bad"]) == (0, 0, 0)


@pytest.mark.parametrize("asks", [(False, False), (True, False), (False, True), (True, True)])
def test_what_a_rank_asks_for_travels_with_the_sums(asks: tuple[bool, bool]) -> None:
    found = step(learner(), [share()], asks=asks)
    assert (found["stop"], found["save"]) == asks


def test_label_smoothing_is_torchs() -> None:
    config = LoopConfig(label_smoothing=0.2)
    own, (images, labels) = learner(loop=config), share()
    logits = copy.deepcopy(own.model)(images / 255).detach()
    found = step(own, [(images, labels)])
    truth = F.cross_entropy(logits, labels, label_smoothing=0.2, reduction="sum")
    assert found["loss"] == pytest.approx(truth.item(), rel=1e-6)


# The update ---------------------------------------------------------------------------------


def test_a_step_is_sgd_on_the_mean_loss() -> None:
    own, (images, labels) = learner(), share()
    plain = copy.deepcopy(own.model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for at in range(3):
        step(own, [(images, labels)], at=at)
        optimizer.zero_grad()
        F.cross_entropy(plain(images / 255), labels).backward()
        optimizer.step()
    for name, value in plain.state_dict().items():
        assert torch.allclose(own.model.state_dict()[name], value, rtol=1e-4, atol=1e-6), name


def test_clipping_bounds_the_norm_of_all_gradients() -> None:
    free, tight, loose = learner(), learner(clip_norm=1e-3), learner(clip_norm=1e9)
    for own in (free, tight, loose):
        step(own, [share()])

    def norm(own: Learner) -> float:
        return float(nn.utils.get_total_norm([p.grad for p in own.model.parameters()]))

    assert norm(free) > 1e-2
    assert norm(tight) == pytest.approx(1e-3, rel=1e-3)
    assert same(snapshot(loose), snapshot(free))


def test_the_moving_average_follows_each_update() -> None:
    own = learner(ema=0.9)
    assert own.ema is not None
    average = [p.clone() for p in own.ema.module.parameters()]
    for at in range(3):
        step(own, [share(seed=at)], at=at)
        now = own.model.parameters()
        average = [
            torch.lerp(a, p.detach(), 0.1) if at else p.detach().clone()  # begins at the first
            for a, p in zip(average, now, strict=True)
        ]
    for mean, parameter in zip(average, own.ema.module.parameters(), strict=True):
        assert torch.allclose(mean, parameter, rtol=1e-5, atol=1e-7)


def test_dropout_is_a_function_of_the_position() -> None:
    """Whatever torch's generator has been used for before."""

    def loss(at: int = 3, noise: int = 0, seed: int = 0) -> float:
        own = learner(drop_rate=0.5, seed=seed)
        torch.manual_seed(noise)
        return step(own, [share()], at=at)["loss"]

    assert loss() == loss(noise=1)
    assert len({loss(), loss(at=4), loss(seed=1)}) == 3


def test_what_is_drawn_is_a_function_of_the_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed, step, micro-step and rank each draw otherwise; alike, whatever was drawn before."""
    seen: list[int] = []

    def mix(images: Tensor, labels: Tensor) -> Share:
        seen.append(torch.initial_seed())
        return images, labels

    own = learner(lr=0)
    own.mix = mix
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        for own.seed in range(3):
            for at in range(3):
                step(own, [share(2), share(2)], at=at)
    assert len(set(seen)) == len(seen) == 3 * 3 * 3 * 2
    again = seen[-2:]
    torch.manual_seed(7)
    step(own, [share(2), share(2)], at=2)
    assert seen[-2:] == again


def test_micro_batches_draw_their_own_dropout() -> None:
    images, labels = share()
    alone = step(learner(drop_rate=0.5, lr=0), [(images, labels)])["loss"]
    twice = step(learner(drop_rate=0.5, lr=0), [(images, labels), (images, labels)])["loss"]
    assert twice != 2 * alone


def test_a_step_that_is_left_out_changes_nothing() -> None:
    """Not even by momentum, weight decay or the moving average."""
    own = learner(ema=0.9)
    step(own, [share()])
    before, momentum = snapshot(own), copy.deepcopy(own.optimizer.state_dict()["state"])
    found = step(own, [], asks=(True, False), at=1)
    assert found == {**dict.fromkeys(SUMS, 0.0), "stop": 1.0}
    assert same(before, snapshot(own))
    after = own.optimizer.state_dict()["state"]
    assert all(
        torch.equal(after[i]["momentum_buffer"], momentum[i]["momentum_buffer"]) for i in momentum
    )
    assert own.ema is not None
    assert int(own.ema.n_averaged) == 1


# Not finite ---------------------------------------------------------------------------------


def spoilt(own: Learner) -> Learner:
    """Its images become infinite."""
    own.prepare = lambda images: images / 0.0
    return own


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_bad_step_says_so(clip_norm: float | None) -> None:
    assert step(spoilt(learner(clip_norm=clip_norm)), [share()])["bad"] == 1


def test_a_bad_gradient_of_a_good_loss_says_so() -> None:
    own = learner()
    own.model.classifier.weight.register_hook(lambda gradient: gradient * torch.inf)
    found = step(own, [share()])
    assert torch.isfinite(torch.tensor(found["loss"]))
    assert found["bad"] == 1


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_skip_leaves_no_trace(clip_norm: float | None) -> None:
    """Weights, running statistics, momentum and the moving average are as before."""
    own = learner(ema=0.9, clip_norm=clip_norm, skips=True)
    step(own, [share()])
    before, prepare = snapshot(own), own.prepare
    average = copy.deepcopy(own.ema.state_dict())
    assert step(spoilt(own), [share()], at=1)["bad"] == 1
    assert same(before, snapshot(own))
    assert same(average, own.ema.state_dict())
    own.prepare = prepare
    assert step(own, [share()], at=2)["bad"] == 0
    other = learner(ema=0.9, clip_norm=clip_norm)
    step(other, [share()])
    step(other, [share()], at=2)
    assert same(snapshot(own), snapshot(other))


def test_without_skip_a_bad_step_shows_in_the_weights() -> None:
    """Which is why the run stops, or goes back, and saves no state of it."""
    own = spoilt(learner())
    step(own, [share()])
    assert not all(value.isfinite().all() for value in snapshot(own).values())


# fp16's scaler, which a CPU has too -----------------------------------------------------------


def scaled(own: Learner) -> Learner:
    own.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    assert own.scaler.is_enabled()
    return own


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_with_a_scaler_skip_leaves_no_trace_but_a_lower_scale(clip_norm: float | None) -> None:
    """And the step after it is like any other: gradients are unscaled once for each step."""
    own = scaled(learner(ema=0.9, clip_norm=clip_norm, skips=True))
    step(own, [share()])
    before, prepare = snapshot(own), own.prepare
    bad = step(spoilt(own), [share()], at=1)
    assert bad["bad"] == 1
    assert same(before, snapshot(own))
    assert own.scaler.get_scale() == 2.0**11
    own.prepare = prepare
    assert step(own, [share()], at=2)["bad"] == 0
    other = learner(ema=0.9, clip_norm=clip_norm)
    for at in (0, 2):
        step(other, [share()], at=at)
    assert same(snapshot(own), snapshot(other)), "a scale that is a power of two costs no bit"
    assert own.ema is not None
    assert other.ema is not None
    assert int(own.ema.n_averaged) == int(other.ema.n_averaged) == 2


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_an_overflowing_gradient_is_the_scalers_own_affair(
    skips: bool, clip_norm: float | None
) -> None:
    """Its loss is finite: the scaler leaves the update out, and the step is not a bad one."""
    own = scaled(learner(clip_norm=clip_norm, skips=skips))
    step(own, [share()])
    before = [parameter.clone() for parameter in own.model.parameters()]
    hook = own.model.classifier.weight.register_hook(lambda gradient: gradient * torch.inf)
    assert step(own, [share()], at=1)["bad"] == 0
    after = own.model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert own.scaler.get_scale() == 2.0**11
    hook.remove()
    assert step(own, [share()], at=2)["bad"] == 0
    after = own.model.parameters()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(value.isfinite().all() for value in snapshot(own).values())


# The moving average -------------------------------------------------------------------------


def test_the_average_has_the_statistics_of_its_weights_and_the_networks_counters() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    average, decay = MovingAverage(model, 0.9), 0.9
    expected: dict[str, torch.Tensor] = {}
    for update in range(12):
        model(torch.randn(8, 1, 6, 6) + update)
        with torch.no_grad():
            model[0].weight.add_(0.1)
        average.update_parameters(model)
        now = min(decay, (1 + update) / (10 + update)) if update else 0.0
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                before = expected.get(name, value.double())
                expected[name] = now * before + (1 - now) * value.double()
    found = average.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6)
    assert found["1.num_batches_tracked"] == 12
    assert not torch.equal(found["1.running_mean"], model[1].running_mean)
