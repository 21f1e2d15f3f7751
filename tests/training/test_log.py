"""Sums of steps become lines of the log."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from densekit import distributed
from densekit.training import log as monitor
from densekit.training.log import Window, read_later
from densekit.training.nonfinite import NonFinite
from densekit.training.step import SUMS


def sums(**values: float) -> dict[str, float]:
    return {**dict.fromkeys(SUMS, 0.0), **values}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that moves when `now` is set."""
    hands = SimpleNamespace(now=100.0)
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: hands.now)
    return hands


def window() -> Window:
    return Window(started=monitor.time.perf_counter())


def test_a_reading_has_the_sums_by_name() -> None:
    reading = read_later(3, torch.arange(7.0, dtype=torch.float64), 0.1, 0.0, [])
    assert reading.values() == dict(zip(SUMS, map(float, range(7)), strict=True))
    assert "step 3" in str(NonFinite(reading))


def test_means_are_over_images_not_over_steps() -> None:
    """A short batch weighs what its images weigh."""
    own = Window()
    own.add(sums(loss=24 * 2.0, top1=12, top5=24, count=24), 0.0, ended=1.0)
    own.add(sums(loss=6 * 1.0, top1=6, top5=6, count=6), 0.0, ended=2.0)
    assert own.means() == {"loss": 54 / 30, "top1": 18 / 30, "top5": 1.0}


def test_rates_are_images_per_second(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    own = window()
    own.add(sums(loss=10.0, count=60), 0.5, ended=102.0)
    own.add(sums(loss=10.0, count=60), 0.5, ended=104.0)
    clock.now += 50.0  # a step is read later than it ends
    line = own.line(step=12, epoch=1.5, rate=0.1, images_left=600)
    assert line == {
        "kind": "train",
        "step": 12,
        "epoch": 1.5,
        "loss": 20 / 120,
        "top1": 0.0,
        "top5": 0.0,
        "lr": 0.1,
        "ips": 30.0,
        "ips_rank": 7.5,
        "data_wait": 0.25,
        "eta": 20.0,
    }


def test_time_that_was_not_training_does_not_count(clock: SimpleNamespace) -> None:
    """An evaluation within a window: its sums stay, its clock and its images begin anew."""
    own = window()
    own.add(sums(loss=8.0, count=4), 1.0, ended=101.0)
    clock.now += 1000.0
    own.restart_clock()
    own.add(sums(loss=4.0, count=4), 0.0, ended=1102.0)
    line = own.line(2, 1.0, 0.1, 0)
    assert line["loss"] == 12 / 8
    assert line["ips"] == 2.0
    assert line["data_wait"] == 0.0


def test_a_window_goes_on_after_a_resume() -> None:
    """What a state keeps of it: the sums. The line is that of a window that was not cut."""
    steps = [sums(loss=0.1 * n, top1=n, top5=2 * n, count=7) for n in range(5)]
    whole, first = Window(), Window()
    for step in steps:
        whole.add(step, 0.0, 1.0)
    for step in steps[:2]:
        first.add(step, 0.0, 1.0)
    resumed = Window(dict(first.sums))
    for step in steps[2:]:
        resumed.add(step, 0.0, 1.0)
    assert resumed.means() == whole.means()
    assert first.sums["count"] == 14, "the state's own copy is left alone"


@pytest.mark.gpu
def test_sums_come_from_the_device_without_a_wait() -> None:
    on_device = torch.arange(7.0, dtype=torch.float64, device="cuda")
    reading = read_later(0, on_device, 0.1, 0.0, [])
    assert reading.arrived is not None
    assert reading.values()["bad"] == 6.0
