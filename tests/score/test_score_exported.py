"""`densekit predict EXPORT --out`: another engine, the same rows, and the same promises."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from scene import Scene, parts_of

from densekit.infer import engines
from densekit.infer.engines import Logits
from runs import densekit

Make = Callable[..., Scene]
slow = pytest.mark.slow


def rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out).to_pylist()


def assert_alike(ours: Path, theirs: Path) -> None:
    """The same but for what another engine rounds."""
    found, wanted = rows(ours), rows(theirs)
    for row in (*found, *wanted):
        row["topk"] = {answer["class"]: pytest.approx(answer["prob"], abs=1e-4)
                       for answer in row["topk"]}  # fmt: skip
    assert len(found) == 176
    assert found == wanted


@pytest.mark.parametrize(
    ("to", "inside", "options"),
    [
        ("onnx", True, ()),
        ("onnx", False, ("--engine", "openvino")),
        pytest.param("openvino", True, (), marks=slow),
        pytest.param("torch-export", False, (), marks=slow),
        pytest.param("onnx", False, ("--workers", "2"), marks=slow),
    ],
)
def test_rows_are_the_artifacts(
    exported: Make, whole: Path, tmp_path: Path, to: str, inside: bool, options: tuple[str, ...]
) -> None:
    done = densekit(*exported(to, inside).command(tmp_path / "results", *options))
    assert done.returncode == 1, done
    assert_alike(tmp_path / "results", whole)


@slow
def test_views_are_averaged(exported: Make, scene: Scene, tmp_path: Path) -> None:
    for name, asked in (("ours", exported("onnx", True)), ("theirs", scene)):
        done = densekit(*asked.command(tmp_path / name, "--tta", "five-crop"))
        assert done.returncode == 1, done
    assert_alike(tmp_path / "ours", tmp_path / "theirs")


def killed_at(batch: int) -> None:
    """A process's prelude: it dies before an engine sees its batch of this number."""
    of_export, seen = engines.exported_logits, []

    def counting(*arguments: Any) -> Logits:
        logits = of_export(*arguments)

        def counted(images: Any) -> Any:
            seen.append(1)
            if len(seen) == batch:
                os.kill(os.getpid(), signal.SIGKILL)
            return logits(images)

        return counted

    engines.exported_logits = counting


def test_a_killed_run_goes_on_to_the_same_bytes(exported: Make, tmp_path: Path) -> None:
    mine = exported("onnx", True)
    assert densekit(*mine.command(tmp_path / "whole")).returncode == 1
    killed = densekit(*mine.command(tmp_path / "killed"), prelude=partial(killed_at, 11))
    assert killed.returncode == -signal.SIGKILL
    assert [*parts_of(tmp_path / "killed")][1:] == ["part-000000.parquet", "part-000001.parquet"]
    moved = Path(shutil.copytree(mine.network, tmp_path / "elsewhere"))
    done = densekit(*Scene(moved, mine.images).command(tmp_path / "killed"))
    assert done.returncode == 1
    assert "64 of 176 images are done already" in done.stderr
    assert parts_of(tmp_path / "killed") == parts_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("network", "options", "said"),
    [
        (("onnx", False), (), "was begun with network="),
        (("onnx", True), ("--engine", "openvino"), "begun with engine=onnxruntime, not engine="),
    ],
)
def test_rows_of_another_file_or_engine_are_not_mixed_in(
    exported: Make,
    tmp_path: Path,
    network: tuple[str, bool],
    options: tuple[str, ...],
    said: str,
) -> None:
    out = tmp_path / "results"
    assert densekit(*exported("onnx", True).command(out)).returncode == 1
    before = parts_of(out)
    refused = densekit(*exported(*network).command(out, *options))
    assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    assert parts_of(out) == before


@pytest.mark.parametrize("on", [(), ("--on", "ray")])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--precision", "bf16"), "--precision bf16: what is exported to onnx is computed by"),
        (("--engine", "torch"), "--engine torch: a network exported to onnx is computed by"),
    ],
)
def test_what_an_export_cannot_do_begins_nothing(
    exported: Make, tmp_path: Path, on: tuple[str, ...], options: tuple[str, ...], said: str
) -> None:
    refused = densekit(*exported("onnx", True).command(tmp_path / "results", *options, *on))
    assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "results").exists()
