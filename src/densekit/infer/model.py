"""Opens the networks that evaluate, predict and export take."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densekit.config import UserError
from densekit.data.classes import names_by_output
from densekit.data.config import MAX_PIXELS, DataConfig
from densekit.data.holdout import SPLIT_FILE
from densekit.infer.exported import Exported, is_exported, read_exported
from densekit.models import artifact
from densekit.models.artifact import ArtifactConfig, Preprocessing, Task
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.variants import ModelConfig, architecture
from densekit.weights.fetch import fetch_artifact
from densekit.weights.pretrained import FoundWeights, Place, find_weights, load_into, split_key
from densekit.weights.pretrained import read_pretrained as read_weights
from densekit.weights.weights_file import READ as WEIGHT_FILES
from densekit.weights.weights_file import StateDict, nearest_sibling


@dataclass(frozen=True)
class Opened:
    """A network with its preprocessing and classes."""

    name: str
    """The variant."""
    network: DenseNet | Exported
    """In eval mode, float32, on the CPU; or a file for an engine."""
    preprocessing: Preprocessing
    classes: list[str]
    task: Task = "multiclass"
    thresholds: list[float | None] | None = None
    """Per class: the lowest probability that counts as positive; None: none were chosen."""
    data: dict[str, Any] = field(default_factory=dict)
    """The data section of its training, if known."""
    split: Path | None = None
    """The file that lists the held-out images, if the run's folder has one."""
    described: ArtifactConfig | None = None
    """An artifact's or export's own config."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how it was opened."""
    named: bool = True
    """False: the classes have no names, and are called by their numbers."""

    @property
    def model(self) -> DenseNet:
        """The torch network. Raises UserError for an exported one."""
        if isinstance(self.network, DenseNet):
            return self.network
        to, folder = self.network.config.export.to, self.network.folder
        raise UserError(
            f"{folder}: exported ({to}), so its layers and weights are out of torch's reach; give "
            f"the artifact that it was exported from"
        )

    @property
    def answers_shown(self) -> int:
        """Default number of answers per image: 5, or all classes if multilabel or binary."""
        return 5 if self.task == "multiclass" else len(self.classes)

    @property
    def max_pixels(self) -> int:
        """The training's limit for an image."""
        return self.data.get("max_pixels", MAX_PIXELS)


def open_path(path: str, model: str | None = None, classes: str | None = None) -> Opened:
    """The folder of an artifact, run or export, or hf-hub:org/name of an artifact; or a weights
    file of the variant `model`, with class names from the file `classes` and ImageNet's
    preprocessing.

    Raises UserError if it cannot be opened, and for options that do not apply.
    """
    place = split_key(str(fetch_artifact(path)) if path.startswith("hf-hub:") else path)
    if place.path.is_dir():
        if model or classes:
            option = "--model" if model else "--classes"
            raise UserError(f"{path}: {option} is for files of weights; a folder says it itself")
        return (_open_exported if is_exported(place.path) else _open_folder)(place.path)
    if not place.path.exists():
        raise UserError(f"{path}: there is no such file or folder{nearest_sibling(place.path)}")
    if place.path.suffix not in WEIGHT_FILES:
        raise UserError(
            f"{path}: neither a folder nor a file of weights ({', '.join(WEIGHT_FILES)})"
        )
    if not model:
        raise UserError(f"{path}: a file of weights does not say what it is of; give --model NAME")
    return _open_file(place, model, classes)


def device_of(path: str, device: str) -> str:
    """`device`; for an exported network auto is always the CPU."""
    return "cpu" if device == "auto" and is_exported(split_key(path).path) else device


