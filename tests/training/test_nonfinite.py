"""Numbers that are not finite: what a run does about them, and that its state stays clean.

The overflow comes from the data: `overflow` makes the network's input infinite where an image is
all white, and the training list has one such image.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from densekit.data.dataset import epoch_order
from densekit.infer import engines
from densekit.training.state import step_of
from runs import (
    OPTIONS,
    STEPS_PER_EPOCH,
    TRAIN,
    Options,
    Runs,
    Started,
    assert_same_run,
    lines,
    newest_state,
    numbers,
    states,
    weights,
)

slow = pytest.mark.slow
WHITE = 17
"""The white image's place in the training list."""
BATCH = int(OPTIONS["data.batch_size"])
BAD = [
    e * STEPS_PER_EPOCH + epoch_order(0, e, TRAIN).tolist().index(WHITE) // BATCH for e in (0, 1)
]
"""The steps, from 0, that see it: one in each epoch."""


def overflow() -> None:
    """A process's prelude: images that are all white become infinite on their way in."""
    standardize = engines.standardize

    def overflowing(images: Tensor, *rest: Any) -> Tensor:
        white = (images == 255).flatten(1).all(1)
        return standardize(images, *rest).masked_fill(white[:, None, None, None], math.inf)

    engines.standardize = overflowing


@pytest.fixture(scope="module")
def digits(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, one of them white; and the options that leave it white."""
    copy = tmp_path_factory.mktemp("white") / "digits"
    shutil.copytree(runs.data, copy)
    name = (copy / "train_list.txt").read_text().splitlines()[WHITE].split()[0]
    Image.new("L", (28, 28), 255).save(copy / name)
    return copy


@pytest.fixture(scope="module")
def white_file(digits: Path) -> str:
    return str(digits / (digits / "train_list.txt").read_text().splitlines()[WHITE].split()[0])


def start(
    runs: Runs, digits: Path, folder: Path, how: str, options: Options | None = None, ranks: int = 1
) -> Started:
    own = {"data.root": digits, "data.augment.crop": "none", "loop.on_nonfinite": how}
    return runs.start(folder, {**own, **(options or {})}, ranks, overflow)


def finished(started: Started) -> Path:
    assert set(started.wait()) == {0}, started.output
    return started.folder


@pytest.fixture(scope="module")
def skipping(runs: Runs, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that skipped its two bad steps."""
    return finished(start(runs, digits, tmp_path_factory.mktemp("skip") / "run", "skip"))


@pytest.fixture(scope="module")
def stopped(runs: Runs, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Started:
    """A run that stopped at its first bad step."""
    folder = tmp_path_factory.mktemp("stop") / "run"
    started = start(runs, digits, folder, "stop", {"loop.save_every": 1})
    assert started.wait() == [2], started.output
    return started


def events(folder: Path) -> list[dict]:
    """What was done about bad steps."""
    return [line for line in lines(folder) if "bad_step" in line]


def flat(text: str) -> str:
    """Without the terminal's line breaks."""
    return " ".join(text.split())


# stop ---------------------------------------------------------------------------------------


def test_stop_names_the_step_and_keeps_its_batch(stopped: Started, white_file: str) -> None:
    said, folder = flat(stopped.output), stopped.folder
    assert "Traceback" not in said
    assert re.search(rf"step {BAD[0] + 1} \(epoch 1, learning rate 0\.0\d+\)", said)
    assert "batch: " in said

    (kept,) = folder.glob("nonfinite-step-*.pt")
    assert kept.name in said.replace(" ", "")
    batch = torch.load(kept)
    assert batch["images"].shape == (BATCH, 1, 28, 28)
    assert batch["labels"].shape == (BATCH,)
    (place,) = (batch["images"] == 255).flatten(1).all(1).nonzero().flatten().tolist()
    assert batch["files"][place] == white_file

    assert step_of(states(folder)[-1]) == BAD[0], "the last good state"
    assert states(folder)[-1].name in said.replace(" ", "")
    assert finite_state(folder)
    assert all(line["step"] <= BAD[0] for line in lines(folder))


def finite_state(folder: Path) -> bool:
    model = newest_state(folder)["learner"]["model"]
    return all(bool(value.isfinite().all()) for value in model.values())


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=slow)])
def test_a_rate_that_explodes_stops_the_run(runs: Runs, tmp_path: Path, ranks: int) -> None:
    """Nothing is patched here: the schedule multiplies the rate by 1e30 after 4 steps."""
    options = {
        "optim.schedule": "step",
        "optim.gamma": 1e30,
        "optim.milestones": f"[{4 / STEPS_PER_EPOCH}]",
        "loop.save_every": 1,
    }
    started = runs.start(tmp_path / "run", options, ranks)
    assert started.wait() == [2] * ranks
    said = flat(started.output)
    assert said.count("is not finite; batch: ") == 1, "one rank speaks for all"
    assert "learning rate 5e+28" in said
    bad = int(re.findall(r"step (\d+) \(epoch", said)[0])
    assert bad in (5, 6)
    assert max(step_of(file) for file in states(tmp_path / "run")) < bad
    assert finite_state(tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists(), "no epoch was whole"
    kept = sorted((tmp_path / "run").glob("nonfinite-step-*.pt"))
    assert len(kept) == ranks, "each rank's share"
    images = BATCH if bad % STEPS_PER_EPOCH else TRAIN % BATCH
    assert sum(len(torch.load(file)["labels"]) for file in kept) == images


def test_a_network_that_answers_nan_is_never_the_best(runs: Runs, tmp_path: Path) -> None:
    """A white validation image: training is sound, the second evaluation's loss is not."""
    copy = tmp_path / "digits"
    shutil.copytree(runs.data, copy)
    name = (copy / "val_list.txt").read_text().split()[0]
    Image.new("L", (28, 28), 255).save(copy / name)
    started = runs.start(tmp_path / "run", {"data.root": copy}, prelude=overflow)
    assert started.wait() == [0], started.output
    evaluations = [line for line in lines(tmp_path / "run") if line["kind"] == "eval"]
    assert all(line["loss"] is None for line in evaluations), "JSON has no NaN"
    assert evaluations[0]["top1"] > 0, "or it would be no candidate"
    for text in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=pytest.fail)  # a strict reader takes no NaN
    assert not (tmp_path / "run" / "best").exists()


