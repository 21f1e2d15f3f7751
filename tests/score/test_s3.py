"""`densekit predict s3://... --out`: an object that breaks off costs nothing, or a stop."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scene import Scene, parts_of
from store import serving

from densekit.infer.inputs import listed_names
from runs import densekit


def set_variables(variables: dict[str, str]) -> None:
    os.environ.update(variables)


@pytest.mark.slow
def test_answers_that_break_off_change_no_row(scene: Scene, tmp_path: Path) -> None:
    digits = [*listed_names(Path(scene.images))][:20]
    with serving() as store:
        for number, name in enumerate(digits):
            store.put(f"digits/{number:02d}.png", Path(name).read_bytes())
        store.put("digits/20.png", b"no image")
        mine = Scene(scene.network, "s3://photos/digits")
        environment = partial(set_variables, store.variables)

        def run(out: Path) -> tuple[int | None, str]:
            done = densekit(*mine.command(out, part_size=8), prelude=environment)
            return done.returncode, done.stderr

        assert run(tmp_path / "whole")[0] == 1
        store.broken["digits/03.png"] = 2
        assert run(tmp_path / "broken")[0] == 1
        store.broken["digits/12.png"] = -1
        code, said = run(tmp_path / "stopped")
        assert code == 75
        assert "stopped: s3://photos/digits/12.png: cannot be read: " in said
        assert [*parts_of(tmp_path / "stopped")] == ["_inputs.parquet", "part-000000.parquet"]
        store.broken["digits/12.png"] = 0
        assert run(tmp_path / "stopped")[0] == 1
    whole = parts_of(tmp_path / "whole")
    assert parts_of(tmp_path / "broken") == parts_of(tmp_path / "stopped") == whole
    rows = pq.read_table(tmp_path / "whole").to_pylist()
    assert [row["file"] for row in rows] == [f"s3://photos/digits/{n:02d}.png" for n in range(21)]
    assert [row["error"] for row in rows] == [*[None] * 20, "is not an image that PIL can read"]
