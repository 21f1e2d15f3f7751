"""Training states that a disk, a copy or a person has changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import UserError
from densekit.training.state import StateFolder, read_state, step_of
from runs import Runs, assert_same_run, states

places = st.floats(0, 1, exclude_max=True)
Edit = tuple[str, float, Any]
edits: st.SearchStrategy[list[Edit]] = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), places, st.integers(0, 7)),
        st.tuples(st.just("cut"), places, st.none()),
        st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=20)),
        st.tuples(st.just("zeros"), places, st.integers(1, 5000)),  # as after a power cut
        st.tuples(st.just("repeat"), places, st.integers(1, 100)),
        st.tuples(st.just("remove"), places, st.integers(1, 100)),
    ),
    min_size=1,
    max_size=3,
)


def edited(content: bytes, changes: list[Edit]) -> bytes:
    found = bytearray(content)
    for kind, place, what in changes:
        at = int(place * len(found))
        if kind == "cut":
            del found[at:]
        elif kind == "insert":
            found[at:at] = what
        elif kind == "remove":
            del found[at : at + what]
        elif kind == "repeat":
            found[at:at] = found[at : at + what]
        elif kind == "zeros":
            found[at : at + what] = bytes(len(found[at : at + what]))
        elif at < len(found):
            found[at] ^= 1 << what
    return bytes(found)


@pytest.fixture(scope="module")
def folder(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state/ of a real run, with its two newest states."""
    copy = tmp_path_factory.mktemp("states") / "state"
    return Path(shutil.copytree(runs.whole() / "state", copy))


@given(changes=edits)
def test_a_changed_state_is_passed_over(folder: Path, changes: list[Edit]) -> None:
    older, newest = StateFolder(folder, 2).files()
    content = newest.read_bytes()
    changed = edited(content, changes)
    newest.write_bytes(changed)
    found = StateFolder(folder, 2)
    try:
        state = found.newest()
        assert state is not None
        assert state["progress"]["step"] == step_of(newest if changed == content else older)
        assert set(found.corrupt) == ({newest} if changed != content else set())
        assert newest.read_bytes() == changed, "it may be of use to somebody"
    finally:
        newest.write_bytes(content)


@given(changes=st.tuples(edits, edits))
def test_without_a_whole_state_nothing_is_taken(
    folder: Path, changes: tuple[list[Edit], list[Edit]]
) -> None:
    files = StateFolder(folder, 2).files()
    contents = [file.read_bytes() for file in files]
    changed = [edited(content, how) for content, how in zip(contents, changes, strict=True)]
    for file, content in zip(files, changed, strict=True):
        file.write_bytes(content)
    try:
        if all(a != b for a, b in zip(changed, contents, strict=True)):
            with pytest.raises(UserError, match="all of its 2 states are corrupt"):
                StateFolder(folder, 2).newest()
        else:
            assert StateFolder(folder, 2).newest() is not None
    finally:
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)


names = st.one_of(
    st.from_regex(r"\Astep-[0-9]{0,12}-[0-9a-f]{0,20}(\.pt)?\Z"),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1),
).filter(lambda name: len(name.encode()) < 200 and name not in (".", ".."))


@given(name=names, content=st.binary(max_size=100), is_folder=st.booleans())
def test_a_strange_file_among_the_states_changes_nothing(
    folder: Path, name: str, content: bytes, is_folder: bool
) -> None:
    strange = folder / name
    expected = StateFolder(folder, 2).files()[-1]
    if strange.exists():
        return
    strange.mkdir() if is_folder else strange.write_bytes(content)
    try:
        assert StateFolder(folder, 2).newest_file() == expected
        with pytest.raises(UserError):
            read_state(strange)
    finally:
        strange.rmdir() if is_folder else strange.unlink()


@pytest.mark.processes
@given(changes=edits, where=st.sampled_from(["state", "log.jsonl", "recipe.yaml", "best"]))
def test_a_run_goes_on_from_a_damaged_folder_or_says_why_not(
    runs: Runs, tmp_path_factory: pytest.TempPathFactory, changes: list[Edit], where: str
) -> None:
    run = runs.killed(tmp_path_factory.mktemp("damaged") / "run", 8)
    files = {"state": states(run)[-1], "best": run / "best" / "model.safetensors"}
    file = files.get(where, run / where)
    file.write_bytes(edited(file.read_bytes(), changes))
    started = runs.start(run)
    (code,) = started.wait()
    assert code in (0, 2), started.output
    assert "Traceback" not in started.output
    if code == 0 and where == "state":
        assert_same_run(run, runs.whole())
