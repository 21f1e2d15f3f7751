"""A folder that `densekit export` wrote: a network in a file of one kind, and how it is used.

    model.onnx | model.xml, model.bin | model.pt2
    config.json   an artifact's, with `export`; the same text stands in the model's own metadata
    gate.json     what the gate measured, and the checksums of the files that it measured

gate.json is written last, and a file whose checksum is another is refused: what answers is what
has passed.
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
"""What is written for each target; the first is the one to open."""
INPUT, LOGITS, PROBABILITIES = "images", "logits", "probabilities"
"""The names of the input and of the outputs in every file."""


class ExportSection(Section):
    """How the model's file was made and what it takes."""

    to: Target
    with_preprocessing: bool = False
    """true: uint8 [N, H, W, C] in (float32 in 0..1 for an intensity other than 8bit),
    `probabilities` and `logits` out; false: float32 [N, C, H, W] in, normalised by
    preprocessing's mean and std, `logits` out."""
    dynamic_size: bool = False
    """Whether H and W may be other than preprocessing.crop; N always may."""
    float_layers: tuple[str, ...] = ()
    """Of int8: layers that are computed in float32."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the libraries that wrote it."""


class ExportedConfig(ArtifactConfig):
    """config.json of an exported network."""

    export: ExportSection


@dataclass(frozen=True)
class Exported:
    """An exported network where it lies."""

    folder: Path
    config: ExportedConfig

    @property
    def file(self) -> Path:
        """The one that an engine opens."""
        return self.folder / MODEL_FILES[self.config.export.to][0]


def is_exported(folder: Path) -> bool:
    """Whether it is `densekit export` that wrote the folder."""
    return (folder / GATE).is_file()


def read_exported(folder: Path) -> Exported:
    """Raises UserError for a folder that is not whole, changed, or of a newer format."""
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
