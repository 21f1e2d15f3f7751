"""folder.py: parts that cover the images once each, and a folder that keeps to its plan."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import UserError
from densekit.score.folder import MANIFEST, Done, Request, ResultFolder, opened_folder
from densekit.score.parts import SCHEMA

REQUEST = Request(
    network="0" * 64, inputs=("a", "b"), lists={}, started_in="/", part_size=4, topk=5,
    batch_size=2, max_pixels=1000, device="cpu", precision="fp32", engine="torch", tta="none",
)  # fmt: skip
NAMES = [f"{n}.png" for n in range(10)]


def other(**changes: Any) -> Request:
    return REQUEST.model_copy(update=changes)


def write_part(folder: ResultFolder, part: int, rows: int, failed: int = 0) -> None:
    made = [{"file": "x", "topk": [], "error": "bad" if n < failed else None} for n in range(rows)]
    pq.write_table(pa.Table.from_pylist(made, SCHEMA), folder.file(part))


names_of_files = st.binary(min_size=1, max_size=20).filter(lambda b: b"\0" not in b)


@given(
    names=st.lists(names_of_files.map(os.fsdecode), min_size=1, max_size=40),
    part_size=st.integers(1, 50),
)
def test_parts_are_the_images_in_order_each_once(names: list[str], part_size: int) -> None:
    with TemporaryDirectory() as path:
        request = other(part_size=part_size)
        with opened_folder(Path(path), request, iter(names), "1") as folder:
            parts = [folder.names(part) for part in range(folder.parts)]
            assert [name for part in parts for name in part] == names
            assert [len(part) for part in parts] == [*map(folder.images_in, range(folder.parts))]
            assert all(len(part) == part_size for part in parts[:-1])
            assert 0 < len(parts[-1]) <= part_size
        with opened_folder(Path(path), request, asked_for_nothing(), "2") as again:
            assert again.manifest == folder.manifest


def asked_for_nothing() -> Any:
    raise AssertionError("the names are stored")
    yield ""


def test_missing_is_what_is_not_whole(tmp_path: Path) -> None:
    with opened_folder(tmp_path, REQUEST, NAMES, "1") as folder:
        assert folder.look(range(3)) == ([0, 1, 2], Done())
        write_part(folder, 0, rows=4, failed=3)
        write_part(folder, 1, rows=3)
        write_part(folder, 2, rows=2)
        assert folder.look(range(3)) == ([1], Done(parts=2, images=6, failed=3))
        content = folder.file(0).read_bytes()
        folder.file(0).write_bytes(content[: len(content) // 2])
        assert folder.look(range(3)) == ([0, 1], Done(parts=1, images=2))


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "1" * 64}, {"inputs": ("a",)}, {"lists": {"a": "2" * 64}}, {"topk": 3},
        {"started_in": "/tmp"}, {"part_size": 5}, {"precision": "bf16"}, {"device": "cuda"},
        {"engine": "openvino"}, {"tta": "flip"}, {"batch_size": 1}, {"max_pixels": 7},
    ],
)  # fmt: skip
def test_another_request_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with opened_folder(tmp_path, REQUEST, NAMES, "1"):
        pass
    (key,) = changes
    with (
        pytest.raises(UserError, match=rf"was begun with {key}=.*, not {key}=.*; leave these"),
        opened_folder(tmp_path, other(**changes), NAMES, "1"),
    ):
        pass


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with (
        pytest.raises(UserError, match=r"holds files that are not results \(thesis\.tex, "),
        opened_folder(tmp_path, REQUEST, NAMES, "1"),
    ):
        pass


def test_a_damaged_or_newer_manifest_is_refused(tmp_path: Path) -> None:
    with opened_folder(tmp_path, REQUEST, NAMES, "1"):
        pass
    file = tmp_path / MANIFEST
    content = json.loads(file.read_text())
    for changed, said in (({"format": 2}, "has format 2"), ({"images": "x"}, "is corrupt")):
        file.write_text(json.dumps({**content, **changed}))
        with pytest.raises(UserError, match=said), opened_folder(tmp_path, REQUEST, NAMES, "1"):
            pass


def test_a_listing_that_fails_leaves_no_plan(tmp_path: Path) -> None:
    def breaking() -> Any:
        yield from NAMES
        raise UserError("the bucket is gone")

    with (
        pytest.raises(UserError, match="the bucket is gone"),
        opened_folder(tmp_path, REQUEST, breaking(), "1"),
    ):
        pass
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]
    with opened_folder(tmp_path, REQUEST, NAMES, "1") as folder:
        assert folder.manifest.images == len(NAMES)


def test_a_folder_is_one_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densekit.score.folder.LOCK_WAIT", 0.0)
    with (
        opened_folder(tmp_path, REQUEST, NAMES, "1"),
        pytest.raises(UserError, match="another command is writing there"),
        opened_folder(tmp_path, REQUEST, NAMES, "1"),
    ):
        pass