# skip ---------------------------------------------------------------------------------------


def test_skip_leaves_the_step_out(skipping: Path, white_file: str) -> None:
    assert [(e["event"], e["bad_step"], e["step"]) for e in events(skipping)] == [
        ("skipped", step + 1, step + 1) for step in BAD
    ]
    assert all(white_file in event["files"] for event in events(skipping))
    assert newest_state(skipping)["progress"]["skipped"] == BAD
    assert newest_state(skipping)["learner"]["ema"]["n_averaged"] == 2 * STEPS_PER_EPOCH - 2
    assert finite_state(skipping)
    assert all(math.isfinite(line["loss"]) for line in numbers(skipping))
    logged = [line["step"] - 1 for line in numbers(skipping) if line["kind"] == "train"]
    assert logged == [step for step in range(2 * STEPS_PER_EPOCH) if step not in BAD]
    assert all(bool(tensor.isfinite().all()) for tensor in weights(skipping).values())


def test_skip_is_the_same_after_a_kill(
    runs: Runs, digits: Path, tmp_path: Path, skipping: Path
) -> None:
    for _ in range(2):
        started = start(runs, digits, tmp_path / "run", "skip")
        before = len(events(tmp_path / "run"))
        assert started.until(lambda before=before: len(events(tmp_path / "run")) > before)
        started.kill()
    finished(start(runs, digits, tmp_path / "run", "skip"))
    assert_same_run(tmp_path / "run", skipping)
    assert newest_state(tmp_path / "run")["progress"]["skipped"] == BAD


