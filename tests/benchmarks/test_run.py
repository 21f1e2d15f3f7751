"""The harness: its statistics, its turns, its rows; and that it measures what the product does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from densekit.bench import steps as bench
from densekit.bench import rounds
from densekit.bench.steps import Workload
from densekit.bench.rounds import Result, Rule, Side, Spread, Turn
from densekit.config import UserError
from densekit.data.transforms import Preprocessing
from densekit.infer.engines import logits_of
from densekit.models import variants
from densekit.models.variants import ModelConfig
from densekit.precision import resolve
from densekit.training import optim
from densekit.training.recipe import load
from densekit.training.setup import make_plan
from densekit.training.step import create_learner, train_step

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import torchvision_steps  # noqa: E402 (benchmarks/torchvision_steps.py, and so on)
import row_tables  # noqa: E402
import rows  # noqa: E402
import run as command  # noqa: E402

TINY = Workload(model="densenet_bc_10_4", image_size=32, batch_size=2)
MIB = 1 << 20

# Statistics ---------------------------------------------------------------------------------


@given(st.lists(st.floats(0.001, 1000), min_size=1))
def test_a_spread_is_median_and_range(values: list[float]) -> None:
    found = Spread.of(values)
    assert found.median == pytest.approx(np.median(values))
    assert (found.low, found.high) == (min(values), max(values))


def turn(seconds: list[float], activation_bytes: int | None = None) -> Turn:
    return Turn(seconds, activation_bytes, keeps_memory=False)


def side(name: str) -> Side:
    return Side(name, lambda: lambda: None)


def test_the_ratio_is_taken_pair_by_pair() -> None:
    """In the second pair the machine is three times as slow, which is neither side's doing."""
    pairs = [(turn([1, 1, 9]), turn([2, 2, 2])), (turn([3, 3, 3]), turn([6, 1, 6]))]
    assert rounds.ratio(pairs) == Spread(median=2, low=2, high=2)
    one, other = zip(*pairs, strict=True)
    assert rounds.result(side("a"), one, images=12) == Result(
        name="a", measured=Spread(median=8, low=4, high=12)
    )
    assert rounds.result(side("b"), other, images=12) == Result(
        name="b", measured=Spread(median=4, low=2, high=6)
    )


def test_memory_is_the_largest_turns_and_may_be_unknown() -> None:
    one = rounds.result(side("a"), [turn([1], 5), turn([1], 7)], images=1)
    other = rounds.result(side("b"), [turn([1]), turn([1])], images=1)
    assert (one.activation_bytes, other.activation_bytes) == (7, None)


# Taking turns -------------------------------------------------------------------------------


def writing(name: str, file: str) -> Callable[[], object]:
    def step() -> None:
        with Path(file).open("a") as log:
            log.write(name)

    return step


def holding(first: int, later: int) -> Callable[[], object]:
    """Steps that hold so many MiB for their time."""
    sizes = iter([first])
    return lambda: np.ones(next(sizes, later) * MIB, np.uint8).sum()


def failing() -> Callable[[], object]:
    raise ValueError("this side cannot be made")


@pytest.mark.slow
def test_sides_step_in_turns(tmp_path: Path) -> None:
    file = str(tmp_path / "steps")
    sides = [Side(name, partial(writing, name, file)) for name in "ABC"]
    rounds = list(rounds.alternate(sides, Rule(pairs=2, steps=3, warmup=1, threads=1)))
    assert Path(file).read_text() == "ABC" + 2 * ("AAAA" + "BBBB" + "CCCC")
    assert [len(t.seconds) for taken in rounds for t in taken] == 6 * [3]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process' peak")
def test_memory_is_of_all_steps_but_the_first() -> None:
    one, other = Side("a", partial(holding, 300, 90)), Side("b", partial(holding, 0, 30))
    ((first, second),) = rounds.alternate([one, other], Rule(pairs=1, steps=2, threads=1))
    assert first.activation_bytes is not None
    assert second.activation_bytes is not None
    assert 85 < first.activation_bytes / MIB < 120
    assert 25 < second.activation_bytes / MIB < 60


@pytest.mark.slow
def test_a_side_that_fails_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="broken: its process failed"):
        list(rounds.alternate([Side("broken", failing)], Rule(threads=1)))
    assert "this side cannot be made" in capfd.readouterr().err


# densekit's sides do what the product does --------------------------------------------------


