"""loop.track: what follows the log is told each row once, whatever fails, and stops nothing.

TensorBoard's reader is imported where it is used: each test process loads every file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from densekit.config import ConfigSource, Tree, UserError, build
from densekit.config.trees import replace_value
from densekit.training import tracking
from densekit.training.recipe import Recipe, load_recipe
from densekit.training.trackers import LogRow, TensorBoard, parameters, row_of
from densekit.training.tracking import Follower, Tracking, require

Rows = list[LogRow]
REMEMBERED = 5  # rows


def rows(count: int) -> Rows:
    return [LogRow(step, {"train/loss": 1 / step}) for step in range(1, count + 1)]


class Unsteady:
    """A tracker that fails when it is told to, before or after it has taken what it was told."""

    def __init__(self, failures: Sequence[str] = ()) -> None:
        self.has: Rows = []
        self.failures = list(failures)
        self.closed: bool | None = None

    def open(self) -> int:
        self.fail("open")
        return len(self.has)

    def send(self, rows: Sequence[LogRow]) -> None:
        self.fail("before")
        self.has += rows
        self.fail("after")

    def close(self, finished: bool) -> None:
        self.fail("close")
        self.closed = finished

    def fail(self, where: str) -> None:
        if self.failures and self.failures[0] == where:
            del self.failures[0]
            raise ConnectionError(f"no answer, {where}")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "AGAIN_AFTER", 0.001)
    monkeypatch.setattr(tracking, "LAST_WAIT", 20.0)


def end(follower: Follower, finished: bool = True) -> None:
    follower.close(finished)
    follower.wait(time.monotonic())


FAILURES = st.lists(st.sampled_from(["open", "before", "after"]), max_size=6)


@settings(max_examples=60, deadline=None)
@given(FAILURES, st.lists(st.integers(0, 12), max_size=4))
def test_each_row_is_there_once_whatever_fails_and_is_done_again(
    failures: list[str], cuts: list[int]
) -> None:
    """The log is cut back, as by a resume within the process, and told on from there."""
    tracker, log = Unsteady(failures), rows(12)
    follower = Follower("unsteady", tracker)
    follower.follow([])
    for cut in [*cuts, 12]:
        for row in log[:cut]:
            follower.tell(row)
        follower.follow(log[: cut // 2])
        for row in log[cut // 2 :]:
            follower.tell(row)
        follower.follow(log[:cut])
    deadline = time.monotonic() + 20
    while len(tracker.has) < 12 and time.monotonic() < deadline:
        time.sleep(0.001)
    tracker.failures.clear()
    end(follower)
    assert tracker.has == log
    assert tracker.closed is True


def test_a_tracker_ahead_of_the_log_is_not_told_again() -> None:
    """Those that a killed process had told it, and its successor does again."""
    tracker, log = Unsteady(), rows(10)
    tracker.has = log[:7]
    follower = Follower("ahead", tracker)
    follower.follow(log[:4])
    for row in log[4:]:
        follower.tell(row)
    end(follower)
    assert tracker.has == log


def test_a_failure_is_said_once_and_so_is_its_end(capfd: pytest.CaptureFixture[str]) -> None:
    tracker = Unsteady()
    follower = Follower("unsteady", tracker)
    assert follower.first_answer() is None
    follower.follow([])
    tracker.failures = ["before", "open", "open", "before"]
    follower.tell(rows(1)[0])
    deadline = time.monotonic() + 20
    while len(tracker.has) < 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    end(follower)
    said = capfd.readouterr().err.splitlines()
    assert said == [
        "loop.track=unsteady: no answer, before; training goes on, log.jsonl has everything, and "
        "it is told later",
        "loop.track=unsteady: it answers again, and has been told everything",
    ]


def test_what_is_missing_at_the_end_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    tracker = Unsteady(["before"] + ["open"] * 1000)
    follower = Follower("down", tracker)
    follower.follow(rows(3))
    end(follower)
    assert (
        "loop.track=down: it may lack the last rows of log.jsonl (no answer, open); the same "
        in (capfd.readouterr().err)
    )
    assert tracker.has == []


def test_a_tracker_that_hangs_holds_no_step_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "LAST_WAIT", 0.05)
    release = threading.Event()
    tracker = Unsteady()
    monkeypatch.setattr(tracker, "send", lambda rows: release.wait(20))
    follower = Follower("hung", tracker)
    follower.follow(rows(3))
    for row in rows(1000):
        follower.tell(row)
    follower.close(finished=True)
    follower.wait(time.monotonic())
    assert "it may lack the last rows of log.jsonl (no end within 0 s)" in capfd.readouterr().err
    release.set()


def test_a_tracker_that_is_down_delays_no_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It has failed, and hangs when it is asked again: LAST_WAIT is for those that answer."""
    monkeypatch.setattr(tracking, "DOWN_WAIT", 0.05)
    release = threading.Event()
    tracker = Unsteady(["open"])
    follower = Follower("down", tracker)
    assert follower.first_answer() is not None
    monkeypatch.setattr(tracker, "open", lambda: release.wait(20))
    follower.close(finished=True)
    follower.wait(time.monotonic())
    assert not release.is_set()
    assert "it may lack the last rows of log.jsonl (no answer, open)" in capfd.readouterr().err
    release.set()


