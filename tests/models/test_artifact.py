"""artifact.py: what is written is read; a write that is cut short changes nothing."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from densekit.config import UserError
from densekit.data.transforms import Preprocessing
from densekit.files import temporary
from densekit.models import artifact
from densekit.models.artifact import ArtifactConfig, Described
from densekit.models.densenet import DenseNet, DenseNetConfig

TINY = DenseNetConfig(
    growth_rate=4, block_config=(1, 1), num_init_features=8, stem="cifar", num_classes=3
)


def config(**fields: object) -> ArtifactConfig:
    return ArtifactConfig(
        model=Described(name="densenet_bc_40_12", architecture=TINY),
        preprocessing=Preprocessing(crop=8, resize=None),
        classes=("cat", "dog", "füchsin"),
        **fields,  # type: ignore[arg-type]
    )


def weights(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return DenseNet(TINY).state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "best"
    written = config(
        metrics={"count": 3, "top1": 1 / 3, "loss": 0.1 + 0.2},
        data={"val": "val_list.txt"},
        provenance=artifact.provenance({"loop": {"seed": 1}}),
    )
    artifact.write_artifact(folder, written, weights())
    found = artifact.read_artifact(folder)
    assert found.config == written
    assert same(found.state_dict, weights())
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_files_are_plain(tmp_path: Path) -> None:
    artifact.write_artifact(tmp_path, config(metrics={"top1": 0.5}), weights())
    tree = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert list(tree) == [
        "format", "task", "model", "preprocessing", "classes", "thresholds", "metrics", "data",
        "provenance",
    ]  # fmt: skip
    assert tree["format"] == 1
    assert tree["task"] == "multiclass"
    assert tree["model"]["architecture"] == TINY.model_dump(mode="json")
    assert tree["metrics"] == {"top1": 0.5}
    assert same(load_file(tmp_path / "model.safetensors"), weights())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_stay(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = DenseNet(TINY).to(dtype)
    artifact.write_artifact(tmp_path, config(), model.state_dict())
    assert same(artifact.read_artifact(tmp_path).state_dict, model.state_dict())


def test_channels_last_is_stored_contiguous(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DenseNet(TINY).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    artifact.write_artifact(tmp_path, config(), model.state_dict())
    found = artifact.read_artifact(tmp_path).state_dict
    assert same(found, weights())
    assert all(tensor.is_contiguous() for tensor in found.values())


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    artifact.write_artifact(tmp_path, config(metrics={"loss": float("nan")}), weights())
    assert artifact.read_artifact(tmp_path).config.metrics == {"loss": None}


# Cut short, edited, damaged -----------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2])
def test_a_write_that_is_cut_short_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The process dies at the `at`-th rename: before the weights', or before config.json's."""
    artifact.write_artifact(tmp_path, config(metrics={"top1": 0.1}), weights(0))
    renames, replace = [], Path.replace

    def dying(self: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == at:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        artifact.write_artifact(tmp_path, config(metrics={"top1": 0.9}), weights(1))
    monkeypatch.undo()

    found = artifact.read_artifact(tmp_path)
    new = at == 2
    assert found.config.metrics == {"top1": 0.9 if new else 0.1}
    assert same(found.state_dict, weights(1 if new else 0))
    artifact.write_artifact(tmp_path, config(metrics={"top1": 0.5}), weights(2))
    assert artifact.read_artifact(tmp_path).config.metrics == {"top1": 0.5}


def test_a_first_write_that_was_cut_short_is_no_obstacle(tmp_path: Path) -> None:
    temporary(tmp_path / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="not an artifact"):
        artifact.read_artifact(tmp_path)
    artifact.write_artifact(tmp_path, config(), weights())
    assert artifact.read_artifact(tmp_path).config == config()


def test_a_missing_copy_is_written_again(tmp_path: Path) -> None:
    artifact.write_artifact(tmp_path, config(), weights())
    text = (tmp_path / "config.json").read_bytes()
    (tmp_path / "config.json").unlink()
    assert artifact.read_artifact(tmp_path).config == config()
    assert (tmp_path / "config.json").read_bytes() == text


@pytest.mark.parametrize(
    ("edit", "key", "how"),
    [
        ({"classes": ["cat", "dog", "horse"]}, "classes", "convert .* NEW --classes FILE"),
        ({"preprocessing": {"crop": 9}}, "preprocessing.crop", "NEW --preprocessing FILE"),
        ({"metrics": {"top1": 1.0}}, "metrics.top1", "only classes, preprocessing and task"),
        ({"own": 1}, "own", "only classes"),
    ],
)
def test_an_edited_copy_is_refused_and_kept(
    tmp_path: Path, edit: dict[str, Any], key: str, how: str
) -> None:
    artifact.write_artifact(tmp_path, config(), weights())
    file = tmp_path / "config.json"
    tree = json.loads(file.read_text())
    for name, value in edit.items():
        tree[name] = tree[name] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(tree))
    before = file.read_bytes()
    with pytest.raises(UserError, match=rf"config\.json: {key} was edited.*{how}.* delete "):
        artifact.read_artifact(tmp_path)
    assert file.read_bytes() == before
    file.unlink()
    assert artifact.read_artifact(tmp_path).config == config()


