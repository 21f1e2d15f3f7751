"""The sweep: training's own learner and batches, a rule that is what it says, nothing kept."""

from __future__ import annotations

import itertools
import json
import math
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from densekit import distributed
from densekit.config import UserError
from densekit.training.lr_find import _smoothed, suggested, sweep_rates
from densekit.training.recipe import load_recipe
from runs import OPTIONS, Runs, densekit


def test_a_sweep_suggests_a_rate_and_leaves_a_picture_alone(runs: Runs, tmp_path: Path) -> None:
    chosen = {**OPTIONS, "data.root": runs.data, "loop.output_dir": tmp_path / "run",
              "loop.device": "cpu"}  # fmt: skip
    words = [w for key, value in chosen.items() for w in ("-o", f"{key}={value}")]
    plot = tmp_path / "sweep.png"
    sweep = ("lr-find", *words, "--from", "1e-4", "--to", "10", "--steps", "25")
    done = densekit(*sweep, "--plot", plot, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rates = found["rates"]
    assert rates[0] == pytest.approx(1e-4)
    ratios = [b / a for a, b in itertools.pairwise(rates)]
    assert ratios == pytest.approx([(10 / 1e-4) ** (1 / 24)] * len(ratios))
    assert found["lr"] == pytest.approx(suggested(rates, found["smoothed"]))
    assert rates[0] < found["lr"] < 10
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    assert {f.name for f in tmp_path.iterdir()} == {"sweep.png"}, "no run's folder"
    # the first loss is that of training's first step: the same network, the same batch
    first = json.loads((runs.whole() / "log.jsonl").read_text().splitlines()[1])
    assert first["kind"] == "train"
    assert found["losses"][0] == first["loss"]
    again = densekit(*sweep, "--plot", plot)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def sweep_on_this_rank(options: list[str], folder: Path) -> None:
    with distributed.session():
        found = sweep_rates(load_recipe(None, options), 1e-4, 10, 25)
        (folder / f"{distributed.rank()}.json").write_text(
            json.dumps([found.losses, found.suggestion])
        )


def test_ranks_sweep_together(runs: Runs, tmp_path: Path) -> None:
    """Under torchrun: one sweep over all of them, on the batches that such a run would take."""
    chosen = {**OPTIONS, "data.root": runs.data, "loop.device": "cpu"}
    options = [f"{key}={value}" for key, value in chosen.items()]
    runs.on_ranks(partial(sweep_on_this_rank, options, tmp_path), 2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    first = json.loads((runs.whole(ranks=2) / "log.jsonl").read_text().splitlines()[1])
    assert found[0][0][0] == first["loss"]


def test_the_rule() -> None:
    rates = [10.0**e for e in range(-5, 1)]
    assert suggested(rates, [2.0, 1.9, 1.5, 0.9, 1.2, 9.0]) == pytest.approx(1e-3)
    with pytest.raises(UserError, match="the loss never fell"):
        suggested(rates, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    with pytest.raises(UserError, match="the loss never fell"):
        suggested([], [])


def test_smoothing_of_one_value_is_that_value() -> None:
    assert _smoothed([3.0]) == 3.0
    assert _smoothed([2.0] * 9) == pytest.approx(2.0)
    assert math.isclose(_smoothed([0.0, 1.0]), 1 / 1.9)
