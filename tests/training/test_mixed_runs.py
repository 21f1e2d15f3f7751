"""Runs that mix and augment: the same whoever kills them, and what their log says."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from PIL import Image

from densekit.models import artifact
from densekit.training import curves
from runs import OPTIONS, STEPS, Options, Runs, assert_same_run, lines

slow = pytest.mark.slow
MIXED: Options = {
    "data.augment.mixup": 0.4,
    "data.augment.cutmix": 0.4,
    "data.augment.rand_augment": 2,
    "data.augment.color_jitter": "[0.2, 0.2, 0, 0]",
    "data.augment.erase": 0.3,
    "data.augment.erase_with": "noise",
    "loop.accumulation": 2,
    "loop.label_smoothing": 0.1,
}


@pytest.mark.parametrize(
    ("ranks", "workers"),
    [(1, 0), pytest.param(1, 2, marks=slow), pytest.param(2, 1, marks=slow)],
)
def test_a_killed_run_that_mixes_ends_as_it_would_have(
    runs: Runs, tmp_path: Path, ranks: int, workers: int
) -> None:
    options = {**MIXED, "data.workers": workers}
    started = runs.start(tmp_path / "run", options, ranks)
    assert started.until_step(4), started.output
    assert -signal.SIGKILL in started.kill()
    runs.train(tmp_path / "run", options, ranks)
    whole = runs.whole(MIXED, ranks)
    assert_same_run(tmp_path / "run", whole)
    mixed = [line for line in lines(whole) if line["kind"] == "train"]
    assert len(mixed) == STEPS
    assert not [line for line in mixed if "top1" in line or "top5" in line]
    assert all("top1" in line for line in lines(whole) if line["kind"] == "eval")
    curves.draw(lines(whole), "mixed", tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size > (500, 300), "though no top-1 is logged"


def test_evaluations_are_made_where_they_are_due(runs: Runs, tmp_path: Path) -> None:
    options = {"loop.epochs": 5, "loop.eval_from": 2, "loop.eval_every": 2}
    folder = runs.train(tmp_path / "run", options)
    assert [line["epoch"] for line in lines(folder) if line["kind"] == "eval"] == [2, 4, 5]
    config = artifact.read_artifact(folder / "last").config
    last = [line for line in lines(folder) if line["kind"] == "eval"][-1]
    assert config.metrics["loss"] == last["loss"]


def test_lines_as_paddleclas_writes_them(runs: Runs, tmp_path: Path) -> None:
    started = runs.start(tmp_path / "run", {"loop.log_format": "paddleclas"})
    assert started.wait() == [0]
    found = re.findall(
        r"^\[Train\]\[Epoch (\d+)/2\]\[Iter: (\d+)/6\]lr\(CosineAnnealingDecay\): (\d\.\d{8}), "
        r"top1: (\d\.\d{5}), top5: (\d\.\d{5}), CELoss: (\d\.\d{5}), loss: (\d\.\d{5}), "
        r"batch_cost: (\d+\.\d{5})s, reader_cost: (\d+\.\d{5}), ips: (\d+\.\d{5}) samples/s, "
        r"eta: (\d+:\d\d:\d\d)$",
        started.output,
        re.MULTILINE,
    )
    logged = [line for line in lines(tmp_path / "run") if line["kind"] == "train"]
    assert len(found) == len(logged) == STEPS
    for line, texts in zip(logged, found, strict=True):
        epoch, step, lr, top1, _, loss, _, cost, reader, ips, _ = map(str, texts)
        assert (int(epoch) - 1) * 6 + int(step) == line["step"]
        assert float(lr) == pytest.approx(line["lr"], abs=1e-8)
        assert float(top1) == pytest.approx(line["top1"], abs=1e-5)
        assert float(loss) == pytest.approx(line["loss"], abs=1e-5)
        assert float(ips) == pytest.approx(line["ips_rank"], rel=1e-4)
        assert float(cost) == pytest.approx(OPTIONS["data.batch_size"] / line["ips"], abs=1e-5)
        waited = OPTIONS["data.batch_size"] / line["ips"] * line["data_wait"]
        assert float(reader) == pytest.approx(waited, abs=1e-5)
