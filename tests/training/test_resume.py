"""A run that was killed and goes on is the run that was not: bit for bit, whatever killed it."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from densekit.config import PathKey, Tree, read_yaml, rename, to_yaml
from densekit.config.trees import without_value
from densekit.files import make_folder, temporary
from densekit.models import artifact
from densekit.training import run_folder
from densekit.training.recipe import Recipe, differences, stored_recipe
from densekit.training.run_folder import RunFolder
from densekit.training.state import step_of
from runs import (
    STEPS,
    Options,
    Runs,
    assert_same_run,
    last_step,
    lines,
    newest_state,
    numbers,
    states,
    weights,
)

slow = pytest.mark.slow
FEATURES: Options = {"loop.accumulation": 2, "model.sync_bn": True, "optim.clip_norm": 1.0}
ADAMW: Options = {"optim.name": "adamw", "optim.lr": 1e-3, "loop.ema": 0}


def refused(runs: Runs, folder: Path, options: Options | None = None) -> str:
    """What a run says that ends as a user's mistake, in one sentence or a few."""
    started = runs.start(folder, options)
    assert started.wait() == [2], started.output
    assert "Traceback" not in started.output
    return " ".join(started.output.split())


def _keys(tree: Tree) -> Iterator[tuple[PathKey, ...]]:
    """The path of every value."""
    for key, value in tree.items():
        below = _keys(value) if isinstance(value, dict) else [()]
        yield from ((key, *rest) for rest in below)


# Killed at any moment -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_ends_as_it_would_have(runs: Runs, tmp_path: Path, workers: int) -> None:
    options = {"data.workers": workers}
    for step in (3, 8):  # within the first epoch, within the second
        runs.kill(tmp_path / "run", step, options)
    runs.train(tmp_path / "run", options)
    assert_same_run(tmp_path / "run", runs.whole())


def test_two_ranks_go_on_alike(runs: Runs, tmp_path: Path) -> None:
    options = {**FEATURES, "data.workers": 1}
    runs.kill(tmp_path / "run", 4, options, ranks=2)
    runs.train(tmp_path / "run", options, ranks=2)
    assert_same_run(tmp_path / "run", runs.whole(FEATURES, ranks=2))


def test_a_run_that_is_older_than_a_key_goes_on(runs: Runs, tmp_path: Path) -> None:
    """Whatever `auto` came to: a key that a stored recipe lacks is what was computed without it."""
    folder = runs.killed(tmp_path / "run", 8)
    stored = folder / "recipe.yaml"
    tree, today = read_yaml(stored).tree, stored_recipe(stored)
    first = set(rename(Recipe, read_yaml(Path(__file__).with_name("first_recipe.yaml"))).places)
    newer = [key for key in _keys(tree) if key not in first and key[:2] != ("model", "overrides")]
    assert {("data", "shuffle_window"), ("loop", "cuda_graph")} <= set(newer)
    for key in newer:
        tree = without_value(tree, key)
    stored.write_text(to_yaml(tree))
    assert differences(stored_recipe(stored), today) == []
    runs.train(folder)
    assert_same_run(folder, runs.whole())


@slow
@pytest.mark.parametrize(
    ("ranks", "workers", "options"),
    [
        (1, 1, FEATURES),
        (1, 3, ADAMW),
        (1, 0, {"loop.precision": "bf16", **FEATURES}),
        (2, 0, {}),
        (2, 3, {"loop.precision": "bf16"}),
        (2, 2, ADAMW),
        (3, 0, FEATURES),
        (3, 1, {}),
        (3, 2, {"loop.precision": "bf16", **FEATURES}),
        (3, 3, FEATURES),
    ],
)
def test_killed_at_random_moments(
    runs: Runs, tmp_path: Path, ranks: int, workers: int, options: Options
) -> None:
    """Moments from the processes' first second on, so also in set-up, evaluation and resume."""
    draw, kills = random.Random(f"{ranks} {workers} {options}"), 0
    everything = {"data.workers": workers, **options}
    while kills < 3:
        started = runs.start(tmp_path / "run", everything, ranks)
        if draw.random() < 0.7:
            started.until_step(last_step(tmp_path / "run") + draw.randint(0, 3))
        time.sleep(draw.uniform(0, 0.3))
        if -signal.SIGKILL not in started.kill():
            break  # it was over
        kills += 1
    runs.train(tmp_path / "run", everything, ranks)
    assert kills
    assert_same_run(tmp_path / "run", runs.whole({"data.workers": 0, **options}, ranks))


@pytest.mark.parametrize("workers", [pytest.param(1, marks=slow), pytest.param(2, marks=slow), 3])
def test_the_same_seed_is_the_same_run_with_any_number_of_workers(runs: Runs, workers: int) -> None:
    assert_same_run(runs.whole({"data.workers": workers}), runs.whole())


