"""`densekit export`: what it prints, where it writes, and what it says where it cannot."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from runs import Runs, densekit


@pytest.fixture(scope="module")
def best(runs: Runs) -> Path:
    return runs.whole() / "best"


def without(*packages: str) -> None:
    """A process' prelude: these packages are not installed."""
    for package in packages:
        sys.modules[package] = None  # type: ignore[assignment]


def test_json_is_the_gate_and_the_folder(best: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = densekit("export", best, "--to", "onnx", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["folder"] == str(out)
    assert found["passed"]
    assert found["images"]["count"] == 43
    kept = json.loads((out / "gate.json").read_text())
    assert {**kept, "folder": str(out)} == {**found, "sha256": kept["sha256"]}
    again = densekit("export", best, "--to", "onnx", "--out", out)
    assert again.returncode == 2
    assert "there is an export already; add --replace" in again.stderr

    one, other = (
        json.loads(densekit("evaluate", folder, "--json", "--workers", 0).stdout)
        for folder in (best, out)
    )
    assert (one["engine"], other["engine"]) == ("torch", "onnxruntime")
    assert other["top1"] == one["top1"] == found["exported"]["top1"]
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    missing = densekit("evaluate", out, prelude=partial(without, "onnxruntime"))
    assert missing.returncode == 2
    assert f'{out} needs onnxruntime: pip install "densekit[export]"' in missing.stderr


def test_the_table_goes_to_stdout_and_the_folder_beside_the_artifact(
    best: Path, tmp_path: Path
) -> None:
    (tmp_path / "best").symlink_to(best)
    done = densekit("export", "best", "--to", "torch-export", "--limit", 10, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "On 10 images" in done.stdout
    for row in ("top1", "same prediction", "largest difference of a logit", "ms per batch of 16"):
        assert row in done.stdout
    assert "100.00%" in done.stdout
    assert done.stdout.endswith(
        "best-torch-export: written; try: densekit evaluate best-torch-export\n"
    )
    assert (tmp_path / "best-torch-export" / "model.pt2").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--to", "onnx-in8"], 'did you mean "onnx-int8"'),
        (["--to", "onnx", "--max-drop", "1"], "--max-drop: is for int8; for --to onnx use"),
        (["--to", "onnx-int8", "--max-difference", "1"], "--max-difference: is for float exports"),
        (["--to", "torch-export", "--force"], "--force: is for int8"),
        (["--to", "torch-export", "--max-difference", "0"], "Nothing was written"),
        (["-o", "model.name=x"], "-o model.name=x: goes with -c RECIPE"),
    ],
)
def test_a_mistake_is_a_sentence(best: Path, tmp_path: Path, options: list[str], says: str) -> None:
    done = densekit("export", best, "--out", tmp_path / "out", *options)
    assert done.returncode == 2, done
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "package"),
    [("onnx", "onnxscript"), ("openvino", "openvino"), ("openvino-int8", "nncf"),
     ("onnx-int8", "onnxruntime.quantization")],
)  # fmt: skip
def test_the_extra_is_named(best: Path, tmp_path: Path, to: str, package: str) -> None:
    words = ("export", best, "--to", to, "--out", tmp_path / "out")
    done = densekit(*words, prelude=partial(without, package))
    assert done.returncode == 2, done
    name = package.partition(".")[0]
    assert f'needs {name}: pip install "densekit[export]"' in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_says_no_place(tmp_path: Path) -> None:
    done = densekit("export", "-c", "quickstart", cwd=tmp_path)
    assert done.returncode == 2
    assert "name the output folder: --out FOLDER" in done.stderr
    assert densekit("export", cwd=tmp_path).returncode == 2
