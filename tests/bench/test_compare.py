"""`densekit bench`: what it tries, what it concludes, and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densekit.bench import compare
from densekit.bench.compare import (
    ROOM,
    MeasuredOp,
    largest_that_fits,
    parse_ops,
)
from densekit.bench.rounds import Candidate, RoundSample, Settings
from densekit.bench.training_step import TrainingStep
from densekit.cli.bench import print_bench
from densekit.config import UserError
from densekit.training.recipe import Recipe, load_recipe
from runs import densekit

TINY = ["model.name=densenet_bc_10_4", "data.image_size=32", "loop.device=cpu"]
GIB = 1 << 30


def recipe(*options: str) -> Recipe:
    return load_recipe(None, [*TINY, *options])


# The largest batch --------------------------------------------------------------------------


@given(limit=st.integers(0, 5000), start=st.integers(1, 300))
def test_doubling_and_halving_find_the_limit_to_an_eighth(limit: int, start: int) -> None:
    tried: list[int] = []

    def fits(images: int) -> bool:
        tried.append(images)
        return images <= limit

    found = largest_that_fits(fits, start)
    assert found <= limit
    assert limit - found <= max(0, found // 8)
    assert found == 0 or found in tried
    assert len(tried) == len(set(tried)) < 25


@given(per_image=st.integers(1, 10**9), fixed=st.integers(0, 10**10), asked=st.integers(5, 512))
def test_a_line_through_measured_batches_gives_the_largest(
    per_image: int, fixed: int, asked: int
) -> None:
    one, room = MeasuredOp("lean", lambda n: Candidate("lean", lambda: lambda: None)), 2e11
    for images in (2, 4, asked):
        one.add_peak(images, RoundSample([1.0], None, True, fixed + per_image * images))
    assert one.estimated_bytes(100) == pytest.approx(fixed + per_image * 100)
    one.extrapolate_largest_batch(room)
    images = one.largest_batch
    assert images is not None
    assert one.how_found == f"extrapolated from 2 and {asked} images"
    assert fixed + per_image * images <= room * (1 + 1e-9)
    assert images * per_image >= 0.9 * (room - fixed) - 2 * per_image


def test_one_point_is_no_line() -> None:
    one = MeasuredOp("lean", lambda n: Candidate("lean", lambda: lambda: None))
    one.add_peak(2, RoundSample([1.0], None, True, GIB))
    one.add_peak(4, RoundSample([1.0], None, True))  # a system that does not tell
    one.extrapolate_largest_batch(GIB)
    assert (one.estimated_bytes(8), one.largest_batch, one.fits(8, 1)) == (None, None, True)


# The course of it, with samples that no process took -------------------------------------------


def batch_size(candidate: Candidate) -> int:
    asked: Recipe = candidate.make_step.args[0]  # type: ignore[attr-defined]
    return asked.data.batch_size


class Machine:
    """Stands in for rounds.alternate: each op takes so many bytes an image, and 100 more."""

    def __init__(self, per_image: dict[str, int], refuses: Sequence[str] = ()) -> None:
        self.per_image, self.refuses = per_image, refuses
        self.tried: list[list[tuple[str, int]]] = []

    def measure_rounds(
        self, candidates: Sequence[Candidate], settings: Settings
    ) -> Iterator[tuple[RoundSample, ...]]:
        images = [batch_size(each) for each in candidates]
        self.tried.append([(each.name, n) for each, n in zip(candidates, images, strict=True)])
        if candidates[0].name in self.refuses:
            raise UserError(f"{candidates[0].name} cannot")
        for _ in range(settings.rounds):
            yield tuple(
                RoundSample(
                    [1.0], n, True, 100 + n * self.per_image[each.name], f"{each.name} (by test)"
                )
                for each, n in zip(candidates, images, strict=True)
            )


def measured(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, free: int | None, *options: str
) -> dict[str, Any]:
    monkeypatch.setattr(compare, "measure_rounds", machine.measure_rounds)
    monkeypatch.setattr(compare, "free_bytes", lambda device: free)
    asked = recipe(*options)
    return compare.measure(asked, list(machine.per_image), 3).model_dump()


def test_ops_alternate_where_they_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"reference": 10, "lean": 5})
    found = measured(monkeypatch, machine, 10_000, "data.batch_size=16", "loop.accumulation=2")
    assert found["batch_size"] == 8
    assert machine.tried[:4] == [[(op, n)] for op in ("reference", "lean") for n in (2, 4)]
    assert machine.tried[4:] == [[("reference", 8), ("lean", 8)]]
    first, second = found["ops"]
    assert first["images_per_second"] == {"median": 8, "low": 8, "high": 8}
    assert (first["taken"], first["activation_bytes"]) == ("reference (by test)", 8)
    assert first["largest_batch"] == 890  # (0.9 * 10,000 - 100) / 10
    assert second["largest_batch"] == 1700  # of 1,780 two digits count
    assert second["found"] == "extrapolated from 2 and 8 images"


def test_they_go_one_by_one_where_not_and_none_goes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"reference": 10, "recompute": 6, "lean": 5})
    found = measured(monkeypatch, machine, 1000, "data.batch_size=100")
    assert machine.tried[6:] == [[("recompute", 100)], [("lean", 100)]]
    first, second, _ = found["ops"]
    assert first["reason"] == "no room for a batch of 100"
    assert (first["images_per_second"], first["largest_batch"]) == (None, 80)
    assert (second["reason"], second["largest_batch"]) == (None, 130)
    assert all(n * 10 + 100 <= 1000 * ROOM for each in machine.tried[:6] for _, n in each)


def test_an_op_that_refuses_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"reference": 10, "lean": 5}, refuses=["lean"])
    found = measured(monkeypatch, machine, None, "data.batch_size=8")
    assert [op["reason"] for op in found["ops"]] == [None, "lean cannot"]
    assert [op["largest_batch"] for op in found["ops"]] == [None, None]
    machine = Machine({"reference": 10, "lean": 5}, refuses=["lean", "reference"])
    with pytest.raises(UserError, match="reference cannot"):
        measured(monkeypatch, machine, None, "data.batch_size=8")


def test_a_gpu_is_tried_until_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_rounds(
        candidates: Sequence[Candidate], settings: Settings
    ) -> Iterator[tuple[RoundSample, ...]]:
        images = batch_size(candidates[0])
        if images > 37:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield (RoundSample([1.0], images, True, images),)

    monkeypatch.setattr(compare, "measure_rounds", measure_rounds)
    one = MeasuredOp("lean", lambda n: compare._candidate(recipe(), "lean", n))
    fits = compare.partial(compare._fits, one, Settings())
    assert largest_that_fits(fits, 8) in range(33, 38)
    assert max(one.peaks) <= 37


# The recipe, the options --------------------------------------------------------------------


@pytest.mark.parametrize(("text", "says"), [("lean,refrence", "reference"), (",", "names no op")])
def test_wrong_ops_are_sentences(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_ops(text)
    assert parse_ops(" lean, reference,lean") == ["lean", "reference"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["model.in_channels=1"], "data.channels"),
        (["data.batch_size=6", "loop.accumulation=4"], "nearest: 4 or 8"),
        (["data.image_size=2"], "too small"),
        (["data.image_size=4", "data.batch_size=1"], "single pixel"),
    ],
)
def test_a_recipe_that_does_not_fit_is_a_sentence(options: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        compare.measure(recipe(*options), ["lean"], 1)


def test_short_forms_are_options() -> None:
    options = compare.as_options("densenet_bc_16_4", 320, 8)
    made = load_recipe(None, options)
    assert (made.model.name, made.data.train_side, made.data.batch_size) == (
        "densenet_bc_16_4", 320, 8
    )  # fmt: skip
    assert compare.as_options(None, None, None) == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_is_of_the_recipe_and_says_its_op(precision: str) -> None:
    options = ("model.in_channels=1", "data.channels=1", "data.mean=[0.5]", "data.std=[0.5]")
    asked = recipe(*options, f"loop.precision={precision}", "optim.freeze=stem")
    step = compare._candidate(asked, "reference", 3).make_step()
    assert isinstance(step, TrainingStep)
    assert step.images.shape == (3, 1, 32, 32)
    assert step.learner.precision.name == precision
    assert not step.learner.model.features.conv0.weight.requires_grad  # type: ignore[union-attr]
    assert step()[3] == 3  # images
    assert step.op == "reference"


# Printing -----------------------------------------------------------------------------------


def test_the_table_and_the_line_on_auto(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "no C++ compiler was found"
    monkeypatch.setattr(compare, "why_not_lean", lambda device, dtype: reason)
    monkeypatch.setattr(compare, "measure_rounds", Machine({"reference": GIB}).measure_rounds)
    monkeypatch.setattr(compare, "free_bytes", lambda device: 20 * GIB)
    print_bench(compare.measure(recipe("data.batch_size=8"), ["reference"], 1), False)
    printed = capsys.readouterr().out
    assert "8 images of 32 x 32 per batch" in printed
    assert "reference (by test)" in printed
    assert "17" in printed  # (0.9 * 20 GiB - 100) / 1 GiB
    assert f"model.op=auto takes reference: {reason}" in printed


@pytest.mark.slow
def test_the_command_measures_each_op() -> None:
    options = [word for option in TINY for word in ("-o", option)]
    command = [sys.executable, "-m", "densekit", "bench", *options]
    short = ["--batch-size", "8", "--steps", "1", "--json"]
    done = subprocess.run([*command, *short], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [op["op"] for op in found["ops"]] == ["reference", "recompute", "lean"]
    assert [op["taken"].partition(" ")[0] for op in found["ops"]] == [
        op["op"] for op in found["ops"]
    ]
    assert all(op["images_per_second"]["median"] > 0 for op in found["ops"])
    if sys.platform == "linux":
        assert all(op["activation_bytes"] > 0 for op in found["ops"])


def test_a_wrong_network_is_a_sentence() -> None:
    done = densekit("bench", "--model", "densenet122")
    assert done.returncode == 2
    assert 'unknown model "densenet122"' in done.stderr
