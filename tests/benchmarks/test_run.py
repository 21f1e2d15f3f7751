"""benchmarks/run.py: its comparisons, its rows, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from densekit import create_model
from densekit.bench.rounds import Candidate, RoundSample, Spread
from densekit.config import UserError
from densekit.data.splits import open_examples
from densekit.models import variants
from densekit.models.variants import ModelConfig
from densekit.precision import resolve

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import cache_sides  # noqa: E402 (benchmarks/cache_sides.py, and so on)
import densekit_steps  # noqa: E402
import input_sides  # noqa: E402
import photo_sides  # noqa: E402
import row_tables  # noqa: E402
import rows  # noqa: E402
import run as command  # noqa: E402
import scoring_sides  # noqa: E402
import start_sides  # noqa: E402
import torchvision_steps  # noqa: E402
from densekit_steps import Workload  # noqa: E402

TINY = Workload(model="densenet_bc_10_4", image_size=32, batch_size=2, device="cpu")

# Rows of a comparison -----------------------------------------------------------------------


def sample(*seconds: float) -> RoundSample:
    return RoundSample(list(seconds), None, keeps_memory=False)


def test_the_ratio_is_taken_round_by_round() -> None:
    """In the second round the machine is three times as slow, which is neither side's doing."""
    pairs = [(sample(1, 1, 9), sample(2, 2, 2)), (sample(3, 3, 3), sample(6, 1, 6))]
    assert rows.speed_ratio(pairs) == Spread(median=2, low=2, high=2)
    one, other = zip(*pairs, strict=True)
    found = rows.result(Candidate("a", lambda: lambda: None), one, images=12)
    assert found == rows.Result(name="a", measured=Spread(median=8, low=4, high=12))
    assert rows.result(Candidate("b", lambda: lambda: None), other, 12).measured.median == 4


# The sides ----------------------------------------------------------------------------------


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
def test_the_training_side_is_a_recipe_of_these_settings(precision: str) -> None:
    step = densekit_steps.training(TINY, precision, "recompute")
    model = step.learner.model
    tiny = create_model(TINY.model, num_classes=1000)
    assert [p.shape for p in model.parameters()] == [p.shape for p in tiny.parameters()]
    assert (step.op, step.learner.precision.name) == ("recompute", precision)
    assert step.images.shape == (2, 3, 32, 32)
    assert step()[3] == 2  # images


def test_the_inference_side_gives_logits() -> None:
    logits = densekit_steps.inference(TINY, "fp32")()
    assert isinstance(logits, Tensor)
    assert (logits.shape, logits.dtype) == ((2, 1000), torch.float32)


def test_the_reading_sides_read_normalised_batches(tmp_path: Path) -> None:
    file = str(write_images(tmp_path))
    for sides in input_sides.sides(file, TINY).values():
        for side in sides:
            batch = side.make_step()()
            assert_normalised(batch if isinstance(batch, Tensor) else batch[0])  # type: ignore[index]


def test_photographs_are_made_once_and_read_by_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(photo_sides.COUNTS, 1000, (2, 2))
    file = str(write_images(tmp_path))
    *both, work = photo_sides.sides(file, TINY, str(tmp_path))["input-sizes/1000-to-224-scaled"]
    assert (work.image_size, work.batch_size) == (64, 2)
    for side in both:
        batch = side.make_step()()
        shape = (batch if isinstance(batch, Tensor) else batch[0]).shape  # type: ignore[index]
        assert shape == (2, 3, 64, 64)
    made = sorted(tmp_path.glob("photographs-*/*.jpg"))
    assert len(made) == 2
    assert Image.open(made[0]).size == (1000, 750)


def assert_normalised(batch: Tensor) -> None:
    assert batch.dtype == torch.float32
    assert batch.shape == (2, 3, 32, 32)
    assert batch.mean().abs() < 1
    assert 0.5 < batch.std() < 2


def test_the_scoring_sides_take_the_same_images(tmp_path: Path) -> None:
    paths = open_examples(str(write_images(tmp_path))).paths
    images = len(paths)
    for make in (scoring_sides.network_alone, scoring_sides.files_then_network):
        step = make(paths, TINY, "fp32", images)
        for _ in range(2):
            assert [batch.shape for batch in step()] == [(images, 1000)]  # type: ignore[attr-defined]
    ours = scoring_sides.FilesToRows(paths, TINY, "fp32", images)
    seen, done = [], ours.done
    ours.done = (seen.append(count) or count for count in done)
    for _ in range(3):
        ours()
    batch = scoring_sides.BATCH_SIZE  # the least that the command does at a time
    assert seen == [batch] * 3


