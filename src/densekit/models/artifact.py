"""The artifact: the folder that training leaves and every later command takes, whole in itself.

    model.safetensors   the weights; config.json's text and a checksum stand in its metadata
    config.json         a copy of that text for people and other tools

The rename of model.safetensors is the commit: weights and config change together or not at all.
config.json is removed before it and written after it, so a copy that differs was edited. That is
refused, since an edit would have no effect; a missing copy is written again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import safetensors.torch
import torch
import torchvision
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

import densekit
from densekit.config import ConfigSource, Section, UserError, build
from densekit.data.config import Task
from densekit.data.transforms import Preprocessing
from densekit.files import make_folder, write_atomically
from densekit.models.densenet import DenseNetConfig

FORMAT: Final = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
READ_ATTEMPTS = 5  # at reading an artifact that a training is writing
PAUSE = 0.05  # seconds between them
METADATA_KEY = "densekit"  # of config.json's text in the metadata of model.safetensors
CHECKSUM_KEY = "sha256"  # there too, of `checksum`; artifacts before it have none
CHANGED_BY = {
    "classes": "densekit convert {folder} NEW --classes FILE",
    "preprocessing": "densekit convert {folder} NEW --preprocessing FILE",
    "task": "densekit convert {folder} NEW --task multiclass|multilabel|binary",
}
"""How what may be changed in an artifact is changed, by config.json's keys."""


class Described(Section):
    """The network of an artifact."""

    name: str
    """The variant it was made from."""
    architecture: DenseNetConfig
    """What it is, whole: nothing is looked up by the name."""


class Thresholds(Section):
    """From which probability on a class of a multilabel or binary network is taken for there."""

    rule: str
    """How they were chosen on the validation images: loop.threshold."""
    values: tuple[float | None, ...]
    """For each output; null where validation had images of one kind alone."""


class Provenance(Section):
    """Where an artifact comes from; nothing is computed from it."""

    recipe: dict[str, Any] | None = None
    """The resolved recipe; null for converted weights."""
    versions: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    """Of densekit's own sources, `-dirty` if they were changed; null for an installed package."""
    source: dict[str, str] = Field(default_factory=dict)
    """Of converted weights: the file's or artifact's name, its sha256, whose names it had."""


class ArtifactConfig(Section):
    """config.json."""

    format: Literal[1] = FORMAT
    task: Task = "multiclass"
    """multiclass: one class an image, softmax; multilabel: any number of them, sigmoid; binary: the
    same with one output, and so one name in classes, that of what is there or not."""
    model: Described
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    """A name for each output."""
    thresholds: Thresholds | None = None
    """Of a multilabel or binary network; null: nobody has chosen any."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """What evaluating it on its validation data gave."""
    data: dict[str, Any] = Field(default_factory=dict)
    """The recipe's data section: what `evaluate` takes when it is not told otherwise."""
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _agrees(self) -> ArtifactConfig:
        architecture, channels = self.model.architecture, self.preprocessing.channels
        if architecture.num_classes == 0:
            raise ValueError("the model has no classifier (num_classes=0), which an artifact needs")
        if len(self.classes) != architecture.num_classes:
            raise ValueError(
                f"{len(self.classes)} names in classes for {architecture.num_classes} outputs"
            )
        self._check_task()
        if channels != architecture.in_channels:
            raise ValueError(
                f"preprocessing gives {channels} channels, the model takes "
                f"{architecture.in_channels}"
            )
        return self

    def _check_task(self) -> None:
        outputs = self.model.architecture.num_classes
        if self.task == "binary" and outputs != 1:
            raise ValueError(f"a binary network has one output, this one has {outputs}")
        if self.thresholds is None:
            return
        if self.task == "multiclass":
            raise ValueError("thresholds are for classes that are there or not, not for multiclass")
        if len(self.thresholds.values) != outputs:
            raise ValueError(f"{len(self.thresholds.values)} thresholds for {outputs} outputs")


ConfigKind = TypeVar("ConfigKind", bound=ArtifactConfig)


@dataclass(frozen=True)
class Artifact:
    """What a folder holds: the config and every tensor as it was stored, on the CPU."""

    config: ArtifactConfig
    state_dict: dict[str, Tensor]


def write_artifact(folder: Path, config: ArtifactConfig, state_dict: Mapping[str, Tensor]) -> None:
    """Makes `folder` this artifact, or leaves it as it was. dtypes stay; memory is contiguous.

    Raises UserError for a folder of something else and for a full or read-only disk.
    """
    make_folder(folder)
    if not is_replaceable(folder):
        raise UserError(f"{folder}: holds something else than an artifact; choose a new folder")
    text = config.model_dump_json(indent=2) + "\n"
    tensors = {name: t.detach().cpu().contiguous() for name, t in state_dict.items()}
    content = _to_bytes(text, tensors)
    with contextlib.suppress(OSError):  # not there; or a read-only disk, as the next line says
        (folder / CONFIG).unlink()
    write_atomically(folder / WEIGHTS, content)
    write_atomically(folder / CONFIG, text.encode())


