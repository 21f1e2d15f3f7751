"""benchmarks/gpu.py: that it works, by its tiny form on a CPU; on a GPU there is one chance."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

import gpu  # noqa: E402 (benchmarks/gpu.py)
import gpu_rows  # noqa: E402


@pytest.mark.slow
def test_all_parts_come_to_an_end(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--tiny"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "FAILED" not in done.stdout, done.stdout
    assert "tests: 1 passed, 0 failed" in done.stdout
    assert done.stdout.count("times as fast") == 2  # in training and in inference
    assert "aten::" in (tmp_path / "gpu-profile.txt").read_text()
    run = json.loads((tmp_path / "gpu-run.json").read_text())
    assert run["weights_are_bit_identical"]
    assert run["whole"]["top1"] == run["killed"]["top1"]


def test_a_part_that_fails_or_hangs_does_not_stop_the_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    budget = gpu_rows.Budget(time.monotonic() + 1)
    gpu_rows.attempt("one", lambda: 1 // 0, budget)  # type: ignore[arg-type,return-value]
    gpu_rows.attempt("two", lambda: time.sleep(60), budget)
    said = capsys.readouterr().out
    assert "one FAILED" in said
    assert "ZeroDivisionError" in said
    assert "two: its time was up" in said


def test_a_test_run_that_hangs_is_cut_off(tmp_path: Path) -> None:
    budget = gpu_rows.Budget(time.monotonic() + 1)
    lines = gpu.stream(["bash", "-c", "echo one; sleep 60"], tmp_path / "lines", budget)
    assert lines == ["one\n"]
    assert (tmp_path / "lines").read_text() == "one\n"


def test_a_cpu_is_refused_unless_all_is_tiny() -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