def test_another_seed_is_another_run(runs: Runs) -> None:
    """The comparison above can fail."""
    assert numbers(runs.whole({"loop.seed": 1})) != numbers(runs.whole())


# States -------------------------------------------------------------------------------------


def test_a_state_holds_what_the_steps_change_and_nothing_per_rank(runs: Runs) -> None:
    one, two = newest_state(runs.whole(FEATURES)), newest_state(runs.whole(FEATURES, ranks=2))
    assert set(one) == {
        "format", "data", "environment", "steps_per_epoch", "progress", "learner"
    }  # fmt: skip
    assert one["format"] == 1
    assert re.fullmatch(r"[0-9a-f]+-[0-9a-f]+", one["data"])
    assert set(one["environment"]) == {
        "torch",
        "machine",
        "threads",
        "world_size",
        "op",
        "kernels",
    }
    assert (one["environment"]["world_size"], two["environment"]["world_size"]) == (1, 2)
    progress = one["progress"]
    assert set(progress) == {
        "step", "epochs", "last", "best", "stale", "skipped", "bad_images", "images", "seconds",
        "window", "lines",
    }  # fmt: skip
    assert (progress["step"], progress["epochs"], progress["skipped"]) == (STEPS, 2, [])
    assert set(progress["best"]) == {"epoch", "count", "top1", "top5", "loss"}
    assert set(one["learner"]) == {"model", "optimizer", "scaler", "ema"}
    assert all("momentum_buffer" in slot for slot in one["learner"]["optimizer"].values())
    assert one["learner"]["ema"]["n_averaged"] == STEPS
    assert shape_of(one) == shape_of(two)


def shape_of(state: Any) -> Any:
    """Keys, types and tensors' shapes."""
    if isinstance(state, dict):
        return {key: shape_of(value) for key, value in state.items()}
    return tuple(state.shape) if isinstance(state, torch.Tensor) else type(state)


@pytest.mark.parametrize("damage", ["cut short", "a bit flipped"])
def test_a_corrupt_state_is_passed_over(runs: Runs, tmp_path: Path, damage: str) -> None:
    folder = runs.killed(tmp_path / "run", 8)
    assert len(states(folder)) == 2
    newest = states(folder)[-1]
    content = bytearray(newest.read_bytes())
    if damage == "cut short":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    started = runs.start(folder)
    assert started.wait() == [0]
    said = " ".join(started.output.split())
    assert f"{newest.name}: corrupt: " in said
    assert "going on from the state before it" in said
    assert_same_run(folder, runs.whole())


def test_no_whole_state_left_is_one_sentence(runs: Runs, tmp_path: Path) -> None:
    folder = runs.killed(tmp_path / "run", 8)
    for state in states(folder):
        state.write_bytes(b"")
    log = (folder / "log.jsonl").read_bytes()
    assert "all of its 2 states are corrupt" in refused(runs, folder)
    assert (folder / "log.jsonl").read_bytes() == log


def test_killed_while_a_state_is_written(runs: Runs, tmp_path: Path) -> None:
    """Watched from outside: the temporary file is there, and stays there after the kill."""
    folder, halves = tmp_path / "run", 0
    options = {"loop.save_every": 1, "loop.keep": 3}
    while not halves:
        started = runs.start(folder, options)
        assert started.until(lambda: half_written(folder / "state")), "12 writes, and none was seen"
        started.kill()
        halves = len(half_written(folder / "state"))
    before = [step_of(file) for file in states(folder)]
    runs.train(folder, options)
    assert not half_written(folder / "state")
    assert before == sorted(set(before)), "nothing older was lost"
    assert_same_run(folder, runs.whole())


def half_written(folder: Path) -> list[Path]:
    return list(folder.glob(".*.tmp"))


@slow
def test_the_best_network_can_be_read_at_every_moment(runs: Runs, tmp_path: Path) -> None:
    options = {"loop.epochs": 25, "optim.lr": 0.01}
    started, read = runs.start(tmp_path / "run", options), 0
    while started.alive:
        if (tmp_path / "run" / "best" / artifact.WEIGHTS).exists():
            found = artifact.read_artifact(tmp_path / "run" / "best")
            assert found.config.metrics["count"] == 43
            read += 1
    assert started.wait() == [0], started.output
    assert read > 25
    for _ in range(5):  # killed in the middle, it is whole too
        shutil.rmtree(tmp_path / "run")
        started = runs.start(tmp_path / "run", options)
        assert started.until(lambda: half_written(tmp_path / "run" / "best"))
        started.kill()
        if (tmp_path / "run" / "best" / artifact.WEIGHTS).exists():
            artifact.read_artifact(tmp_path / "run" / "best")
    runs.train(tmp_path / "run", options)
    artifact.read_artifact(tmp_path / "run" / "best")