@pytest.mark.slow
def test_an_export_is_written_once_and_its_command_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    image = str(write_images(tmp_path, count=1).with_name("0.jpg"))
    found = start_sides.commands(TINY, image, tmp_path)
    start, memory = found["engines-start/onnx"], found["engines-memory/onnx"]
    assert (start.unit, memory.unit) == ("s", "MiB")
    assert [*start.sides] == ["densekit predict, onnx", "densekit predict, torch"]
    for side in start.sides.values():
        assert side(tmp_path) > 0
    folders = sorted(tmp_path.glob("densenet_bc_10_4-*"))
    assert [f.name.rpartition("-")[2] for f in folders] == ["artifact", "onnx"]
    written = [folder.stat().st_mtime_ns for folder in folders]
    for side in memory.sides.values():
        assert side(tmp_path) > 100  # MiB: torch alone has more
    assert [folder.stat().st_mtime_ns for folder in folders] == written


def test_the_side_that_reads_files_steps_through_the_epoch(tmp_path: Path) -> None:
    """Its batches are the run's, and its step that of the side that reads none."""
    root = write_images(tmp_path, side=32).parent
    network = ["model.name=densenet_bc_10_4", "data.batch_size=3", "loop.device=cpu"]
    own = [*network, "model.num_classes=2"]
    files = [f"data.root={root}", "data.check_files=0", "data.workers=1"]
    ours = cache_sides.FilesToStep("cifar/densenet_40_12", [*own, *files])
    assert ours.data.cache == ("ram" if sys.platform == "linux" else "off")
    assert [ours()[3] for _ in range(3)] == [3, 3, 3]  # images
    alone = cache_sides.from_memory("cifar/densenet_40_12", own)
    assert alone.images.shape == ours.step.images.shape == (3, 3, 32, 32)
    assert not torch.equal(alone.images, ours.step.images)
    assert alone()[3] == 3
    assert alone.op == ours.op


@pytest.mark.parametrize("name", ["densenet121", "densenet_bc_22_12", "densenet264"])
def test_the_peer_is_the_same_network(name: str) -> None:
    config = ModelConfig(name=name, num_classes=densekit_steps.NUM_CLASSES, op="reference")
    ours = variants.create(config).eval()
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
        ours, theirs = one.ours.make_step.args, one.theirs.make_step.args  # type: ignore[attr-defined]
        assert one.ours.keep_freed_memory
        assert one.theirs.keep_freed_memory
        assert ours == theirs[:2]  # the same work, the same precision
        model, precision, layout = name.partition("/")[2].rsplit("-", 2)
        assert (model, precision) == (one.work.model, ours[1])
        assert layout == theirs[2].replace("contiguous", "nchw")
        assert theirs[3] == name.startswith("lean-compiled/")


# Rows ---------------------------------------------------------------------------------------


def make_row(name: str = "train/tuned", median: float = 15.0, **changes: Any) -> rows.Row:
    ours = rows.Result(
        name="densekit train",
        measured=Spread(median=median, low=14.04, high=155),
        activation_bytes=3 << 29,
    )
    theirs = rows.Result(name="torchvision", measured=Spread(median=5.5, low=5, high=6))
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
        settings: Any = row.settings
        if "clients" in settings:  # a service under load for minutes
            assert settings["rounds"] >= 3, row.name
        elif "runs" in settings:  # whole commands
            assert settings["runs"] >= 5, row.name
        else:
            assert settings["pairs"] >= 5, row.name
            requests = row.name.startswith("serving/")  # a step is 128 of them
            assert settings["steps"] >= (1 if requests else 7), row.name


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
    workers = f"score/workers-{command.TUNED[0]}"
    names = ("startup", "train/as-it-comes", "input/tuned", workers)
    done = run("--quick", *names, "--images", images, "--results", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    found = {row.name: row for row in rows.read(tmp_path / "results")}
    assert set(found) == {
        "startup/help",
        "startup/quickstart-first-step",
        "startup/quickstart-first-step-cold",
        "train/as-it-comes",
        "input/tuned",
        workers,
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
