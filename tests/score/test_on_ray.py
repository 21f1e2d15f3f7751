"""on_ray.py: a local Ray of two workers, of which one is killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from scene import Scene, parts_of

from densekit.infer.inputs import listed_names
from runs import begin_densekit, densekit

pytestmark = pytest.mark.slow


def actors() -> list[int]:
    """The processes that score parts."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::MapWorker(MapBatches(PartActor))" in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux")
def test_a_killed_worker_loses_and_doubles_no_row(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    many = tmp_path / "many.txt"
    many.write_text("\n".join([*listed_names(Path(scene.images))] * 40))
    mine = Scene(scene.network, many)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert densekit(*mine.command(alone)).returncode == 1
    before = set(actors())
    started = begin_densekit(
        *mine.command(shared), "--on", "ray", "--workers", "2", output=tmp_path / "output.txt"
    )
    assert started.until(lambda: len(parts_of(shared)) > 9), started.output
    own = sorted(set(actors()) - before)
    assert len(own) == 2
    os.kill(own[0], signal.SIGKILL)
    assert len(parts_of(shared)) < len(parts_of(alone)), "the run was over before the kill"
    assert started.wait() == [1], started.output
    assert parts_of(shared) == parts_of(alone)
    done = densekit(*mine.command(shared), "--on", "ray")
    assert (done.returncode, "7,040 of 7,040 images are done already" in done.stderr) == (1, True)


def without_ray() -> None:
    sys.modules["ray"] = None  # type: ignore[assignment]


def test_a_missing_extra_is_named(scene: Scene, tmp_path: Path) -> None:
    done = densekit(*scene.command(tmp_path / "results"), "--on", "ray", prelude=without_ray)
    assert done.returncode == 2
    assert 'pip install "densekit[ray]"' in done.stderr
