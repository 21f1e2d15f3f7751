"""push.py against the stand-in: what arrives, what comes back, and what is left alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from networks import tiny_artifact
from PIL import Image
from stand_in import Hub, Repo

import densekit
from densekit.config import UserError
from densekit.hub.card import is_untouched
from densekit.hub.push import PushOptions, push_artifact
from densekit.infer.model import open_path
from runs import densekit as command

NAME = "org/tiny"
FILES = ("README.md", "config.json", "model.safetensors")
PLAIN = PushOptions(licence="apache-2.0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "run" / "best")


def held(hub: Hub, branch: str = "main") -> dict[str, bytes]:
    return hub.repos[NAME].branches[branch].files


def test_what_is_pushed_is_what_is_loaded(hub: Hub, folder: Path) -> None:
    done = push_artifact(folder.parent, NAME, PLAIN)  # a run's folder
    assert done.url == f"{hub.url}/{NAME}/commit/{done.commit}"
    assert sorted(done.files) == sorted(FILES)
    assert done.notes == ()
    for name in ("config.json", "model.safetensors"):
        assert held(hub)[name] == (folder / name).read_bytes()
    assert is_untouched(held(hub)["README.md"].decode())
    assert not hub.repos[NAME].private
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    (theirs,) = densekit.load(f"hf-hub:{NAME}", "cpu").predict([image])
    (ours,) = densekit.load(folder, "cpu").predict([image])
    assert theirs == ours
    asked = len(hub.asked)
    opened = open_path(f"hf-hub:{NAME}@{done.commit}")
    assert opened.classes == list("abcde")
    assert not any("GET" in line and "resolve" in line for line in hub.asked[asked:]), (
        "fetched twice"
    )


def test_again_with_other_weights(hub: Hub, folder: Path) -> None:
    push_artifact(folder, NAME, PLAIN)
    shutil.rmtree(folder)
    tiny_artifact(folder, task="multilabel")
    push_artifact(folder, NAME, PLAIN)
    assert held(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert b"any number of classes" in held(hub)["README.md"]


def test_a_private_one_and_a_branch(hub: Hub, folder: Path) -> None:
    push_artifact(folder, NAME, PushOptions(private=True, revision="v2"))
    assert hub.repos[NAME].private
    assert set(held(hub, "v2")) == {".gitattributes", *FILES}
    assert set(held(hub)) == {".gitattributes"}
    assert densekit.load(f"hf-hub:{NAME}@v2", "cpu").classes == list("abcde")
    push_artifact(folder, NAME, PushOptions(revision="v3"))
    assert set(held(hub, "v3")) == {".gitattributes", *FILES}


# What is of others --------------------------------------------------------------------------


def made(hub: Hub, **files: bytes) -> Repo:
    hub.repos[NAME] = Repo()
    hub.repos[NAME].commit("main", {name.replace("__", "."): data for name, data in files.items()})
    return hub.repos[NAME]


@pytest.mark.parametrize("config", [b"", b"{}", b'{"architectures": ["X"]}', b"[1]", b"no json"])
def test_weights_of_something_else_stay(hub: Hub, folder: Path, config: bytes) -> None:
    files = {"model__safetensors": b"theirs", "notes__md": b"theirs"}
    before = dict(made(hub, **files, **({"config__json": config} if config else {})).branches)
    with pytest.raises(UserError, match=r"org/tiny: holds .*model\.safetensors that densekit did"):
        push_artifact(folder, NAME, PLAIN)
    assert hub.repos[NAME].branches == before
    push_artifact(folder, NAME, PushOptions(force=True))
    assert held(hub)["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert held(hub)["notes.md"] == b"theirs"


@pytest.mark.parametrize("edit", ["by hand", "a card of ours, edited"])
def test_a_card_that_was_written_by_hand_stays(hub: Hub, folder: Path, edit: str) -> None:
    if edit == "by hand":
        made(hub, README__md=b"# My own words\n")
    else:
        push_artifact(folder, NAME, PLAIN)
        files = held(hub)
        files["README.md"] = files["README.md"].replace(b"## Task", b"## The task")
    mine = held(hub)["README.md"]
    done = push_artifact(folder, NAME, PLAIN)
    assert done.notes == (
        "README.md was written or edited by hand and is kept; --force replaces it",
    )
    assert "README.md" not in done.files
    assert held(hub)["README.md"] == mine
    assert "model.safetensors" in held(hub)
    push_artifact(folder, NAME, PushOptions(force=True))
    assert is_untouched(held(hub)["README.md"].decode())


def test_other_files_stay(hub: Hub, folder: Path) -> None:
    made(hub, notes__md=b"mine")
    push_artifact(folder, NAME, PLAIN)
    assert held(hub)["notes.md"] == b"mine"


def test_private_of_a_public_one(hub: Hub, folder: Path) -> None:
    made(hub)
    with pytest.raises(UserError, match="--private: org/tiny is there already, and public"):
        push_artifact(folder, NAME, PushOptions(private=True))


def test_somebody_else_pushes_at_the_same_moment(hub: Hub, folder: Path) -> None:
    push_artifact(folder, NAME, PLAIN)
    hub.before_commit = lambda repo: repo.commit("main", {"model.safetensors": b"newer"})
    with pytest.raises(UserError, match=r"it was changed while this was being pushed.*refresh"):
        push_artifact(folder, NAME, PLAIN)
    assert held(hub)["model.safetensors"] == b"newer"


# What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "status", "sentence"),
    [
        ("repos/create", 401, "the hub does not know you: hf auth login"),
        ("repos/create", 403, "your token may not write there"),
        ("repos/create", 409, "made or changed by somebody at the same moment"),
        ("preupload", 403, "your token may not write there"),
        ("lfs/objects", 404, "the hub has no such place"),
        ("/commit/", 500, "the hub answers 500"),
        ("/objects/", 400, "the hub answers 400"),
    ],
)
def test_refusals_are_sentences(
    hub: Hub, folder: Path, part: str, status: int, sentence: str
) -> None:
    hub.fail = {part: status}
    with pytest.raises(UserError, match=sentence) as caught:
        push_artifact(folder, NAME, PLAIN)
    assert "\n" not in str(caught.value)
    if NAME in hub.repos:
        assert set(held(hub)) == {".gitattributes"}, "half of an artifact"
        hub.fail = {}
        push_artifact(folder, NAME, PLAIN)  # goes on where it was refused
        assert set(held(hub)) == {".gitattributes", *FILES}


def test_a_token_that_is_none(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="the hub does not know you"):
        push_artifact(folder, NAME, PLAIN)
    assert hub.repos == {}


def test_names_and_organisations(hub: Hub, folder: Path) -> None:
    with pytest.raises(UserError, match="expected org/name"):
        push_artifact(folder, "org/name/more", PLAIN)
    with pytest.raises(UserError, match="your token may not write there"):
        push_artifact(folder, "others/name", PLAIN)


def test_nobody_answers(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(UserError, match="the hub cannot be reached"):
            push_artifact(folder, NAME, PLAIN)


def test_the_hub_is_an_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "densekit\[hub\]"'):
        push_artifact(folder, NAME, PLAIN)


def test_a_damaged_artifact_is_not_pushed(hub: Hub, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="corrupt"):
        push_artifact(folder, NAME, PLAIN)
    assert hub.asked == []


# Loading ------------------------------------------------------------------------------------


def test_what_is_no_artifact_is_not_loaded(hub: Hub) -> None:
    made(hub, model__safetensors=b"theirs")
    with pytest.raises(UserError, match=r"hf-hub:org/tiny: no artifact .* no config\.json"):
        densekit.load(f"hf-hub:{NAME}")
    with pytest.raises(UserError, match="the hub does not give the artifact"):
        densekit.load("hf-hub:org/none")
    with pytest.raises(UserError, match="expected hf-hub:org/name"):
        densekit.load("hf-hub:a/b/c")


def set_environment(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def test_the_commands(hub: Hub, folder: Path, tmp_path: Path) -> None:
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_write", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "no_proxy": "127.0.0.1"}
    prelude = partial(set_environment, environment)
    result = command("push", str(folder), NAME, "--json", prelude=prelude)
    assert result.returncode == 0, result.stderr
    assert sorted(json.loads(result.stdout)["files"]) == sorted(FILES)
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    words = ("predict", f"hf-hub:{NAME}", str(tmp_path / "black.png"), "--json")
    result = command(*words, prelude=prelude)
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)[0]["topk"]) == 5