@slow
def test_all_ranks_skip_alike(runs: Runs, digits: Path, tmp_path: Path, skipping: Path) -> None:
    """One rank has the white image; had the other gone on alone, they would not end together."""
    options = {"model.sync_bn": True, "model.drop_rate": 0}
    one, two = (
        finished(start(runs, digits, tmp_path / str(ranks), "skip", options, ranks))
        for ranks in (1, 2)
    )
    assert newest_state(two)["progress"]["skipped"] == BAD
    for a, b in zip(numbers(one), numbers(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


@pytest.mark.parametrize("how", ["skip", "rollback"])
def test_one_skip_too_many_stops(runs: Runs, digits: Path, tmp_path: Path, how: str) -> None:
    started = start(runs, digits, tmp_path / "run", how, {"loop.max_skips": 1})
    assert started.wait() == [2], started.output
    assert f"step {BAD[1] + 1} (epoch 2" in flat(started.output)
    assert "loop.max_skips=1" in started.output
    assert finite_state(tmp_path / "run")


@pytest.mark.parametrize("how", ["skip", "rollback"])
def test_a_stopped_run_goes_on_with_skip(
    runs: Runs, digits: Path, tmp_path: Path, skipping: Path, stopped: Started, how: str
) -> None:
    """As the message says: nothing that was trained is lost."""
    shutil.copytree(stopped.folder, tmp_path / "run")
    assert numbers(finished(start(runs, digits, tmp_path / "run", how))) == numbers(skipping)


# rollback -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=slow)])
def test_rollback_leaves_the_batch_out_of_the_replay(
    runs: Runs, digits: Path, tmp_path: Path, skipping: Path, ranks: int
) -> None:
    """It ends where a run ends that skipped the same steps."""
    folder = finished(start(runs, digits, tmp_path / "run", "rollback", ranks=ranks))
    assert [(e["event"], e["bad_step"]) for e in events(folder)] == [
        ("left out of the replay", step + 1) for step in BAD
    ]
    assert newest_state(folder)["progress"]["skipped"] == BAD
    if ranks == 2:
        skipping = finished(start(runs, digits, tmp_path / "skip", "skip", ranks=ranks))
    assert numbers(folder) == numbers(skipping)
    a, b = weights(folder), weights(skipping)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_killed_run_remembers_what_it_left_out(
    runs: Runs, digits: Path, tmp_path: Path, skipping: Path
) -> None:
    """Killed after the state that records it: the replay of the resumed run leaves it out too.

    In the second epoch: a run that has no state but step 0's begins anew.
    """
    folder = tmp_path / "run"
    options = {"loop.save_every": 100, "loop.keep": 1}
    started = start(runs, digits, folder, "rollback", options)
    assert started.until(lambda: skipped_by(folder) == BAD), started.output
    started.kill()
    assert skipped_by(folder) == BAD
    resumed = start(runs, digits, folder, "rollback", options)
    assert numbers(finished(resumed)) == numbers(skipping)
    assert f"step {BAD[1] + 1} (epoch 2" not in flat(resumed.output), "it did not happen again"
    assert [event["bad_step"] for event in events(folder)] == [step + 1 for step in BAD]


def skipped_by(folder: Path) -> list[int]:
    """What the newest state remembers."""
    found = states(folder)
    return torch.load(found[-1])["progress"]["skipped"] if found else []


# fp16 ---------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_what_the_scaler_skips_is_no_failure(runs: Runs, tmp_path: Path) -> None:
    """fp16 begins with a scale that overflows; the scaler lowers it and skips those steps."""
    options = {"loop.device": "cuda", "loop.precision": "fp16", "optim.lr": 0.01}
    folder = runs.train(tmp_path / "run", options)
    assert events(folder) == []
    assert newest_state(folder)["learner"]["scaler"]["scale"] > 0