def open_configured(model: ModelConfig, data: DataConfig, classes: str | None = None) -> Opened:
    """A recipe's network with the weights of its `model.pretrained`, and class names from the file
    `classes`. Raises UserError."""
    pretrained = model.pretrained
    if not pretrained:
        raise UserError("a recipe has no weights of its own: add -o model.pretrained=FILE|FOLDER")
    found = find_weights(pretrained, architecture(model))
    if model.num_classes is None:
        classes_of = _size(found.tensors, "classifier.weight", 0)
        model = model.model_copy(update={"num_classes": classes_of})
    config = architecture(model)
    network, notes = _loaded(config, found, f"model.pretrained={pretrained}")
    network.set_op(model.op)
    stored = None if classes else _stored_names(pretrained, config)
    return Opened(
        name=model.name,
        network=network,
        preprocessing=Preprocessing.from_config(data),
        classes=stored or _names(classes, config),
        task=model.task,
        data=data.model_dump(mode="json"),
        named=bool(stored or classes),
        notes=notes,
    )


def _stored_names(pretrained: str, config: DenseNetConfig) -> list[str] | None:
    """The class names of an artifact whose classes fit the network."""
    folder = Path(pretrained).expanduser()
    if not folder.is_dir():
        return None
    classes = artifact.read_artifact(artifact.locate_artifact(folder)).config.classes
    return list(classes) if len(classes) == config.num_classes else None


def _open_folder(folder: Path) -> Opened:
    place = artifact.locate_artifact(folder)
    split = place.absolute().parent / SPLIT_FILE
    stored = artifact.read_artifact(place)
    config = stored.config
    network, _ = _loaded(config.model.architecture, FoundWeights(stored.state_dict), str(place))
    return Opened(
        name=config.model.name,
        network=network,
        preprocessing=config.preprocessing,
        classes=list(config.classes),
        task=config.task,
        thresholds=_thresholds(config),
        data=config.data,
        split=split if split.is_file() else None,
        described=config,
        notes=() if place == folder else (f"{folder}: a run's folder; taking {place}",),
    )


def _open_exported(folder: Path) -> Opened:
    exported = read_exported(folder)
    config = exported.config
    return Opened(
        name=config.model.name,
        network=exported,
        preprocessing=config.preprocessing,
        classes=list(config.classes),
        task=config.task,
        thresholds=_thresholds(config),
        data=config.data,
        described=config,
    )


def _thresholds(config: ArtifactConfig) -> list[float | None] | None:
    return None if config.thresholds is None else list(config.thresholds.values)


def _open_file(place: Place, name: str, classes: str | None) -> Opened:
    found, file = read_weights(place), place.path
    num_classes = _size(found.tensors, "classifier.weight", 0)
    config = architecture(ModelConfig(name=name, num_classes=num_classes))
    channels = _size(found.tensors, "features.conv0.weight", 1) or config.in_channels
    if channels != config.in_channels:
        raise UserError(
            f"{file}: weights for {channels} input channel(s), so it is not ImageNet's "
            f"preprocessing; say which it is with a recipe: -c RECIPE -o model.pretrained={file}"
        )
    side = config.image_size
    resize = 256 if side == 224 else side
    network, notes = _loaded(config, found, str(file))
    taken = f"{file}: taken to need ImageNet's preprocessing, {resize} to {side} pixels"
    return Opened(
        name=name,
        network=network,
        preprocessing=Preprocessing(resize=resize, crop=side),
        classes=_names(classes, config),
        notes=(*notes, taken),
        named=classes is not None,
    )


def _loaded(
    config: DenseNetConfig, found: FoundWeights, origin: str
) -> tuple[DenseNet, tuple[str, ...]]:
    """The network, and notes for the user on how its weights were read."""
    model = DenseNet(config)
    try:
        loaded = load_into(model, found.tensors)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    return model.eval(), (*found.notes, *(f"{origin}: {note}" for note in loaded.notes))


def _size(weights: StateDict, name: str, axis: int) -> int | None:
    """The size of a tensor's axis; None if there is no such tensor or axis."""
    return weights[name].shape[axis] if name in weights and weights[name].ndim > axis else None


def _names(classes: str | None, config: DenseNetConfig) -> list[str]:
    """A name for each output, from a file of `label name` lines; without one, its number."""
    if classes is None:
        return [str(label) for label in range(config.num_classes)]
    file = Path(classes).expanduser()
    return names_by_output(file, config.num_classes, f"--classes {classes}")
