"""The artifact: the folder that training leaves and every later command takes, whole in itself.

    model.safetensors   the weights; config.json's text stands in its metadata
    config.json         a copy of that text for people and other tools

The rename of model.safetensors is the commit: weights and config change together or not at all.
A config.json that differs, because a write was cut short or somebody edited it, is mended when
the artifact is read.
"""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import safetensors.torch
import torch
import torchvision
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

import densekit
from densekit.config import ConfigSource, Section, UserError, build
from densekit.data.transforms import Preprocessing
from densekit.files import make_folder, write_atomically
from densekit.models.densenet import DenseNetConfig

FORMAT: Final = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
METADATA_KEY = "densekit"  # of config.json's text in the metadata of model.safetensors

Task = Literal["multiclass", "multilabel"]


class Described(Section):
    """The network of an artifact."""

    name: str
    """The variant it was made from."""
    architecture: DenseNetConfig
    """What it is, whole: nothing is looked up by the name."""


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
    """multiclass: one class an image, softmax; multilabel: any number of them, sigmoid."""
    model: Described
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    """A name for each output."""
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
        if channels != architecture.in_channels:
            raise ValueError(
                f"preprocessing gives {channels} channels, the model takes "
                f"{architecture.in_channels}"
            )
        return self


@dataclass(frozen=True)
class Artifact:
    """What a folder holds: the config and every tensor as it was stored, on the CPU."""

    config: ArtifactConfig
    state_dict: dict[str, Tensor]


def write(folder: Path, config: ArtifactConfig, state_dict: Mapping[str, Tensor]) -> None:
    """Makes `folder` this artifact, or leaves it as it was. dtypes stay; memory is contiguous.

    Raises UserError for a folder of something else and for a full or read-only disk.
    """
    make_folder(folder)
    if not _replaceable(folder):
        raise UserError(f"{folder}: holds something else than an artifact; choose a new folder")
    text = config.model_dump_json(indent=2) + "\n"
    tensors = {name: t.detach().cpu().contiguous() for name, t in state_dict.items()}
    write_atomically(folder / WEIGHTS, safetensors.torch.save(tensors, {METADATA_KEY: text}))
    write_atomically(folder / CONFIG, text.encode())


def read(folder: Path) -> Artifact:
    """Raises UserError where there is no artifact, a damaged one, or one of a newer format."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder}: no artifact: it holds no {WEIGHTS}")
    try:
        with safe_open(file, framework="pt") as weights:
            text = (weights.metadata() or {}).get(METADATA_KEY)
            state_dict = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: damaged or cut short, so it cannot be read: {error}") from error
    if text is None:
        raise UserError(
            f"{file}: weights without densekit's config; give this file itself with --model NAME"
        )
    config = parse(text, file)
    _mend(folder / CONFIG, text)
    return Artifact(config, state_dict)


def parse(text: str, file: Path) -> ArtifactConfig:
    """config.json's text, which stands in `file`. Raises UserError."""
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
    return build(ArtifactConfig, ConfigSource(tree, {(): str(file)}))


def locate(folder: Path) -> Path:
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


def _replaceable(folder: Path) -> bool:
    """Whether `folder` is empty, or an artifact, or what a first write that was cut short left."""
    if not set(folder.iterdir()) - set(folder.glob(f".{WEIGHTS}.*.tmp")):
        return True
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as weights:
            return METADATA_KEY in (weights.metadata() or {})
    except (SafetensorError, OSError):  # none, or damaged: then the copy says whose it was
        return _is_config(folder / CONFIG)


def _is_config(file: Path) -> bool:
    try:
        parse(file.read_text(encoding="utf-8"), file)
    except (OSError, UnicodeDecodeError, UserError):
        return False
    return True


def _mend(file: Path, text: str) -> None:
    """Makes config.json say what the weights' metadata says."""
    with contextlib.suppress(OSError, UnicodeDecodeError):  # missing or garbled: written anew
        if file.read_text(encoding="utf-8") == text:
            return
    with contextlib.suppress(UserError):  # a read-only disk or a full one: the copy stays as it is
        write_atomically(file, text.encode())
