"""`densekit convert SRC DST`: weights from any format here to an artifact or another format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
import torchvision

from densekit.config import UserError, build, nearest, read_yaml
from densekit.data.classes import names_by_output
from densekit.files import digest
from densekit.models import artifact
from densekit.models.artifact import ArtifactConfig, Described, Preprocessing, Task, Thresholds
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.variants import variant
from densekit.weights import pretrained, published, weights_file
from densekit.weights.published import OPERATING_POINTS, Published

CLASSES = ("imagenet", "torchxrayvision")


@dataclass(frozen=True)
class ConvertOptions:
    """The command's options, as typed; None: not given."""

    model: str | None = None
    new_head: int | None = None
    preprocessing: str | None = None
    classes: str | None = None
    task: str | None = None
    force: bool = False
    """Whether DST may be replaced."""


@dataclass(frozen=True)
class Origin:
    """What SRC holds, and what is known of its use."""

    name: str
    config: DenseNetConfig
    tensors: weights_file.StateDict
    what: str
    """The format or library, for people."""
    source: dict[str, str]
    """For the provenance."""
    known: ArtifactConfig | None = None
    """An artifact's."""
    row: Published | None = None
    """The published row that this file is, by its checksum, place or name."""
    thresholds: tuple[float | None, ...] | None = None
    """Of its outputs, by the file or the row."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it was read."""


def convert(src: str, dst: str, options: ConvertOptions) -> list[str]:
    """Converts, or raises UserError with all that does not fit. Returns what a person should
    know, in lines."""
    if options.task not in (None, *get_args(Task)):
        raise UserError(f"--task {options.task}: expected {' or '.join(get_args(Task))}")
    target = Path(dst).expanduser()
    if target.suffix and target.suffix not in weights_file.WRITTEN:
        raise UserError(
            f"{dst}: not a format that densekit writes: give a file ending in "
            f"{', '.join(weights_file.WRITTEN)}, or a name without a suffix for an artifact"
        )
    _check_free(src, target, options.force)
    origin = _open(src, options.model)
    config = origin.config
    if options.new_head is not None:
        config = config.model_copy(update={"num_classes": options.new_head})
    if options.preprocessing is not None and not target.suffix:
        channels = _use(origin, options)[0].channels
        config = config.model_copy(update={"in_channels": channels})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a new head's weights
        model = DenseNet(config, op="reference")
    try:
        loaded = pretrained.load_into(
            model, origin.tensors, new_head=options.new_head is not None, shown=None
        )
    except UserError as error:
        raise UserError(f"{src} as {origin.name}: {error}") from error
    count = len(origin.tensors.keys() - (set(pretrained.HEAD) if loaded.new_head else set()))
    said = [
        f"{src}: {origin.name}, {origin.what}, {count} tensors, all of them used",
        *origin.notes,
        *(f"{src}: {note}" for note in loaded.notes),
    ]
    if loaded.new_head:
        said.append(
            f"{dst}: the head is new, {config.num_classes} classes with random weights: train it "
            f"before use"
        )
    if target.suffix:
        return [*said, *_to_file(target, model, options)]
    return [*said, *_to_artifact(target, model, origin, options, loaded.new_head)]


def _check_free(src: str, target: Path, force: bool) -> None:
    """That nothing of the user's is lost. Raises UserError."""
    if not target.exists() and not target.is_symlink():
        return
    source = pretrained.split_key(src).path
    own = source.exists() and target.exists() and target.samefile(source)
    if target.suffix and target.is_dir():
        raise UserError(f"{target}: a folder; an artifact's name has no suffix such as this")
    if not target.suffix and not target.is_dir():
        raise UserError(f"{target}: a file, and an artifact is a folder; choose another name")
    if not target.suffix and not artifact.is_replaceable(target):
        raise UserError(f"{target}: holds something else than an artifact; choose a new folder")
    if not force and not (target.is_dir() and not any(target.iterdir())):
        what = "SRC itself" if own else "an artifact" if target.is_dir() else "a file"
        raise UserError(
            f"{target}: there is {what} already; add --force to replace it, or choose another name"
        )


def _to_file(target: Path, model: DenseNet, options: ConvertOptions) -> list[str]:
    for name in ("preprocessing", "classes", "task"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name}: goes with an artifact; {target} holds weights alone")
    said = weights_file.write_weights(target, model.state_dict(), model.config)
    return [*said, f"{target}: written, and read back the same"]


def _to_artifact(
    target: Path, model: DenseNet, origin: Origin, options: ConvertOptions, new_head: bool
) -> list[str]:
    preprocessing, task = _use(origin, options)
    known = origin.known
    kept: dict[str, Any] = {}
    if known is not None and not new_head:
        kept["data"] = known.data
        if (preprocessing, options.task or task) == (known.preprocessing, known.task):
            kept["metrics"] = known.metrics  # of the same answers to the same images
            kept["thresholds"] = known.thresholds
    said: list[str] = []
    if origin.thresholds and not new_head and (options.task or task) == "multilabel":
        kept["thresholds"] = Thresholds(rule=OPERATING_POINTS, values=origin.thresholds)
        said = _untrained(target, origin.thresholds)
    config = ArtifactConfig(
        task=cast(Task, options.task or task),
        model=Described(name=origin.name, architecture=model.config),
        preprocessing=preprocessing,
        classes=_classes(model.config, origin, options, new_head),
        provenance=artifact.provenance().model_copy(update={"source": origin.source}),
        **kept,
    )
    artifact.write_artifact(target, config, model.state_dict())
    stored = artifact.read_artifact(target)
    same = all(torch.equal(stored.state_dict[n], t) for n, t in model.state_dict().items())
    assert same, f"{target} does not read back as what was written"
    return [
        f"{target}: an artifact, {config.task}, {len(config.classes)} classes, images to "
        f"{config.preprocessing.crop} pixels; try: densekit predict {target} IMAGE",
        *said,
    ]