class Recorded(TorchDispatchMode):
    """Every operation that reaches a kernel, with its inputs' types and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        tensors = [(a.dtype, a.shape, a.stride()) for a in args if isinstance(a, Tensor)]
        self.calls.append((function, tensors))
        return function(*args, **(kwargs or {}))


def calls(step: Callable[[], object]) -> list[tuple[Any, ...]]:
    """Of the second step: the first also makes what later ones share."""
    step()
    with Recorded() as recorded:
        step()
    return recorded.calls


def write_images(root: Path, count: int = 8, side: int = 40) -> Path:
    """Noise as JPEG files, with train_list.txt and val_list.txt; returns the former."""
    draw = np.random.Generator(np.random.PCG64(0))
    for i in range(count):
        pixels = draw.integers(256, size=(side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.jpg")
    for name, part in (("train", range(2, count)), ("val", range(2))):
        (root / f"{name}_list.txt").write_text("".join(f"{i}.jpg {i % 2}\n" for i in part))
    return root / "train_list.txt"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_training_side_is_a_step_of_densekit_train(tmp_path: Path, precision: str) -> None:
    write_images(tmp_path)
    options = {
        "data.root": tmp_path,
        "data.image_size": TINY.image_size,
        "data.evaluate.resize": TINY.image_size,
        "data.batch_size": TINY.batch_size,
        "model.name": TINY.model,
        "model.num_classes": bench.NUM_CLASSES,
        "loop.precision": precision,
        "loop.device": "cpu",
    }
    plan = make_plan(load(None, [f"{key}={value}" for key, value in options.items()]))
    learner, _ = create_learner(plan.recipe, plan.precision)
    images, labels = bench.batch(TINY.batch_size, 3, TINY.image_size, bench.NUM_CLASSES)

    def product() -> object:
        optim.set_lr(learner.optimizer, 1.0)
        return train_step(
            learner, plan.recipe.loop, [(images, labels)], len(images), 0, clip_norm=None
        ).tolist()

    side = bench.training(TINY.model_copy(update={"device": "cpu"}), precision)
    assert len(calls(product)) > 100
    assert calls(side) == calls(product)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_inference_side_is_a_batch_of_densekit_evaluate(precision: str) -> None:
    torch.manual_seed(0)
    side = bench.inference(TINY.model_copy(update={"device": "cpu"}), precision)
    torch.manual_seed(0)
    config = ModelConfig(name=TINY.model, num_classes=bench.NUM_CLASSES, op="reference")
    model = variants.create(config).eval()
    product = logits_of(model, Preprocessing(), resolve("cpu", precision))
    images, _ = bench.batch(TINY.batch_size, 3, TINY.image_size, bench.NUM_CLASSES)
    assert torch.equal(side(), product(images))  # type: ignore[arg-type]
    assert calls(side) == calls(lambda: product(images))


def test_the_reading_sides_read_normalised_batches(tmp_path: Path) -> None:
    file = str(write_images(tmp_path))
    (images,) = bench.reading(file, TINY)()  # type: ignore[misc]
    theirs = [torchvision_steps.reading(file, TINY, decode)() for decode in (torchvision_steps.pil, torchvision_steps.fast)]
    for batch in (images, *(found[0] for found in theirs)):  # type: ignore[index]
        assert batch.dtype == torch.float32
        assert batch.shape == (2, 3, 32, 32)
        assert batch.mean().abs() < 1
        assert 0.5 < batch.std() < 2


@pytest.mark.parametrize("name", ["densenet121", "densenet_bc_22_12", "densenet264"])
def test_the_peer_is_the_same_network(name: str) -> None:
    ours = variants.create(ModelConfig(name=name, num_classes=bench.NUM_CLASSES)).eval()
    theirs = torchvision_steps.network(name).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_lean_is_compared_with_all_settings_of_the_peer_alike() -> None:
    known = command.comparisons(False, None)
    lean = {name: one for name, one in known.items() if name.startswith("lean")}
    for benchmark in ("lean", "lean-compiled"):
        assert [name for name in lean if name.partition("/")[0] == benchmark] == [
            f"{benchmark}/{model}-{precision}-{layout}"
            for model in ("densenet121", "densenet_bc_100_12")
            for precision in command.PRECISIONS
            for layout in ("nchw", "channels_last")
        ]
    assert [name for name in lean if name.startswith("lean-large/")] == [
        f"lean-large/densenet{depth}-{resolve().name}-channels_last" for depth in (161, 201, 264)
    ]
    for name, one in lean.items():
        ours, theirs = one.one.make.args, one.other.make.args  # type: ignore[attr-defined]
        assert one.one.keeps_memory
        assert one.other.keeps_memory
        assert ours == theirs[:2]  # the same work, the same precision
        model, precision, layout = name.partition("/")[2].rsplit("-", 2)
        assert (model, precision) == (one.work.model, ours[1])
        assert layout == theirs[2].replace("contiguous", "nchw")
        assert theirs[3] == name.startswith("lean-compiled/")


# Rows ---------------------------------------------------------------------------------------


def make_row(name: str = "train/tuned", median: float = 15.0, **changes: Any) -> rows.Row:
    ours = Result(
        name="densekit train",
        measured=Spread(median=median, low=14.04, high=155),
        activation_bytes=3 << 29,
    )
    theirs = Result(name="torchvision", measured=Spread(median=5.5, low=5, high=6))
    ratio = Spread(median=2.5, low=2.25, high=3)
    return rows.row(name, "images/s", (ours, theirs), ratio, {"threads": 2}).model_copy(
        update=changes
    )


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    first, second, other = make_row(), make_row(median=16), make_row("inference/fp32")
    files = [rows.append(row, tmp_path) for row in (first, second, other)]
    assert [file.name for file in files] == ["train.json", "train.json", "inference.json"]
    assert rows.read(tmp_path) == [other, first, second]
    assert rows.newest(rows.read(tmp_path)) == [other, second]
    lines = files[0].read_text().splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines[1:-1]] == json.loads(
        files[0].read_text()
    )


def test_a_row_says_where_when_and_of_what() -> None:
    row = make_row()
    assert row.versions["torch"] == torch.__version__
    assert set(rows.Machine.model_fields) == {"cpu", "cores", "instructions", "gpu"}
    assert row.machine.cores >= 1
    with pytest.raises(ValueError, match="host"):
        rows.Row.model_validate({**row.model_dump(), "host": "me"})


def test_the_commit_is_dirty_where_measured_sources_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert rows.commit() is None
    source = tmp_path / "src" / "model.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    rows._git("init", "-q")
    rows._git("add", ".")
    rows._git(*author, "commit", "-q", "-m", "one")
    clean = rows.commit()
    assert clean == rows._git("rev-parse", "HEAD")[:12]
    rows.append(make_row(), tmp_path / "benchmarks" / "results")
    assert rows.commit() == clean
    source.write_text("x = 2\n")
    assert rows.commit() == f"{clean}+dirty"


def test_committed_rows_are_by_the_rules() -> None:
    for row in rows.read():
        assert row.commit is not None, row.name
        if row.ratio is None:
            assert row.settings["runs"] >= 5, row.name  # type: ignore[operator]
            continue
        assert row.settings["pairs"] >= 5, row.name  # type: ignore[operator]
        assert row.settings["steps"] >= 7, row.name  # type: ignore[operator]


def test_a_row_of_one_machine_does_not_hide_that_of_another() -> None:
    old, new, other = make_row(median=1), make_row(median=2), make_row(median=3)
    other = other.model_copy(update={"machine": rows.Machine(cpu="Y", cores=4, instructions="A")})
    assert rows.newest([old, other, new]) == [new, other]


# The command --------------------------------------------------------------------------------


def test_names_select_benchmarks_and_comparisons() -> None:
    known = ["startup/help", *command.comparisons(False, None)]
    assert command.select([], known) == known
    assert command.select(["train/tuned", "startup"], known) == ["startup/help", "train/tuned"]
    with pytest.raises(UserError, match='no benchmark "train/tunde"; did you mean "train/tuned"'):
        command.select(["train/tunde"], known)
    with pytest.raises(UserError, match="--images LIST"):
        command.select(["input"], known)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/run.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_command_measures_prints_and_keeps(tmp_path: Path) -> None:
    images = str(write_images(tmp_path))
    names = ("startup", "train/as-it-comes", "input/tuned")
    done = run("--quick", *names, "--images", images, "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    found = {row.name: row for row in rows.read(tmp_path / "results")}
    assert set(found) == {
        "startup/help",
        "startup/quickstart-first-step",
        "startup/quickstart-first-step-cold",
        "train/as-it-comes",
        "input/tuned",
    }
    ours, theirs = found["train/as-it-comes"].sides
    assert (ours.keeps_memory, theirs.keeps_memory) == (sys.platform == "linux", False)
    for row in found.values():
        assert row.name in done.stdout
        assert all(side.measured.median > 0 for side in row.sides)
    assert ours.op is not None
    assert ours.op.startswith(("lean (", "reference"))
    assert f"densekit train, {ours.op}" in row_tables.cells(found["train/as-it-comes"])[1]
    assert theirs.op is None


@pytest.mark.slow
def test_a_wrong_name_is_a_sentence() -> None:
    done = run("--quick", "trian")
    assert done.returncode == 1
    assert done.stderr.startswith('benchmarks/run.py: there is no benchmark "trian"')