# What is told -------------------------------------------------------------------------------


def test_a_row_has_the_numbers_of_its_line_and_no_event_is_one() -> None:
    line = {"kind": "eval", "step": 6, "epoch": 1, "loss": float("nan"), "auroc": 0.5, "top1": None}
    assert row_of(line) == LogRow(6, {"val/epoch": 1.0, "val/auroc": 0.5})
    assert row_of({**line, "kind": "train"}) == LogRow(6, {"train/epoch": 1.0, "train/auroc": 0.5})
    assert row_of({"kind": "event", "event": "images left out", "files": ["jane.png"]}) is None


def test_parameters_are_the_recipe_and_give_it_again() -> None:
    typed = ["optim.schedule=step", "optim.milestones=[3, 4]", "data.augment.mixup=true"]
    recipe = load_recipe("quickstart", typed)
    found = parameters(recipe)
    assert found["optim.milestones"] == "[3.0, 4.0]"
    assert found["loop.output_dir"] == "null"
    assert found["data.augment.mixup"] == "1.0"
    tree: Tree = {}
    for name, text in found.items():
        tree = replace_value(tree, tuple(name.split(".")), yaml.safe_load(text), name)
    assert build(Recipe, ConfigSource(tree)) == recipe


# Options ------------------------------------------------------------------------------------


def test_one_tracker_or_a_list() -> None:
    assert load_recipe("quickstart").loop.track == ()
    assert load_recipe("quickstart", ["loop.track=mlflow"]).loop.track == ("mlflow",)
    several = load_recipe("quickstart", ["loop.track=[wandb, tensorboard]"])
    assert several.loop.track == ("wandb", "tensorboard")
    with pytest.raises(UserError, match=r"loop\.track"):
        load_recipe("quickstart", ["loop.track=comet"])


def test_a_missing_library_is_named_and_so_is_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError) as raised:
        require(["wandb"])
    assert str(raised.value) == 'loop.track=wandb needs wandb: pip install "densekit[wandb]"'


# TensorBoard --------------------------------------------------------------------------------


def viewer_of(folder: Path) -> Any:
    """TensorBoard's own reader of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Of all event files of a run, as TensorBoard shows them."""
    found = viewer_of(folder)
    return {
        tag: [(each.step, each.value) for each in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_is_told_everything_anew(tmp_path: Path) -> None:
    recipe, log = load_recipe("quickstart"), rows(30)
    for known in (20, 12):  # the first process had told it more than its state had
        tracker = TensorBoard(tmp_path, recipe)
        assert tracker.open() == 0
        tracker.send(log[:known])
    tracker.send(log[12:])
    tracker.close(finished=True)
    told = scalars(tmp_path)["train/loss"]
    assert [step for step, _ in told] == list(range(1, 31))
    assert [value for _, value in told] == pytest.approx([1 / n for n in range(1, 31)])


def test_a_viewer_that_is_open_takes_back_what_it_had(tmp_path: Path) -> None:
    recipe, log = load_recipe("quickstart"), rows(9)
    first = TensorBoard(tmp_path, recipe)
    first.open()
    first.send(log)
    viewer = viewer_of(tmp_path)
    assert len(viewer.Scalars("train/loss")) == 9
    second = TensorBoard(tmp_path, recipe)
    second.open()
    second.send(log[:4])
    viewer.Reload()
    assert [each.step for each in viewer.Scalars("train/loss")] == [1, 2, 3, 4]


def test_a_new_run_refuses_and_one_that_goes_on_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    down = Unsteady(["open"] * 1000)
    monkeypatch.setitem(tracking.TRACKERS, "mlflow", lambda folder, recipe: down)
    recipe = load_recipe("quickstart", ["loop.track=mlflow"])
    with pytest.raises(UserError, match=r"loop\.track=mlflow: no answer, open"):
        Tracking.start(recipe, tmp_path, begun=False)
    followed = Tracking.start(recipe, tmp_path, begun=True)
    assert "no answer, open; the run goes on" in capfd.readouterr().err
    down.failures = []
    followed.follow([{"kind": "train", "step": 1, "loss": 2.0}])
    followed.tell({"kind": "event", "step": 1, "event": "end"})
    followed.close()
    assert down.has == [LogRow(1, {"train/loss": 2.0})]
    assert down.closed is True
