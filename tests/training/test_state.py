from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import UserError
from densekit.training import state as checkpoint
from densekit.training.state import StateFolder


def state(step: int, size: int = 10) -> checkpoint.State:
    return {"step": step, "weights": torch.full((size,), float(step)), "nested": [{"a": (1, 2.5)}]}


def saved(folder: Path, *steps: int, keep: int = 3) -> StateFolder:
    states = StateFolder(folder, keep)
    for step in steps:
        states.save(step, state(step))
    states.wait()
    return states


def test_the_newest_state_comes_back_as_it_was(tmp_path: Path) -> None:
    states = saved(tmp_path, 1, 2, 10)
    newest = states.newest()
    assert newest is not None
    assert newest["step"] == 10
    assert torch.equal(newest["weights"], torch.full((10,), 10.0))
    assert newest["nested"] == [{"a": (1, 2.5)}]
    assert StateFolder(tmp_path / "none", 1).newest() is None


def test_the_last_k_are_kept(tmp_path: Path) -> None:
    states = saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert [checkpoint.step_of(file) for file in states.files()] == [3, 4]
    states = saved(tmp_path, 5, keep=1)
    assert [checkpoint.step_of(file) for file in states.files()] == [5]


def test_a_state_is_a_copy_of_its_moment(tmp_path: Path) -> None:
    states, live = StateFolder(tmp_path, 2), state(1)
    states.save(1, live)
    live["weights"].zero_()
    states.wait()
    newest = states.newest()
    assert newest is not None
    assert torch.equal(newest["weights"], torch.ones(10))


def test_of_two_states_at_one_step_the_later_is_newer(tmp_path: Path) -> None:
    states = saved(tmp_path, 7)
    states.save(7, {**state(7), "left_out": [3]})
    states.wait()
    newest = states.newest()
    assert newest is not None
    assert newest["left_out"] == [3]


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_any_damage_is_found_and_the_state_before_it_taken(
    tmp_path_factory: pytest.TempPathFactory, position: float, bit: int, cut: bool
) -> None:
    states = saved(tmp_path_factory.mktemp("state"), 1, 2)
    newest = states.files()[-1]
    content = bytearray(newest.read_bytes())
    at = int(position * len(content))
    if cut:
        del content[at:]
    else:
        content[at] ^= 1 << bit
    newest.write_bytes(content)
    found = states.newest()
    assert list(states.corrupt) == [newest]
    assert found is not None
    assert found["step"] == 1


def test_all_corrupt_is_one_sentence(tmp_path: Path) -> None:
    states = saved(tmp_path, 1)
    states.files()[0].write_bytes(b"")
    with pytest.raises(UserError, match="all of its 1 states are corrupt"):
        states.newest()


def test_a_corrupt_state_stays_and_does_not_count_as_kept(tmp_path: Path) -> None:
    states = saved(tmp_path, 1, 2, keep=2)
    spoilt = states.files()[-1]
    spoilt.write_bytes(spoilt.read_bytes()[:-1])
    again = StateFolder(tmp_path, 2)
    assert again.newest() is not None
    again.save(2, {**state(2), "replayed": True})
    again.wait()
    assert [checkpoint.step_of(f) for f in again.files() if f != spoilt] == [1, 2]
    assert spoilt.exists()


def test_a_state_runs_no_code_when_it_is_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    content = io.BytesIO()
    torch.save({"evil": Evil()}, content)
    checksum = hashlib.sha256(content.getvalue()).hexdigest()[:16]
    (tmp_path / f"step-00000001-{checksum}.pt").write_bytes(content.getvalue())
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        StateFolder(tmp_path, 1).newest()
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_loses_nothing_older(small_disk: Path) -> None:
    states = saved(small_disk, 1)
    states.save(2, state(2, size=1_000_000))
    with pytest.raises(UserError, match="No space left on device"):
        states.wait()
    newest = states.newest()
    assert newest is not None
    assert newest["step"] == 1
    assert [file.name for file in small_disk.iterdir()] == [states.files()[0].name]
    states.save(3, state(3))
    states.wait()
    assert checkpoint.step_of(states.files()[-1]) == 3


def test_a_read_only_disk_is_one_sentence(small_disk: Path) -> None:
    states = saved(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    states.save(2, state(2))
    with pytest.raises(UserError, match="Read-only file system"):
        states.wait()
    newest = states.newest()
    assert newest is not None
    assert newest["step"] == 1
