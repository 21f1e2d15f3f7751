"""benchmarks/memory.py: its points, its file, its figure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import memory  # noqa: E402 (benchmarks/memory.py)
import rows  # noqa: E402


def row(curve: str, model: str, images: int) -> memory.Row:
    share = 1 / (1 + list(memory.CURVES).index(curve))
    return memory.Row(
        curve=curve,
        op=None,
        model=model,
        image_size=224,
        batch_size=images,
        precision="bf16",
        activation_bytes=int(1e6 * share * images * memory.depth(model)),
        threads=2,
        machine=rows.Machine(cpu="CPU X", cores=2, instructions="AVX512"),
        versions={"torch": "2.9"},
        commit="abc",
        date="2026-01-31",
    )


def test_depth_is_the_names() -> None:
    assert [memory.depth(name) for name in memory.DEPTHS] == [121, 169, 201, 264]
    assert memory.depth("densenet_bc_100_12") == 100


def test_the_points_are_what_the_figure_needs(tmp_path: Path) -> None:
    works = memory.points(quick=False)
    assert len(works) == len(set(map(repr, works))) == 9
    assert [w.batch_size for w in works if w.model == "densenet121"] == [1, 2, 4, 8, 16, 32]
    file = tmp_path / "results" / "memory.json"
    for work in works:
        for curve in memory.CURVES:
            memory.append(row(curve, work.model, work.batch_size), file)
    assert len(memory.read(file)) == 45
    assert rows.read(tmp_path / "results") == []  # not for the README's table
    memory.draw(memory.read(file), works, tmp_path / "docs" / "memory.png")
    height, width, _ = imread(tmp_path / "docs" / "memory.png").shape
    assert (width, height) == (1320, 528)


def test_candidates_are_the_ops_and_torchvision_with_one_allocator() -> None:
    work = memory.points(quick=True)[0]
    for curve in memory.CURVES:
        candidate = memory.candidate(curve, work, "fp32")
        assert candidate.keep_freed_memory
        ours = curve in ("reference", "recompute", "lean")
        assert (curve in candidate.make_step.args) == ours  # type: ignore[attr-defined]
        assert ours or candidate.make_step.keywords == {  # type: ignore[attr-defined]
            "memory_efficient": curve == "torchvision, memory_efficient"
        }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process' peak")
def test_the_command_measures_and_draws(tmp_path: Path) -> None:
    figure = tmp_path / "memory.png"
    command = [sys.executable, "benchmarks/memory.py", "--quick", "--results", str(tmp_path)]
    done = subprocess.run([*command, "--figure", str(figure)], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    found = memory.read(tmp_path / "memory.json")
    assert len(found) == 3 * len(memory.CURVES)
    assert all(row.activation_bytes > 0 for row in found)
    assert {row.op.split()[0] for row in found if row.op} == {"reference", "recompute", "lean"}
    assert figure.stat().st_size > 10_000
    refused = subprocess.run(command[:3], cwd=ROOT, capture_output=True)
    assert b"give --results and --figure" in refused.stderr
