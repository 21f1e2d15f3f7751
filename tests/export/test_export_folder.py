"""folder.py: an export is whole or not there, and what is refused when it was changed since."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from densekit.config import UserError
from densekit.export import folder, gate
from densekit.export.steps import ExportOptions, export_network
from densekit.files import remove_left_over
from densekit.infer.exported import is_exported, read_exported
from densekit.infer.model import Opened
from runs import densekit

Make = Callable[..., Path]


def left(place: Path) -> list[str]:
    return sorted(entry.name for entry in place.iterdir())


def fail_within(target: Path, error: BaseException) -> None:
    with folder.folder_for(target, False) as beside:
        assert beside.parent.parent == target.parent, "on the same disk"
        (beside / "model.onnx").write_text("half")
        raise error


def test_what_fails_within_leaves_nothing(tmp_path: Path) -> None:
    for error in (RuntimeError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail_within(tmp_path / "out", error)
        assert left(tmp_path) == []
    with pytest.raises(UserError, match="out: cannot be written: No space left on device"):
        fail_within(tmp_path / "out", OSError(28, "No space left on device"))
    assert left(tmp_path) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError):
        fail_within(tmp_path / "mine" / "new" / "deep" / "out", RuntimeError("ours"))
    assert (left(tmp_path), left(tmp_path / "mine")) == (["mine"], [])


def publish_text(target: Path, text: str) -> None:
    """What looks like an export."""
    with folder.folder_for(target, True) as beside:
        (beside / "gate.json").write_text(text)
        folder.publish(beside, target)


def test_of_two_renames_the_second_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export that was there is there again."""
    target, rename = tmp_path / "out", Path.rename
    publish_text(target, "one")

    def failing(self: Path, other: Path) -> Path:
        if self.name == folder.NEW:
            raise OSError(5, os.strerror(5))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match="out: cannot be written: Input/output error"):
        publish_text(target, "two")
    assert left(tmp_path) == ["out"]
    assert (target / "gate.json").read_text() == "one"


def test_an_export_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    for text in ("one", "two"):
        publish_text(target, text)
        assert left(target) == ["gate.json"]
        assert (target / "gate.json").read_text() == text
        assert left(target.parent) == ["out"]


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_gate() -> None:
    """A process' prelude: it is killed when its file is written, and about to be measured."""
    gate.count = lambda *_: kill_self()  # type: ignore[assignment, return-value]


def kill_between_renames() -> None:
    """A process' prelude."""
    rename = Path.rename

    def killing(self: Path, other: Path) -> Path:
        if self.name == folder.NEW:
            kill_self()
        return rename(self, other)

    Path.rename = killing  # type: ignore[method-assign, assignment]


def export_command(trained: Path, out: Path, *options: str) -> tuple[str | Path, ...]:
    return ("export", trained, "--to", "torch-export", "--limit", "4", "--out", out, *options)


def test_a_killed_export_leaves_nothing_that_the_next_one_does_not_clear(
    trained: Path, tmp_path: Path
) -> None:
    command = export_command(trained, tmp_path / "out")
    assert densekit(*command, prelude=kill_at_gate).returncode == -signal.SIGKILL
    assert left(tmp_path) == [".out.densekit-export"]
    assert left(tmp_path / ".out.densekit-export" / folder.NEW) == ["model.pt2"]
    remove_left_over(tmp_path)  # as a run does with its folder, where exports lie, too
    done = densekit(*command)
    assert done.returncode == 0, done
    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out") == ["config.json", "gate.json", "model.pt2"]


@pytest.mark.slow
def test_an_export_that_was_to_be_replaced_survives_a_kill(trained: Path, tmp_path: Path) -> None:
    command = export_command(trained, tmp_path / "out")
    assert densekit(*command).returncode == 0
    before = (tmp_path / "out" / "gate.json").read_text()
    killed = densekit(*command, "--replace", prelude=kill_between_renames)
    assert (killed.returncode, left(tmp_path)) == (-signal.SIGKILL, [".out.densekit-export"])
    again = densekit(*command)  # without --replace
    assert (again.returncode, left(tmp_path)) == (2, ["out"]), again
    assert "put back, since an export that was to replace it was killed" in again.stderr
    assert "there is an export already; add --replace" in again.stderr
    assert (tmp_path / "out" / "gate.json").read_text() == before
    assert densekit(*command, "--replace").returncode == 0
    assert left(tmp_path) == ["out"]


