"""A run from its first step to its last, within this process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from densekit.config import UserError, build, read_yaml
from densekit.infer.evaluate import evaluate_source
from densekit.infer.model import open_path
from densekit.models import artifact
from densekit.precision import resolve
from densekit.training import curves, loop, run
from densekit.training.loop import Outcome, train
from densekit.training.optim import lr_factor
from densekit.training.recipe import Recipe, load_recipe
from densekit.training.rehearsal import rehearse
from densekit.training.state import step_of
from runs import EPOCHS, OPTIONS, STEPS, STEPS_PER_EPOCH, VAL, Options, Runs, lines, states, weights


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`outcome`, made before, is the run that draws."""
    monkeypatch.setattr(curves, "draw", lambda *_: None)


def recipe(runs: Runs, folder: Path, options: Options | None = None) -> Recipe:
    own = {"data.root": runs.data, "loop.output_dir": folder}
    return load_recipe(None, [f"{k}={v}" for k, v in {**OPTIONS, **own, **(options or {})}.items()])


@pytest.fixture(scope="module")
def outcome(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    before = torch.get_num_threads()
    found = train(recipe(runs, tmp_path_factory.mktemp("train") / "a" / "run"))
    torch.set_num_threads(before)
    return found


def test_a_run_leaves_its_folder(outcome: Outcome) -> None:
    names = {f.name for f in outcome.folder.iterdir() if not f.name.startswith(".")}
    assert names == {"recipe.yaml", "log.jsonl", "curves.png", "state", "best", "last"}
    assert not list(outcome.folder.rglob(".*.tmp"))
    assert [step_of(file) for file in states(outcome.folder)][-1] == STEPS
    assert len(states(outcome.folder)) == 2
    assert build(Recipe, read_yaml(outcome.folder / "recipe.yaml")) == outcome.plan.recipe


def test_what_came_of_it(outcome: Outcome) -> None:
    progress = outcome.progress
    assert (progress.step, progress.epochs) == (STEPS, EPOCHS)
    assert not outcome.stopped
    assert not outcome.already_finished
    assert outcome.ips == progress.images / progress.seconds > 0
    evaluations = [line for line in lines(outcome.folder) if line["kind"] == "eval"]
    assert progress.last["loss"] == evaluations[-1]["loss"]
    assert progress.best["top1"] == max(line["top1"] for line in evaluations)


def test_the_logged_rate_is_the_schedules(outcome: Outcome) -> None:
    optim = outcome.plan.recipe.optim
    logged = [line for line in lines(outcome.folder) if line["kind"] in ("train", "eval")]
    assert len(logged) == STEPS + EPOCHS
    for line in logged:
        factor = lr_factor(optim, line["step"] - 1, STEPS_PER_EPOCH, STEPS)
        assert line["lr"] == optim.lr * factor


def test_every_image_is_counted_once_an_epoch(runs: Runs, tmp_path: Path) -> None:
    """The lines' means and images give the epoch's mean back, whatever log_every is."""
    every = train(recipe(runs, tmp_path / "1"))
    rare = train(recipe(runs, tmp_path / "4", {"loop.log_every": 4}))
    sizes = [24] * 5 + [10]
    losses = [line["loss"] for line in lines(every.folder) if line["kind"] == "train"]
    rows = [line for line in lines(rare.folder) if line["kind"] == "train"]
    assert [row["step"] for row in rows] == [4, 6, 8, 12], "and at each epoch's end"
    begin = 0
    for row in rows:
        part = range(begin, row["step"])
        mean = math.fsum(losses[i] * sizes[i % 6] for i in part) / sum(sizes[i % 6] for i in part)
        assert row["loss"] == pytest.approx(mean, rel=1e-12)
        begin = row["step"]


def test_the_artifacts_metrics_are_what_evaluate_gives(outcome: Outcome) -> None:
    """Of the EMA weights, to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for which in ("best", "last"):
        folder = outcome.folder / which
        own = artifact.read_artifact(folder).config.metrics
        opened = open_path(str(folder))
        found = evaluate_source(opened, resolve("cpu", "fp32"), workers=0)
        assert {key: found[key] for key in ("count", "top1", "top5", "loss")} == own
        assert own["count"] == VAL
    torch.set_num_threads(threads)
    state = torch.load(states(outcome.folder)[-1])
    average = {
        name.removeprefix("module."): value
        for name, value in state["learner"]["ema"].items()
        if name != "n_averaged"
    }
    last = weights(outcome.folder, "last")
    assert all(torch.equal(last[name], value) for name, value in average.items())
    assert any(not torch.equal(last[n], v) for n, v in state["learner"]["model"].items())


def test_the_best_is_the_first_of_the_best(runs: Runs, tmp_path: Path) -> None:
    found = train(recipe(runs, tmp_path / "run", {"loop.epochs": 4, "optim.lr": 0.01}))
    evaluations = [line for line in lines(tmp_path / "run") if line["kind"] == "eval"]
    first = max(evaluations, key=lambda line: line["top1"])
    assert found.progress.best["epoch"] == first["epoch"]
    assert artifact.read_artifact(tmp_path / "run" / "best").config.metrics["loss"] == first["loss"]


def test_states_by_the_minute(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the test's: 25 seconds go by whenever somebody looks."""
    hands = SimpleNamespace(now=0.0)

    def monotonic() -> float:
        hands.now += 25.0
        return hands.now

    clock = SimpleNamespace(monotonic=monotonic, perf_counter=time.perf_counter)
    for module in (loop, run):
        monkeypatch.setattr(module, "time", clock)
    options = {"loop.save_every": "2 minutes", "loop.keep": 100}
    train(recipe(runs, tmp_path / "run", options))
    saved = {step_of(file) for file in states(tmp_path / "run")}
    assert {0, STEPS_PER_EPOCH, STEPS} < saved, "the epochs' ends, and some between"
    assert len(saved) < STEPS, "not every step"


def test_drop_last_leaves_the_short_batch_out(runs: Runs, tmp_path: Path) -> None:
    found = train(recipe(runs, tmp_path / "run", {"data.drop_last": "true"}))
    assert found.progress.step == EPOCHS * (STEPS_PER_EPOCH - 1)
    assert found.progress.images == EPOCHS * (STEPS_PER_EPOCH - 1) * 24


def test_a_finished_run_is_not_trained_again(runs: Runs, outcome: Outcome) -> None:
    before = (outcome.folder / "last" / "model.safetensors").read_bytes()
    again = train(recipe(runs, outcome.folder))
    assert again.already_finished
    assert again.progress == outcome.progress
    assert (outcome.folder / "last" / "model.safetensors").read_bytes() == before


def test_an_unreadable_image_stops_the_run_and_lets_the_folder_go(
    runs: Runs, tmp_path: Path
) -> None:
    copy = tmp_path / "digits"
    copy.mkdir()
    for file in runs.data.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    name = (copy / "train_list.txt").read_text().split()[40]
    good = (copy / name).read_bytes()
    (copy / name).write_bytes(b"not an image")
    own = recipe(runs, tmp_path / "run", {"data.root": copy, "data.check_files": 0})
    with pytest.raises(UserError, match=rf"{name}: is not an image"):
        train(own)
    (copy / name).write_bytes(good)
    assert train(own).progress.epochs == EPOCHS, "mended, the same command goes on"


def test_one_image_left_over_for_a_map_of_one_pixel_is_a_users_mistake(
    runs: Runs, tmp_path: Path
) -> None:
    """BatchNorm cannot train on one value per channel; torch's own error names no option."""
    options = {
        "data.batch_size": 43,  # 130 = 3 * 43 + 1
        "model.overrides": "{growth_rate: 4, block_config: [1, 1, 1], num_init_features: 8}",
    }
    with pytest.raises(UserError, match=r"data\.drop_last"):
        train(recipe(runs, tmp_path / "run", options))


# A run that changes on its way -----------------------------------------------------------------


def test_an_extended_run_is_the_longer_run(runs: Runs, tmp_path: Path) -> None:
    """Where the rates of the epochs that are done do not depend on their number: bit for bit."""
    constant = {"optim.schedule": "constant"}
    longer = train(recipe(runs, tmp_path / "longer", {**constant, "loop.epochs": 3}))
    train(recipe(runs, tmp_path / "run", constant))
    extended = train(recipe(runs, tmp_path / "run", {**constant, "loop.epochs": 3}))
    assert extended.progress.step == longer.progress.step == 3 * STEPS_PER_EPOCH
    assert [line["loss"] for line in lines(tmp_path / "run") if line["kind"] == "train"] == [
        line["loss"] for line in lines(tmp_path / "longer") if line["kind"] == "train"
    ]
    for name, value in weights(tmp_path / "longer", "last").items():
        assert torch.equal(weights(tmp_path / "run", "last")[name], value), name


def copied(runs: Runs, folder: Path) -> Path:
    folder.mkdir()
    for file in runs.data.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_moved_images_are_the_same_images(runs: Runs, tmp_path: Path) -> None:
    first = copied(runs, tmp_path / "first")
    own = {"data.train": first / "train_list.txt", "data.val": first / "val_list.txt"}
    train(recipe(runs, tmp_path / "run", {**own, "data.root": first, "loop.epochs": 1}))
    second = first.rename(tmp_path / "second")
    own = {"data.train": second / "train_list.txt", "data.val": second / "val_list.txt"}
    again = train(recipe(runs, tmp_path / "run", {**own, "data.root": second, "loop.epochs": 1}))
    assert again.already_finished


def test_changed_lists_are_refused_unless_the_user_says_so(runs: Runs, tmp_path: Path) -> None:
    data = copied(runs, tmp_path / "digits")
    options = {"data.root": data, "optim.schedule": "constant"}
    train(recipe(runs, tmp_path / "run", {**options, "loop.epochs": 1}))
    list_file = data / "train_list.txt"
    kept = list_file.read_text().splitlines(keepends=True)[:-40]  # 90 images: 4 steps, not 6
    list_file.write_text("".join(kept))
    with pytest.raises(UserError, match=r"-o loop\.accept_data_change=true"):
        train(recipe(runs, tmp_path / "run", options))
    accepted = recipe(runs, tmp_path / "run", {**options, "loop.accept_data_change": "true"})
    found = train(accepted)
    assert (found.progress.epochs, found.progress.step) == (EPOCHS, 4 * EPOCHS)


def test_the_best_epoch_is_the_monitored_metrics(runs: Runs, tmp_path: Path) -> None:
    options = {"loop.epochs": 3, "optim.lr": 0.02}
    for monitor in ("balanced_accuracy", "loss"):
        folder = tmp_path / monitor
        found = train(recipe(runs, folder, {**options, "loop.monitor": monitor}))
        rows = [line for line in lines(folder) if line["kind"] == "eval"]
        best = (max if monitor != "loss" else min)(rows, key=lambda line: line[monitor])
        assert found.progress.best["epoch"] == best["epoch"]
        assert ("balanced_accuracy" in rows[0]) == (monitor == "balanced_accuracy")
    opened = open_path(str(tmp_path / "balanced_accuracy" / "best"))
    again = evaluate_source(opened, resolve("cpu", "fp32"), workers=0)
    stored = artifact.read_artifact(tmp_path / "balanced_accuracy" / "best").config.metrics
    assert again["balanced_accuracy"] == stored["balanced_accuracy"]


def test_a_rehearsal_writes_nothing_and_refuses_what_training_refuses(
    runs: Runs, tmp_path: Path
) -> None:
    found = rehearse(recipe(runs, tmp_path / "run"))
    assert found.seconds > 0
    assert not (tmp_path / "run").exists()
    for option, said in (
        ("optim.freeze=block9", "block9"),
        (f"model.pretrained={tmp_path / 'nope.pth'}", "nope.pth"),
    ):
        key, value = option.split("=", 1)
        with pytest.raises(UserError, match=said):
            rehearse(recipe(runs, tmp_path / "run", {key: value}))
    small = {"model.name": "densenet121", "model.overrides": "{}", "data.image_size": 16}
    with pytest.raises(UserError, match="the images are too small"):
        rehearse(recipe(runs, tmp_path / "run", small))