def test_the_log_is_cut_back_to_the_state(runs: Runs, tmp_path: Path) -> None:
    """Lines of steps that are repeated, and one that the crash tore, are gone."""
    folder = runs.killed(tmp_path / "run", 9, {"loop.save_every": 100})
    assert step_of(states(folder)[-1]) == 6, "the first epoch's end"
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "st')
    runs.train(folder)
    assert_same_run(folder, runs.whole())


@pytest.mark.parametrize("logged", [False, True])
def test_a_folder_without_a_state_starts_at_step_0(
    runs: Runs, tmp_path: Path, logged: bool
) -> None:
    """Killed between recipe.yaml and the first state, which is published beside the first steps."""
    folder = runs.killed(tmp_path / "run", 2, {"loop.save_every": 100})
    shutil.rmtree(folder / "state")
    (folder / "best").mkdir()
    temporary(folder / "best" / "model.safetensors").write_bytes(b"half")
    if not logged:
        (folder / "log.jsonl").unlink()
    runs.train(folder)
    assert not half_written(folder / "best")
    assert_same_run(folder, runs.whole())


def test_the_recipe_is_written_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a kill would leave a folder that looks like somebody else's."""

    def dies(folder: Path) -> None:
        make_folder(folder)
        if folder.name == "state":
            raise KeyboardInterrupt

    with contextlib.closing(RunFolder(tmp_path / "run", 2)) as first:
        monkeypatch.setattr(run_folder, "make_folder", dies)
        with pytest.raises(KeyboardInterrupt):
            first.open_(Recipe())
    monkeypatch.undo()
    with contextlib.closing(RunFolder(tmp_path / "run", 2)) as second:
        second.open_(Recipe())
    assert (tmp_path / "run" / "state").is_dir()


# What may differ, and what not --------------------------------------------------------------


def test_another_recipe_is_refused_with_its_keys(runs: Runs) -> None:
    said = refused(runs, runs.whole(), {"optim.lr": 0.07, "loop.seed": 1, "data.workers": 3})
    assert "optim.lr: 0.05 -> 0.07" in said
    assert "loop.seed: 0 -> 1" in said
    assert "workers" not in said


def test_what_changes_no_number_may_change(runs: Runs, tmp_path: Path) -> None:
    folder = runs.killed(tmp_path / "run", 8)
    runs.train(folder, {"data.workers": 1, "loop.save_every": 5, "loop.keep": 4})
    assert_same_run(folder, runs.whole())


def test_other_images_are_refused(runs: Runs, tmp_path: Path) -> None:
    copy = tmp_path / "digits"
    shutil.copytree(runs.data, copy)
    folder = runs.killed(tmp_path / "run", 8)
    train_list = copy / "train_list.txt"
    train_list.write_text("".join(reversed(train_list.read_text().splitlines(keepends=True))))
    said = refused(runs, folder, {"data.root": copy})
    assert "trained on other lists of images" in said
    train_list.write_text((runs.data / "train_list.txt").read_text())
    runs.train(folder, {"data.root": copy})  # the same lists, elsewhere: moving the data is no harm
    assert_same_run(folder, runs.whole())


def test_other_processes_are_a_warning(runs: Runs, tmp_path: Path) -> None:
    """Not bit for bit, but near: the micro-batches are the same, BatchNorm's are the ranks'."""
    folder = runs.killed(tmp_path / "run", 8, {"model.sync_bn": True, "model.drop_rate": 0})
    started = runs.start(folder, {"model.sync_bn": True, "model.drop_rate": 0}, ranks=2)
    assert started.wait() == [0, 0]
    said = " ".join(started.output.split())
    assert said.count("world_size was 1 and is now 2") == 1
    whole = numbers(runs.whole({"model.sync_bn": True, "model.drop_rate": 0}))
    assert [line["step"] for line in numbers(folder)] == [line["step"] for line in whole]
    assert numbers(folder)[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-4)


# The folder ---------------------------------------------------------------------------------


def table(output: str) -> str:
    """The results line, whose ips is a time."""
    found = re.search(r"^ *densenet121.*$", output, re.MULTILINE)
    assert found, output
    return found[0].rsplit(maxsplit=1)[0]


def test_a_finished_run_says_so_and_prints_its_table(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.whole(), tmp_path / "run")
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    again = runs.start(tmp_path / "run")
    assert again.wait() == [0]
    assert "is finished" in again.output
    assert table(again.output) == table(runs.whole_said())
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log


def test_an_interrupted_run_prints_the_same_table(runs: Runs, tmp_path: Path) -> None:
    runs.killed(tmp_path / "run", 8)
    resumed = runs.start(tmp_path / "run")
    assert resumed.wait() == [0]
    assert table(resumed.output) == table(runs.whole_said())
    best = re.findall(r"best: epoch.*?of", runs.whole_said())
    assert best
    assert re.findall(r"best: epoch.*?of", resumed.output) == best


