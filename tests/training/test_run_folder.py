from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from densekit.config import UserError, build, read_yaml
from densekit.files import temporary
from densekit.training import run_folder
from densekit.training.recipe import Recipe, load_recipe
from densekit.training.run_folder import RunFolder
from runs import Runs


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LOCK_PATIENCE", 0.2)


def opened(path: Path, recipe: Recipe) -> RunFolder:
    folder = RunFolder(path, keep=2)
    folder.open_(recipe)
    return folder


def test_the_recipe_is_written_first_and_read_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["optim.lr=1e-3", "loop.output_dir=somewhere"])
    opened(tmp_path / "a" / "run", recipe)
    assert build(Recipe, read_yaml(tmp_path / "a" / "run" / "recipe.yaml")) == recipe


def started(path: Path, recipe: Recipe) -> RunFolder:
    """A folder whose run has done a step."""
    folder = opened(path, recipe)
    folder.states.save(1, {"data": "images"})
    folder.close()
    return folder


def test_another_recipe_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    started(tmp_path / "run", load_recipe("quickstart"))
    changed = load_recipe("quickstart", ["optim.lr=0.2", "data.workers=3", "loop.save_every=7"])
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "run", changed)
    assert "optim.lr: 0.1 -> 0.2" in str(caught.value)
    assert "workers" not in str(caught.value)
    assert "save_every" not in str(caught.value)


def test_fields_that_change_no_number_may_differ(tmp_path: Path) -> None:
    opened(tmp_path / "run", load_recipe("quickstart")).close()
    opened(tmp_path / "run", load_recipe("quickstart", ["data.workers=3", "loop.log_every=1"]))


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(UserError, match=r"not a run's \(thesis.txt"):
        opened(tmp_path, Recipe())
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "thesis.txt", Recipe())


def test_resume_never_refuses_a_folder_with_a_run(tmp_path: Path) -> None:
    started(tmp_path / "run", Recipe())
    with pytest.raises(UserError, match="already holds a run"):
        opened(tmp_path / "run", load_recipe(None, ["loop.resume=never"]))


def test_a_start_that_did_no_step_is_simply_corrected(tmp_path: Path) -> None:
    folder = opened(tmp_path / "run", load_recipe("quickstart"))
    folder.log({"kind": "event"})
    folder.states.save(0, {})
    folder.close()
    changed = load_recipe("quickstart", ["data.batch_size=16"])
    folder = opened(tmp_path / "run", changed)
    assert build(Recipe, read_yaml(tmp_path / "run" / "recipe.yaml")) == changed
    assert not folder.states.files()
    assert not list(folder.log_file.lines())


def test_without_output_dir_another_recipe_has_the_next_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = load_recipe("quickstart"), load_recipe("quickstart", ["optim.lr=0.2"])
    started(Path("runs/quickstart"), first)
    with RunFolder.opened(second, "images") as folder:
        assert folder.path == Path("runs/quickstart-2")
        assert "optim.lr: 0.1 -> 0.2" in folder.notes[0]
        folder.states.save(1, {"data": "images"})
    for recipe, name in ((first, "quickstart"), (second, "quickstart-2")):
        with RunFolder.opened(recipe, "images") as folder:
            assert folder.path == Path("runs") / name
    with RunFolder.opened(load_recipe("quickstart", ["loop.resume=never"]), "images") as folder:
        assert folder.path == Path("runs/quickstart-3")
    with RunFolder.opened(first, "images of another folder of the same name") as folder:
        assert folder.path == Path("runs/quickstart-3")
        assert "other images" in folder.notes[0]


def test_more_epochs_extend_a_run_where_its_rates_stay(tmp_path: Path) -> None:
    for schedule in ("step", "constant"):
        options = [f"optim.schedule={schedule}", "loop.epochs=2"]
        started(tmp_path / schedule, load_recipe(None, options))
        folder = opened(tmp_path / schedule, load_recipe(None, [*options, "loop.epochs=3"]))
        assert "is extended to loop.epochs=3" in folder.notes[0]
        folder.close()
        with pytest.raises(UserError, match=r"loop\.epochs: 3 -> 1"):
            opened(tmp_path / schedule, load_recipe(None, [*options, "loop.epochs=1"]))
    options = ["optim.schedule=cosine", "loop.epochs=2"]
    started(tmp_path / "cosine", load_recipe(None, options))
    with pytest.raises(UserError, match=r"loop\.epochs: 2 -> 3 \(a cosine schedule"):
        opened(tmp_path / "cosine", load_recipe(None, [*options, "loop.epochs=3"]))


def test_left_over_temporary_files_go(tmp_path: Path) -> None:
    opened(tmp_path / "run", Recipe()).close()
    leftover = temporary(tmp_path / "run" / "state" / "step-00000001-0123456789abcdef.pt")
    leftover.write_bytes(b"half")
    notes = tmp_path / "run" / "notes"
    notes.mkdir()
    own = [notes / ".draft.tmp", tmp_path / "run" / ".draft.tmp", notes / temporary(notes).name]
    for file in own:
        file.write_text("mine")
    opened(tmp_path / "run", Recipe())
    assert not leftover.exists()
    assert all(file.read_text() == "mine" for file in own)


def _hold(path: Path, rank: int) -> None:
    folder = RunFolder(path, keep=1)
    if rank:
        folder.hold(rank)
    else:
        folder.open_(Recipe())
    (path / f"held-{rank}").touch()
    time.sleep(60)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_folder_is_held_by_each_rank_until_its_process_ends(
    runs: Runs, tmp_path: Path, rank: int
) -> None:
    """An orphaned rank of a run whose rank 0 is dead still writes nowhere a new run may."""
    path = tmp_path / "run"
    opened(path, Recipe()).close()
    (process,) = runs.spawn(partial(_hold, path, rank))
    try:
        while not (path / f"held-{rank}").exists():
            time.sleep(0.05)
            assert process.is_alive()
        with pytest.raises(UserError, match="another run holds this folder"):
            opened(path, Recipe())
    finally:
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    opened(path, Recipe())
