"""benchmarks/soak.py: a few kills pass, and its comparison finds what differs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file, save_file

from runs import STEPS, Runs

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"
Line = dict[str, object]


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def edited(whole: Path, folder: Path, edit: Callable[[list[Line]], object]) -> Path:
    """A copy of a run with another log."""
    shutil.copytree(whole, folder)
    rows = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["kind"] != "event"]
    edit(rows)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda rows: None, (0, 0, 0)),
        (lambda rows: rows.pop(3), (1, 0, 0)),
        (lambda rows: rows.insert(3, rows[3]), (0, 1, 0)),
        (lambda rows: rows[3].update(loss=rows[3]["loss"] + 1e-15), (0, 0, 1)),
        (lambda rows: rows[-1].update(lr=0.5), (0, 0, 1)),
        (lambda rows: rows[3].update(step=STEPS + 1), (1, 1, 0)),
    ],
)
def test_what_differs_is_counted(
    runs: Runs,
    tmp_path: Path,
    soak: ModuleType,
    edit: Callable[[list[Line]], object],
    expected: tuple[int, int, int],
) -> None:
    tally = soak.Tally()
    soak.compare(edited(runs.whole(), tmp_path / "run", edit), runs.whole(), tally)
    assert (tally.missing, tally.doubled, tally.different) == expected
    assert tally.weights
    assert tally.passed == (expected == (0, 0, 0))


def test_other_weights_are_seen(runs: Runs, tmp_path: Path, soak: ModuleType) -> None:
    folder, tally = edited(runs.whole(), tmp_path / "run", lambda rows: None), soak.Tally()
    file = folder / "last" / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.bias"][3] += 1e-6
    save_file(tensors, file)
    soak.compare(folder, runs.whole(), tally)
    assert not tally.weights
    assert not tally.passed


def test_kills_must_fall_into_writes_and_repeat_few_steps(soak: ModuleType) -> None:
    few = soak.Tally(in_a_write=1, repeated=[soak.SAVE_EVERY])
    few.kills["SIGKILL"] = 10
    assert few.passed
    few.kills["SIGKILL"] = 11
    assert not few.passed
    many = soak.Tally(repeated=[soak.SAVE_EVERY + 1])
    assert not many.passed


@pytest.mark.slow
def test_three_kills() -> None:
    """Of one run; that its kills fall at random is what test_resume.py does at length."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "3"], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