def test_a_foreign_folder_is_refused_and_left_alone(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("words")
    assert "not a run's" in refused(runs, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_resume_never_takes_only_a_new_folder(runs: Runs, tmp_path: Path) -> None:
    never = {"loop.resume": "never"}
    assert "already holds a run" in refused(runs, runs.whole(), never)
    assert_same_run(runs.train(tmp_path / "run", never), runs.whole())


@slow
def test_a_second_run_on_a_held_folder_is_refused(runs: Runs, tmp_path: Path) -> None:
    first = runs.start(tmp_path / "run")
    assert first.until_step(2)
    first.send(signal.SIGSTOP)
    assert "another run holds this folder" in refused(runs, tmp_path / "run")
    first.send(signal.SIGCONT)
    assert first.wait() == [0]
    assert_same_run(tmp_path / "run", runs.whole())


@slow
def test_an_orphan_rank_holds_the_folder(runs: Runs, tmp_path: Path) -> None:
    """Rank 0 is dead, rank 1 has not noticed: it could still take part in nothing, but waits."""
    first = runs.start(tmp_path / "run", ranks=2)
    assert first.until_step(2)
    first.send(signal.SIGSTOP, 1)
    first.send(signal.SIGKILL, 0)
    said = refused(runs, tmp_path / "run")
    assert "another run holds this folder" in said
    assert ".lock-1" in said
    first.send(signal.SIGKILL, 1)
    first.wait()
    runs.train(tmp_path / "run", ranks=2)
    assert_same_run(tmp_path / "run", runs.whole(ranks=2))


@pytest.mark.parametrize("named", ["folder", "state"])
def test_a_new_folder_goes_on_from_another_run(runs: Runs, tmp_path: Path, named: str) -> None:
    origin = runs.killed(tmp_path / "origin", 8)
    before = {file: file.read_bytes() for file in origin.rglob("*") if file.is_file()}
    path = origin if named == "folder" else states(origin)[0]
    runs.train(tmp_path / "new", {"loop.resume": path})
    assert_same_run(tmp_path / "new", runs.whole())
    assert {file: file.read_bytes() for file in origin.rglob("*") if file.is_file()} == before


def test_a_new_folder_goes_on_only_with_the_same_recipe(runs: Runs, tmp_path: Path) -> None:
    other = {"loop.resume": runs.whole(), "optim.lr": 0.07}
    assert "optim.lr: 0.05 -> 0.07" in refused(runs, tmp_path / "new", other)
    nowhere = {"loop.resume": tmp_path / "nowhere"}
    assert "there is no such file or folder" in refused(runs, tmp_path / "b", nowhere)
    (tmp_path / "empty").mkdir()
    assert "not a run's folder" in refused(
        runs, tmp_path / "c", {"loop.resume": tmp_path / "empty"}
    )


# Disks --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_stops_the_run_with_a_sentence(runs: Runs, small_disk: Path) -> None:
    folder = small_disk / "run"
    started = runs.start(folder, {"loop.save_every": 1})
    assert started.until_step(3)
    started.send(signal.SIGSTOP)
    fill(small_disk / "filler")
    started.send(signal.SIGCONT)
    assert started.wait() == [2], started.output
    assert "Traceback" not in started.output
    assert "No space left on device" in started.output
    (small_disk / "filler").unlink()
    runs.train(folder)
    assert_same_run(folder, runs.whole())


def fill(file: Path) -> None:
    """Until the disk has no byte left."""
    with file.open("wb", buffering=0) as filler:
        for size in (4096, 1):
            try:
                while True:
                    filler.write(b"x" * size)
            except OSError:
                continue


def test_a_read_only_disk_is_one_sentence(runs: Runs, small_disk: Path) -> None:
    folder = runs.killed(small_disk / "run", 8)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "Read-only file system" in refused(runs, folder)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    runs.train(folder)
    assert_same_run(folder, runs.whole())


def test_a_log_line_is_json_with_these_fields(runs: Runs) -> None:
    train, evaluated = (
        [line for line in lines(runs.whole()) if line["kind"] == kind] for kind in ("train", "eval")
    )
    assert [line["step"] for line in train] == list(range(1, STEPS + 1))
    assert all(
        list(line) == ["kind", "step", "epoch", "loss", "top1", "top5", "lr", "ips", "ips_rank",
                       "data_wait", "eta"]
        for line in train
    )  # fmt: skip
    assert [line["epoch"] for line in evaluated] == [1, 2]
    assert json.loads(json.dumps(train, allow_nan=False)) == train
    assert weights(runs.whole(), "last").keys() == weights(runs.whole(), "best").keys()
