"""`densekit export`: writes to a temporary folder, measures, and then publishes.

1. torch's network is traced to a program, with transitions that pool first (network.py);
2. the program is converted to the target's file (formats.py), for int8 with calibration
   (quantize.py);
3. the file is run on the gate's images, with the engine and options it ships with (gate.py);
4. an export that passes is renamed to the target folder (folder.py); one that fails is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from densekit.config import UserError, nearest, needs_extra
from densekit.export import formats, gate, layers, quantize
from densekit.export.folder import folder_for, publish, write_notes
from densekit.export.gate import Bounds, Counted, Difference
from densekit.export.images import RealImages, calibration_images, gate_images
from densekit.export.network import ExportedNetwork, traced
from densekit.infer.engines import open_engine, resolve_engine
from densekit.infer.exported import Exported, ExportedConfig, ExportSection, Target
from densekit.infer.model import Opened
from densekit.models import artifact
from densekit.precision import Precision, describe_device, resolve
from densekit.progress import say, waiting

FLOAT_IMAGES, INT8_IMAGES = 256, 2000  # of the gate, by default
LIBRARIES: dict[Target, tuple[str, ...]] = {
    "torch-export": ("torch",),
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "onnx-int8": ("torch", "onnx", "onnxscript", "onnxruntime.quantization"),
    "openvino": ("torch", "onnx", "onnxscript", "openvino"),
    "openvino-int8": ("torch", "onnx", "onnxscript", "openvino", "nncf"),
}
"""The libraries that write and run each target; their versions are recorded."""


@dataclass(frozen=True)
class ExportOptions:
    """The command's options, as typed; None: not given."""

    to: str = "onnx"
    with_preprocessing: bool = False
    dynamic_size: bool = False
    images: str | None = None
    calibration: str | None = None
    limit: int | None = None
    bounds: Bounds = field(default_factory=Bounds)
    force: bool = False
    """Whether to keep an int8 network that loses too much."""
    replace: bool = False
    """Whether to replace an existing export."""

    @property
    def target(self) -> Target:
        """Raises UserError for an unknown one."""
        if self.to not in get_args(Target):
            known = get_args(Target)
            raise UserError(
                f"--to {self.to}: unknown{nearest(self.to, known)}; known: {', '.join(known)}"
            )
        return cast(Target, self.to)

    @property
    def int8(self) -> bool:
        return self.to.endswith("int8")


def export_network(opened: Opened, target: Path, options: ExportOptions) -> dict[str, Any]:
    """Writes the export and returns gate.json's content. Raises UserError and then leaves nothing.

    `opened` is torch's network; its float32 on the CPU is the reference. A target that is a link to
    a folder stays one.
    """
    to = options.target
    check_options(opened, options)
    with needs_extra("export", f"--to {to}"):  # fail before converting
        for name in LIBRARIES[to]:
            import_module(name)
    place = target.resolve() if target.is_dir() else target
    with folder_for(place, options.replace) as folder:
        work = Work(opened, options, to, _images(opened, options), folder)
        made = work.int8() if options.int8 else work.float()
        found = work.report(made)
        write_notes(folder, made.exported.config, found)
        publish(folder, place)
    return found


def _images(opened: Opened, options: ExportOptions) -> RealImages:
    """The gate's images. Raises UserError."""
    limit = options.limit or (INT8_IMAGES if options.int8 else FLOAT_IMAGES)
    images, notes = gate_images(opened, options.images, limit)
    if options.int8 and not images.labelled:
        raise UserError(
            f"--images {options.images}: int8 is judged by its accuracy, and these have no labels; "
            f"give a list file, or a folder of class folders"
        )
    for note in notes:
        say(note)
    return images


def check_options(opened: Opened, options: ExportOptions) -> None:
    """Raises UserError for incompatible options."""
    _ = opened.model  # raises: an export cannot be exported
    if options.calibration is not None and not options.int8:
        raise UserError(f"--calibration: is for int8; --to {options.to} needs none")
    if options.force and not options.int8:
        raise UserError(f"--force: is for int8; --to {options.to} has no accuracy to lose")


@dataclass(frozen=True)
class Made:
    """A file that was written and run on the gate's images."""

    exported: Exported
    counted: Counted
    difference: Difference
    faults: list[str]