def _untrained(target: Path, thresholds: Sequence[float | None]) -> list[str]:
    """What to say of outputs that have no operating point."""
    places = [str(k) for k, threshold in enumerate(thresholds) if threshold is None]
    return places and [
        f"{target}: {OPERATING_POINTS} has none for outputs {', '.join(places)}, on whose findings "
        f"these weights were not trained: their probabilities mean nothing"
    ]


# Where it comes from ------------------------------------------------------------------------


def _open(src: str, model: str | None) -> Origin:
    named = variant(model) if model else None
    place = pretrained.locate_weights(src, named)
    if place.path.is_dir():
        return _open_folder(place.path, model)
    weights = weights_file.read_weights(place.path, place.key)
    try:
        name, config = weights_file.identify(weights, model)
    except UserError as error:
        raise UserError(f"{src}: {error}") from error
    row = published.of_digest(weights.sha256, digest(place.path, "md5"))
    row = row or published.of_name(src, name, place.path.name)
    if row is not None and row.num_classes != config.num_classes:
        row = None  # somebody's own network under that name
    points = weights.thresholds
    if points is not None and len(points) != config.num_classes:
        raise UserError(
            f"{src}: {OPERATING_POINTS} are {len(points)} for {config.num_classes} outputs; save "
            f"the network without them (model.op_threshs = None)"
        )
    return Origin(
        name=name,
        config=config,
        tensors=weights.tensors,
        what=f"{weights.keymap.name}'s names",
        source={"file": src if "://" in src else place.path.name, "sha256": weights.sha256,
                "names": weights.keymap.name},
        row=row,
        thresholds=points or (row.thresholds if row else None),
        notes=weights.notes,
    )  # fmt: skip


def _open_folder(folder: Path, model: str | None) -> Origin:
    if model:
        raise UserError(f"{folder}: --model is for files of weights; an artifact says it itself")
    place = artifact.locate_artifact(folder)
    stored = artifact.read_artifact(place)
    described = stored.config.model
    return Origin(
        name=described.name,
        config=described.architecture,
        tensors=stored.state_dict,
        what="an artifact",
        source={"artifact": place.name, "sha256": digest(place / artifact.WEIGHTS, "sha256")},
        known=stored.config,
    )


# How it is used -----------------------------------------------------------------------------


def _use(origin: Origin, options: ConvertOptions) -> tuple[Preprocessing, Task]:
    """What is given; else what the artifact or the published table says."""
    name = options.preprocessing
    if name is None and origin.known:
        return origin.known.preprocessing, origin.known.task
    if name is None and origin.row:
        name = origin.row.preprocessing
    if name is None:
        raise UserError(
            f"{origin.source['file']}: a file of weights does not say how its images were scaled, "
            f"nor does the table of published weights by its checksum; give --preprocessing "
            f"{'|'.join(published.PREPROCESSINGS)}, or a YAML file of resize, crop, mean, std, ..."
        )
    if name in published.PREPROCESSINGS:
        return published.PREPROCESSINGS[name], published.task_of(name)
    file = Path(name).expanduser()
    if not file.is_file():
        raise UserError(
            f"--preprocessing {name}: neither a file nor a name"
            f"{nearest(name, published.PREPROCESSINGS)}"
        )
    return build(Preprocessing, read_yaml(file)), "multiclass"


def _classes(
    config: DenseNetConfig, origin: Origin, options: ConvertOptions, new_head: bool
) -> tuple[str, ...]:
    """A name for each output; a new head's are numbers until they are named."""
    count, given = config.num_classes, options.classes
    if given is None and new_head:
        return tuple(map(str, range(count)))
    if given is None and origin.known:
        return origin.known.classes
    if given is None and origin.row:
        given = {1000: "imagenet", 18: "torchxrayvision"}.get(origin.row.num_classes)
    if given is None:
        raise UserError(
            f"{origin.source['file']}: a file of weights does not name its {count} classes; give "
            f"--classes {'|'.join(CLASSES)}, or a file of `label name` lines"
        )
    if given == "torchxrayvision":
        names = published.XRAY_CLASSES
    elif given == "imagenet":
        weights = torchvision.models.get_model_weights("densenet121")
        names = tuple(weights["IMAGENET1K_V1"].meta["categories"])
    elif Path(given).expanduser().is_file():
        return tuple(names_by_output(Path(given).expanduser(), count, f"--classes {given}"))
    else:
        raise UserError(f"--classes {given}: neither a file nor a name{nearest(given, CLASSES)}")
    if len(names) != count:
        raise UserError(f"--classes {given}: {len(names)} names for {count} outputs")
    return names