@pytest.mark.parametrize("copy", [b"", b"{}", b"\xff", b"[1]"])
def test_a_garbled_copy_is_refused(tmp_path: Path, copy: bytes) -> None:
    artifact.write_artifact(tmp_path, config(), weights())
    (tmp_path / "config.json").write_bytes(copy)
    with pytest.raises(UserError, match=r"config\.json: .* was edited"):
        artifact.read_artifact(tmp_path)


def test_another_layout_of_the_same_copy_is_no_edit(tmp_path: Path) -> None:
    artifact.write_artifact(tmp_path, config(), weights())
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True))
    assert artifact.read_artifact(tmp_path).config == config()


def test_an_artifact_that_is_written_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact.write_artifact(tmp_path, config(metrics={"top1": 0.1}), weights(0))
    content, written = artifact._content, []

    def slow(file: Path) -> Any:
        found = content(file)
        if not written:
            written.append(True)
            artifact.write_artifact(tmp_path, config(metrics={"top1": 0.9}), weights(1))
        return found

    monkeypatch.setattr(artifact, "_content", slow)
    assert artifact.read_artifact(tmp_path).config.metrics == {"top1": 0.9}


# Checksum -----------------------------------------------------------------------------------


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    artifact.write_artifact(tmp_path, config(), weights())
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    places = [8 + size, 8 + size + 1001, len(whole) - 1, whole.index(b"0.485") + 3]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors: corrupt"):
            artifact.read_artifact(tmp_path)
    file.write_bytes(whole)
    assert same(artifact.read_artifact(tmp_path).state_dict, weights())


def test_artifacts_without_a_checksum_are_read(tmp_path: Path) -> None:
    text = config().model_dump_json(indent=2) + "\n"
    save_file(weights(), tmp_path / "model.safetensors", {"densekit": text})
    assert artifact.read_artifact(tmp_path).config == config()


def test_the_same_artifact_is_the_same_bytes(tmp_path: Path) -> None:
    for name in "abcdef":
        artifact.write_artifact(tmp_path / name, config(), weights())
    assert len({(tmp_path / n / "model.safetensors").read_bytes() for n in "abcdef"}) == 1


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_read_only_disk_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact.write_artifact(tmp_path, config(), weights())
    (tmp_path / "config.json").unlink()
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", *rest, **more: refuse()
                        if "w" in mode else opened(self, mode, *rest, **more))  # fmt: skip
    monkeypatch.setattr(Path, "unlink", refuse)
    assert artifact.read_artifact(tmp_path).config == config()
    assert not (tmp_path / "config.json").exists()
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        artifact.write_artifact(tmp_path, config(), weights())


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    artifact.write_artifact(tmp_path, config(metrics={"top1": 0.1}), weights(0))
    temporary(tmp_path / "model.safetensors").symlink_to("/dev/full")
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        artifact.write_artifact(tmp_path, config(metrics={"top1": 0.9}), weights(1))
    assert artifact.read_artifact(tmp_path).config.metrics == {"top1": 0.1}
    assert same(artifact.read_artifact(tmp_path).state_dict, weights(0))


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_weights_that_are_cut_short_are_refused(tmp_path: Path, length: int) -> None:
    artifact.write_artifact(tmp_path, config(), weights())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=r"model.safetensors: corrupt or truncated"):
        artifact.read_artifact(tmp_path)
    artifact.write_artifact(
        tmp_path, config(), weights()
    )  # config.json says that it was one of ours
    assert artifact.read_artifact(tmp_path).config == config()