def _to_bytes(text: str, tensors: Mapping[str, Tensor]) -> bytes:
    """model.safetensors; the same bytes for the same content, where safetensors orders the
    metadata by chance."""
    metadata = {METADATA_KEY: text, CHECKSUM_KEY: checksum(text, tensors)}
    content = safetensors.torch.save(dict(tensors), metadata)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size]) | {"__metadata__": metadata}
    line = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    line += b" " * (-len(line) % 8)  # which aligns the tensors
    return len(line).to_bytes(8, "little") + line + content[8 + size :]


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the config's text and of every tensor's name, type, shape and bytes."""
    hashed = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def read_artifact(folder: Path) -> Artifact:
    """Raises UserError where there is no artifact, a corrupt or an edited one, or one of a newer
    format."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder}: not an artifact: it holds no {WEIGHTS}")
    for _ in range(READ_ATTEMPTS):
        metadata, state_dict = _content(file)
        text = metadata.get(METADATA_KEY)
        if text is None:
            raise UserError(
                f"{file}: weights without densekit's config; give this file itself with "
                f"--model NAME"
            )
        stored = metadata.get(CHECKSUM_KEY)
        if stored is not None and stored != checksum(text, state_dict):
            raise UserError(
                f"{file}: corrupt: its content is not what its checksum says was written; copy it "
                f"again from where it came, or make it again"
            )
        config = parse(text, file, ArtifactConfig)
        edited = _edited(folder / CONFIG, text)
        if edited is None:
            return Artifact(config, state_dict)
        time.sleep(PAUSE)  # a training may be writing both anew
    raise UserError(_how_to_change(folder, edited))


def _content(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as weights:
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
            return weights.metadata() or {}, tensors
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: corrupt or truncated, so it cannot be read: {error}") from error


def _metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as weights:
            return weights.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _edited(file: Path, text: str) -> str | None:
    """What config.json says otherwise than `text`, as its dotted key; None where nothing is.

    A missing one is written.
    """
    try:
        copy = file.read_text(encoding="utf-8")
        if copy == text:
            return None
        return _first_difference(json.loads(text), json.loads(copy))
    except FileNotFoundError:
        with contextlib.suppress(UserError):  # a read-only disk, or a full one
            write_atomically(file, text.encode())
            now = _metadata(file.with_name(WEIGHTS)).get(METADATA_KEY, text)
            if now != text:  # a training has written both anew meanwhile
                write_atomically(file, now.encode())
        return None
    except (OSError, ValueError) as error:  # not UTF-8, not JSON
        return f"its text ({error})"


def _first_difference(stored: Any, copy: Any, key: str = "") -> str | None:
    """The dotted key below which two trees differ first; None where they are equal."""
    if not isinstance(stored, dict) or not isinstance(copy, dict):
        return None if stored == copy else key or "its content"
    for name in [*stored, *(name for name in copy if name not in stored)]:
        inner = f"{key}.{name}" if key else name
        if name not in stored or name not in copy:
            return inner
        found = _first_difference(stored[name], copy[name], inner)
        if found:
            return found
    return None


def _how_to_change(folder: Path, edited: str | None) -> str:
    key = (edited or "").split(".")[0]
    how = CHANGED_BY.get(key, "only classes, preprocessing and task can be, by densekit convert")
    return (
        f"{folder / CONFIG}: {edited} was edited, which has no effect: what counts stands in "
        f"{WEIGHTS}, and this is a copy of it. To change it: {how.format(folder=folder)}. To take "
        f"the artifact as it was, delete {folder / CONFIG}"
    )


def parse(text: str, file: Path, kind: type[ConfigKind]) -> ConfigKind:
    """The config of this kind in config.json's text, which stands in `file`. Raises UserError."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: its config is not JSON: {error}") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("format"), int):
        raise UserError(f"{file}: its config has no format number")
    if tree["format"] > FORMAT:
        raise UserError(
            f"{file}: artifact format {tree['format']}, but densekit {densekit.__version__} reads "
            f"format {FORMAT}; install a newer densekit"
        )
    return build(kind, ConfigSource(tree, {(): str(file)}))


def locate_artifact(folder: Path) -> Path:
    """`folder` if it holds an artifact, else its best/ or last/: a run's folder."""
    candidates = [folder, folder / "best", folder / "last"]
    return next((f for f in candidates if (f / WEIGHTS).is_file()), folder)


def provenance(recipe: dict[str, Any] | None = None) -> Provenance:
    """Of an artifact that is made here and now."""
    versions = {
        "densekit": densekit.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
    }
    return Provenance(recipe=recipe, versions=versions, commit=commit())


def commit() -> str | None:
    """The git commit of these sources, `-dirty` if they were changed; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        # an installed package may lie in somebody else's checkout, which does not track it
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=folder, check=True, capture_output=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def is_replaceable(folder: Path) -> bool:
    """Whether `folder` is empty, or an artifact, or what an interrupted first write left."""
    if not set(folder.iterdir()) - set(folder.glob(f".{WEIGHTS}.densekit-*.tmp")):
        return True
    return METADATA_KEY in _metadata(folder / WEIGHTS) or _is_config(folder / CONFIG)


def _is_config(file: Path) -> bool:
    try:
        parse(file.read_text(encoding="utf-8"), file, ArtifactConfig)
    except (OSError, UnicodeDecodeError, UserError):
        return False
    return True
