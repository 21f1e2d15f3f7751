"""The model card: what a network is, where it comes from, how good it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from densekit.infer.classifier import Classifier
from densekit.infer.model import Opened
from densekit.models.artifact import locate_artifact, read_artifact
from densekit.serve.limits import Limits
from densekit.serve.schemas import ModelOut

SHOWN_DATA = ("image_size", "channels", "batch_size")
"""Of an artifact's data section; the rest says where files of the training lie."""
SHOWN_LIMITS = ("max_images", "max_bytes", "max_pixels", "deadline")


def model_card(
    source: str, opened: Opened, classifier: Classifier, limits: Limits, maps: bool
) -> ModelOut:
    """Without the recipe and whatever else names paths of the machine that trained it."""
    folder = Path(source).expanduser()
    metrics: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    if folder.is_dir():
        config = read_artifact(locate_artifact(folder)).config
        metrics = config.metrics
        provenance = config.provenance.model_dump(mode="json", exclude={"recipe"})
    return ModelOut(
        name=opened.name,
        task=classifier.task,
        classes=list(classifier.classes),
        preprocessing=classifier.preprocess.model_dump(mode="json"),
        metrics=metrics,
        data={name: opened.data[name] for name in SHOWN_DATA if name in opened.data},
        provenance=provenance,
        parameters=sum(parameter.numel() for parameter in classifier.model.parameters()),
        device=classifier.precision.device.type,
        precision=classifier.precision.name,
        maps=maps,
        limits={name: getattr(limits, name) for name in SHOWN_LIMITS},
    )