def test_two_exports_to_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "WAIT_FOR_LOCK", 0.1)
    with folder.folder_for(tmp_path / "out", False) as first:
        (first / "gate.json").write_text("first")
        with pytest.raises(UserError, match="out: another export is writing it"):
            publish_text(tmp_path / "out", "second")
        folder.publish(first, tmp_path / "out")
    assert (tmp_path / "out" / "gate.json").read_text() == "first"
    assert left(tmp_path) == ["out"]


def test_a_link_to_an_export_stays_one(opened: Opened, tmp_path: Path) -> None:
    """The folder that it leads to is replaced, on its own disk."""
    options = ExportOptions("torch-export", limit=4, replace=True)
    (tmp_path / "disk" / "v1").mkdir(parents=True)
    (tmp_path / "latest").symlink_to(tmp_path / "disk" / "v1")
    for _ in range(2):
        export_network(opened, tmp_path / "latest", options)
        assert (tmp_path / "latest").readlink() == tmp_path / "disk" / "v1"
        assert left(tmp_path / "disk" / "v1") == ["config.json", "gate.json", "model.pt2"]
        assert (left(tmp_path), left(tmp_path / "disk")) == (["disk", "latest"], ["v1"])


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    folder.check_free(tmp_path, replace=False)
    folder.check_free(tmp_path / "nothing", replace=False)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="a file, and an export is a folder"):
        folder.check_free(tmp_path / "link", replace=True)


def test_of_what_cannot_be_written_the_place_is_said(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full when the folder is to be renamed."""

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(folder.os, "fsync", full)
    with pytest.raises(UserError, match="out: cannot be written: No space left on device"):
        export_network(opened, tmp_path / "out", ExportOptions("torch-export", limit=4))
    assert left(tmp_path) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: cannot be made: "):
        export_network(opened, tmp_path / "file" / "out", ExportOptions("torch-export", limit=4))
    assert left(tmp_path) == ["file"]


def test_a_file_that_was_changed_since_is_refused(exported: Make, tmp_path: Path) -> None:
    made = exported("torch-export")
    other = tmp_path / "copy"
    other.mkdir()
    for name in left(made):
        (other / name).write_bytes((made / name).read_bytes())
    assert read_exported(other).config == read_exported(made).config
    with (other / "model.pt2").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"model\.pt2: not the file that the gate has measured"):
        read_exported(other)
    (other / "model.pt2").unlink()
    with pytest.raises(UserError, match=r"not a whole export: .*export it again"):
        read_exported(other)
    for text in ("", "{}", "[]", "null", '{"sha256": 3}'):
        (other / "gate.json").write_text(text)
        with pytest.raises(UserError, match="not a whole export"):
            read_exported(other)
    (other / "gate.json").unlink()
    assert not is_exported(other)


def test_gate_json_says_what_was_measured(exported: Make, opened: Opened) -> None:
    made = exported("onnx")
    found = json.loads((made / "gate.json").read_text())
    assert found["to"] == "onnx"
    assert found["engine"] == "onnxruntime"
    assert found["images"]["count"] == 250
    assert found["torch"].keys() == found["exported"].keys() == {"count", "top1", "top5", "loss"}
    assert found["difference"]["agreement"] == 1
    assert 0 < found["difference"]["max"] <= 1e-4 * found["difference"]["largest_logit"]
    assert found["passed"]
    assert [row["batch"] for row in found["latency"]] == [1, 16]
    assert set(found["versions"]) == {"densekit", "torch", "onnx", "onnxscript", "onnxruntime"}
    config = json.loads((made / "config.json").read_text())
    assert config["classes"] == opened.classes
    assert config["export"]["to"] == "onnx"