def write_with(folder: Path, **changes: object) -> None:
    """An artifact whose config has these keys besides or instead of the right ones."""
    tree = json.loads(config().model_dump_json()) | changes
    save_file(weights(), folder / "model.safetensors", {"densekit": json.dumps(tree)})


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    write_with(tmp_path, format=2, unheard_of=True)
    with pytest.raises(UserError, match=r"artifact format 2, but densekit .* reads format 1"):
        artifact.read_artifact(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "one"}, "no format number"),
        ({"clases": ["a"]}, 'unknown key "clases"; did you mean "classes"'),
        ({"classes": ["a"]}, "1 names in classes for 3 outputs"),
        ({"task": "regression"}, "task"),
        (
            {
                "model": Described(
                    name="tiny", architecture=DenseNetConfig(num_classes=0)
                ).model_dump(mode="json"),
                "classes": [],
            },
            "no classifier",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    write_with(tmp_path, **changes)
    with pytest.raises(UserError, match=words) as refusal:
        artifact.read_artifact(tmp_path)
    assert "model.safetensors" in str(refusal.value)


def test_channels_must_agree() -> None:
    grey = TINY.model_copy(update={"in_channels": 1})
    with pytest.raises(ValueError, match="3 channels, the model takes 1"):
        ArtifactConfig(
            model=Described(name="x", architecture=grey),
            preprocessing=Preprocessing(),
            classes=("a", "b", "c"),
        )


def test_multilabel_is_readable(tmp_path: Path) -> None:
    artifact.write_artifact(tmp_path, config(task="multilabel"), weights())
    assert artifact.read_artifact(tmp_path).config.task == "multilabel"


# Folders of something else ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "model.safetensors"])
def test_a_foreign_folder_is_not_overwritten(tmp_path: Path, name: str) -> None:
    foreign = tmp_path / name
    if name == "model.safetensors":
        save_file({"a": torch.ones(1)}, foreign)
    else:
        foreign.write_text('{"theirs": 1}')
    before = foreign.read_bytes()
    with pytest.raises(UserError, match="something else"):
        artifact.write_artifact(tmp_path, config(), weights())
    assert foreign.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_what_lies_beside_an_artifact_stays(tmp_path: Path) -> None:
    artifact.write_artifact(tmp_path, config(), weights(0))
    (tmp_path / "README.md").write_text("mine")
    artifact.write_artifact(tmp_path, config(), weights(1))
    assert same(artifact.read_artifact(tmp_path).state_dict, weights(1))
    assert (tmp_path / "README.md").read_text() == "mine"


def test_bare_weights_name_the_way_on(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="--model NAME"):
        artifact.read_artifact(tmp_path)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "best").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        artifact.write_artifact(tmp_path / "best", config(), weights())


def test_locate_takes_best_before_last(tmp_path: Path) -> None:
    assert artifact.locate_artifact(tmp_path) == tmp_path
    artifact.write_artifact(tmp_path / "last", config(), weights())
    assert artifact.locate_artifact(tmp_path) == tmp_path / "last"
    artifact.write_artifact(tmp_path / "best", config(), weights())
    assert artifact.locate_artifact(tmp_path) == tmp_path / "best"
    assert artifact.locate_artifact(tmp_path / "last") == tmp_path / "last"
