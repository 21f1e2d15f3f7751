"""A folder written by `densekit export`: a network for one engine, with its config.

    model.onnx | model.xml, model.bin | model.pt2
    config.json   an artifact's, with `export`; also stored in the model file's own metadata
    gate.json     what the gate measured, and the checksums of the measured files

gate.json is written last, and a file with another checksum is refused: only files that passed the
gate are used.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from densekit.config import Section, UserError
from densekit.files import digest
from densekit.models.artifact import CONFIG, ArtifactConfig, parse

Target = Literal["onnx", "onnx-int8", "openvino", "openvino-int8", "torch-export"]
GATE = "gate.json"
MODEL_FILES: dict[Target, tuple[str, ...]] = {
    "onnx": ("model.onnx",),
    "onnx-int8": ("model.onnx",),
    "openvino": ("model.xml", "model.bin"),
    "openvino-int8": ("model.xml", "model.bin"),
    "torch-export": ("model.pt2",),
}
"""The files of each target; the first is the one to open."""
INPUT, LOGITS, PROBABILITIES = "images", "logits", "probabilities"
"""The names of the input and of the outputs in every file."""


class ExportSection(Section):
    """How the model file was made, and its input."""

    to: Target
    with_preprocessing: bool = False
    """true: uint8 [N, H, W, C] in (float32 in 0..1 for an intensity other than 8bit),
    `probabilities` and `logits` out; false: float32 [N, C, H, W] in, normalised by
    preprocessing's mean and std, `logits` out."""
    dynamic_size: bool = False
    """Whether H and W may differ from preprocessing.crop; N is always free."""
    float_layers: tuple[str, ...] = ()
    """int8 only: layers kept in float32."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the libraries that wrote it."""


class ExportedConfig(ArtifactConfig):
    """config.json of an exported network."""

    export: ExportSection


@dataclass(frozen=True)
class Exported:
    """An exported network and its folder."""

    folder: Path
    config: ExportedConfig

    @property
    def file(self) -> Path:
        """The one that an engine opens."""
        return self.folder / MODEL_FILES[self.config.export.to][0]


def is_exported(folder: Path) -> bool:
    """Whether `densekit export` wrote the folder."""
    return (folder / GATE).is_file()


def read_exported(folder: Path) -> Exported:
    """Raises UserError for a folder that is incomplete, modified, or of a newer format."""
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        gate = json.loads((folder / GATE).read_text(encoding="utf-8"))
        config = parse(text, folder / CONFIG, ExportedConfig)
        for name in MODEL_FILES[config.export.to]:
            if digest(folder / name, "sha256") != gate["sha256"][name]:
                raise UserError(
                    f"{folder / name}: not the file that the gate has measured ({GATE} has its "
                    f"checksum); export it again, or copy the whole folder again"
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: not a whole export: {error}; export it again") from error
    return Exported(folder, config)
