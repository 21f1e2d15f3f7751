"""The model card: the network, its provenance and its metrics."""

from __future__ import annotations

from pathlib import Path

from densekit.infer.classifier import Classifier
from densekit.infer.exported import Exported
from densekit.infer.model import Opened
from densekit.models.artifact import ArtifactConfig, locate_artifact, read_artifact
from densekit.models.densenet import DenseNet
from densekit.serve.limits import Limits
from densekit.serve.schemas import ModelOut

SHOWN_DATA = ("image_size", "channels", "batch_size")
"""Shown from an artifact's data section; the rest holds paths of the training's files."""
SHOWN_LIMITS = ("max_images", "max_bytes", "max_pixels", "deadline")


def model_card(source: str, classifier: Classifier, limits: Limits, maps: bool) -> ModelOut:
    """Leaves out the recipe and anything else with paths of the training machine."""
    opened = classifier.opened
    config = _config(source, opened)
    parameters = None
    if isinstance(opened.network, DenseNet):
        parameters = sum(parameter.numel() for parameter in opened.network.parameters())
    return ModelOut(
        name=opened.name,
        task=opened.task,
        classes=list(opened.classes),
        preprocessing=opened.preprocessing.model_dump(mode="json"),
        metrics=config.metrics if config else {},
        data={name: opened.data[name] for name in SHOWN_DATA if name in opened.data},
        provenance=config.provenance.model_dump(mode="json", exclude={"recipe"}) if config else {},
        parameters=parameters,
        engine=classifier.engine,
        device=classifier.precision.device.type,
        precision=classifier.precision.name,
        maps=maps,
        limits={name: getattr(limits, name) for name in SHOWN_LIMITS},
    )


def _config(source: str, opened: Opened) -> ArtifactConfig | None:
    """The config beside the weights; None for a bare weights file."""
    if isinstance(opened.network, Exported):
        return opened.network.config
    folder = Path(source).expanduser()
    return read_artifact(locate_artifact(folder)).config if folder.is_dir() else None