@dataclass(frozen=True)
class Work:
    """One export in progress."""

    opened: Opened
    options: ExportOptions
    to: Target
    images: RealImages
    folder: Path

    @cached_property
    def precision(self) -> Precision:
        return resolve("cpu", "fp32")

    @cached_property
    def network(self) -> ExportedNetwork:
        inside = self.opened.preprocessing if self.options.with_preprocessing else None
        return ExportedNetwork(self.opened.model, self.opened.task, inside)

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        shape = self.opened.preprocessing
        with waiting("tracing the network"):
            return traced(self.network, shape.channels, shape.crop, self.options.dynamic_size)

    @cached_property
    def onnx(self) -> Any:
        program = self.program
        with waiting("converting it to ONNX"):
            return formats.to_onnx(program, self.options.with_preprocessing)

    @cached_property
    def reference(self) -> Counted:
        """Torch's results on the gate's images."""
        logits = open_engine(self.opened, self.precision, "torch")
        return gate.count(logits, self.images, "torch's answers")

    # The two ways ---------------------------------------------------------------------------

    def float(self) -> Made:
        """The float file. If it differs, raises UserError that names the layer and the images."""
        if self.to == "torch-export":
            made = self.measured(
                lambda text: formats.write_program(self.program, self.folder, text)
            )
        elif self.to == "onnx":
            made = self.measured(lambda text: formats.write_onnx(self.onnx, self.folder, text))
        else:
            model = formats.to_openvino(self.onnx)
            made = self.measured(lambda text: formats.write_openvino(model, self.folder, text))
        if made.faults:
            given = self.inputs(self.images.spread(4))
            where = layers.first_fault(self.network, made.exported, given)
            raise UserError(self.refusal(made, where))
        return made

    def int8(self) -> Made:
        """The int8 file with as few float layers as let it pass. Raises UserError if a quarter of
        the layers is not enough, unless forced; and for images that cannot measure it."""
        if self.reference.score is None:
            raise UserError(
                f"{self.images.examples.origin}: int8 is judged by AUROC, and each class is in all "
                f"or none of these images; give others: --images LIST"
            )
        chosen = calibration_images(
            self.opened, self.options.calibration, quantize.CALIBRATION_IMAGES
        )
        given = self.inputs(chosen)
        made = self.quantized(given, ())
        if not made.faults:
            return made
        harmful = quantize.by_harm(self.network, given)
        best, kept = made, 1
        while made.faults and kept <= max(1, len(harmful) // 4):
            say(f"int8: {made.faults[0]}; {kept} layers stay in float: {', '.join(harmful[:kept])}")
            made, kept = self.quantized(given, harmful[:kept]), 2 * kept
            best = min(best, made, key=lambda each: each.difference.relative_norm)
        if made.faults and not self.options.force:
            raise UserError(
                self.refusal(best, f"the layers that int8 hurts most: {', '.join(harmful[:5])}")
            )
        if made.faults and best is not made:
            return self.quantized(given, best.exported.config.export.float_layers)
        return made

    def quantized(self, given: np.ndarray, float_layers: Sequence[str]) -> Made:
        """The int8 file, with these layers in float."""
        if self.to == "onnx-int8":
            model = quantize.quantize_onnx(self.onnx, given, float_layers)
            write = partial(formats.write_onnx, model, self.folder)
        else:
            float_model = formats.to_openvino(self.onnx)
            model = quantize.quantize_openvino(float_model, given, float_layers)
            write = partial(formats.write_openvino, model, self.folder)
        return self.measured(write, tuple(float_layers))

    # Steps of both --------------------------------------------------------------------------

    def inputs(self, images: RealImages) -> np.ndarray:
        """The images in the file's input format."""
        squares = torch.cat([batch.images for _, batch in images.batches("reading images")])
        if self.options.with_preprocessing:
            return squares.permute(0, 2, 3, 1).contiguous().numpy()
        return self.opened.preprocessing.normalize(squares).contiguous().numpy()

    def measured(self, write: Callable[[str], None], float_layers: tuple[str, ...] = ()) -> Made:
        """Writes the file, and runs it on the gate's images."""
        config = self.config(float_layers)
        write(config.model_dump_json())
        exported = Exported(self.folder, config)
        logits = open_engine(replace(self.opened, network=exported), self.precision)
        counted = gate.count(logits, self.images, "the export's answers")
        difference = gate.compare(self.reference, counted, self.opened)
        if self.options.int8:
            faults = gate.int8_faults(self.reference, counted, difference, self.options.bounds)
        else:
            faults = gate.float_faults(difference, self.options.bounds)
        return Made(exported, counted, difference, faults)

    def config(self, float_layers: tuple[str, ...]) -> ExportedConfig:
        opened, options = self.opened, self.options
        packages = ("densekit", *(name.partition(".")[0] for name in LIBRARIES[self.to]))
        section = ExportSection(
            to=self.to,
            with_preprocessing=options.with_preprocessing,
            dynamic_size=options.dynamic_size,
            float_layers=float_layers,
            versions={name: version(name) for name in packages},
        )
        known = opened.described
        return ExportedConfig(
            task=opened.task,
            model=artifact.Described(name=opened.name, architecture=opened.model.config),
            preprocessing=opened.preprocessing,
            classes=tuple(opened.classes),
            data=opened.data,
            thresholds=known.thresholds if known else None,
            metrics=known.metrics if known else {},
            provenance=known.provenance if known else artifact.provenance(),
            export=section,
        )

    def refusal(self, made: Made, where: str) -> str:
        names = [self.images.examples.relative(i) for i in made.difference.worst]
        return (
            f"--to {self.to}: {'; '.join(made.faults)}. Nothing was written. {where}; the images "
            f"that differ most: {', '.join(names)}"
        )

    def report(self, made: Made) -> dict[str, Any]:
        """gate.json's content, without the files' checksums."""
        opened, exported = self.opened, replace(self.opened, network=made.exported)
        engine = resolve_engine(exported, "auto")
        return {
            "to": self.to,
            "engine": engine,
            "images": {
                "from": self.images.examples.origin,
                "count": len(self.images),
                "sha256": self.images.examples.digest(),
            },
            "torch": self.reference.summary,
            "exported": made.counted.summary,
            "difference": gate.as_tree(made.difference, self.images),
            "bounds": gate.bounds_of(self.options.bounds, self.options.int8),
            "passed": not made.faults,
            "faults": made.faults,
            "float_layers": list(made.exported.config.export.float_layers),
            "latency": gate.latency(
                open_engine(opened, self.precision, "torch"),
                open_engine(exported, self.precision, engine),
                self.images,
            ),
            "machine": describe_device(self.precision.device),
            "versions": made.exported.config.export.versions,
        }
