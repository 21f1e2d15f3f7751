"""Weights into a network, whole or not at all; and where `pretrained` finds them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from densekit.config import UserError
from densekit.models import artifact, variants
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.variants import VARIANTS, ModelConfig
from densekit.weights import layouts, published, weights_file
from densekit.weights.fetch import fetch
from densekit.weights.weights_file import BODY, StateDict, at_eps

HEAD = ("classifier.weight", "classifier.bias")
STEM = "features.conv0.weight"


def create_network(config: ModelConfig, with_head: bool = True) -> tuple[DenseNet, list[str]]:
    """The network of a recipe's model section with the weights that it names, or initial ones; and
    what a person should know of these. Raises UserError.
    """
    model = variants.create(config, with_head)
    if config.pretrained is None:
        return model, []
    return model, start_from(model, config.pretrained)


def start_from(model: DenseNet, pretrained: str) -> list[str]:
    """Loads what `model.pretrained` names into a network that is to be trained.

    Weights of another class count, or without a class head, leave the network's own; a network
    without a head ignores the weights'. Returns what a person should know. Raises UserError.
    """
    found = find_weights(pretrained, model.config)
    origin = f"model.pretrained={pretrained}"
    try:
        loaded = load_into(model, found.tensors, new_head=True)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    said = [*found.notes, *(f"{origin}: {note}" for note in loaded.notes)]
    if loaded.new_head:
        theirs = len(found.tensors[HEAD[0]]) if HEAD[0] in found.tensors else "none"
        said.append(
            f"{origin}: a new head of {model.config.num_classes} classes; the weights' own has "
            f"{theirs}"
        )
    return said


@dataclass(frozen=True)
class FoundWeights:
    """Tensors by our names."""

    tensors: StateDict
    notes: tuple[str, ...] = ()
    """What a person should know of how they were read."""


def find_weights(pretrained: str, config: DenseNetConfig) -> FoundWeights:
    """What `pretrained` names, see Place, for the network's own BatchNorm epsilon.

    Raises UserError.
    """
    place = locate_weights(pretrained, config)
    if not place.path.is_dir():
        return read_pretrained(place, config.bn_eps)
    stored = artifact.read_artifact(artifact.locate_artifact(place.path))
    own = stored.config.model.architecture.bn_eps
    return FoundWeights(at_eps(stored.state_dict, own, config.bn_eps))


def read_pretrained(place: Place, bn_eps: float = 1e-5) -> FoundWeights:
    """A file of any format that weights_file reads. Raises UserError."""
    weights = weights_file.read_weights(place.path, place.key)
    return FoundWeights(weights.at_eps(bn_eps), weights.notes)


@dataclass(frozen=True)
class Place:
    """An artifact's or run's folder, or a file of weights; of a checkpoint that holds several
    networks, the one under `key`."""

    path: Path
    key: str | None = None


def locate_weights(pretrained: str, config: DenseNetConfig | None = None) -> Place:
    """The file or folder that `pretrained` names, fetched if need be: a path, a URL,
    hf-hub:org/name, or a source in the published table, of which `config` picks the row. The
    first three may end in #KEY.

    Raises UserError.
    """
    if pretrained in published.SOURCES:
        names = [row.model for row in published.PUBLISHED if row.source == pretrained]
        if config is None and len(names) > 1:
            raise UserError(f"{pretrained}: has several DenseNets; give --model NAME")
        name = names[0] if config is None else _variant_of(config, pretrained)
        row = published.find_published(pretrained, name)
        return Place(fetch(row.url, row.checksum))
    if not pretrained.startswith(("http://", "https://", "hf-hub:")):
        return split_key(pretrained)
    url, _, key = pretrained.partition("#")
    known = {row.url: row.checksum for row in published.PUBLISHED}
    return Place(fetch(url, known.get(url)), key or None)


def split_key(path: str) -> Place:
    """FILE or FILE#KEY. Raises UserError for FOLDER#KEY."""
    whole = Path(path).expanduser()
    if "#" not in path or whole.exists():
        return Place(whole)
    name, _, key = path.rpartition("#")
    place = Place(Path(name).expanduser(), key)
    if place.path.is_dir():
        raise UserError(f"{path}: #{key} is for files of weights, and {name} is a folder")
    return place


@dataclass(frozen=True)
class Loaded:
    """How weights went into a network."""

    new_head: bool
    """The class head is the network's own, with random weights."""
    notes: tuple[str, ...] = ()


def load_into(
    model: DenseNet, weights: StateDict, new_head: bool = False, shown: int | None = 5
) -> Loaded:
    """Copies every tensor into `model`, in the model's dtypes and memory format, or none.

    With `new_head` a class head that is missing, or has another class count or several layers, is
    left as it was initialised. Colour and grey are converted to each other. num_batches_tracked
    may be missing. Raises UserError that lists the tensors that are missing, unknown, of another
    shape, or not finite: the first `shown` of each, or all.
    """
    own = model.state_dict()
    headless = HEAD[0] not in own  # num_classes=0
    made_new = new_head and not headless and any(
        name not in weights or _differs(name, own, weights) for name in HEAD
    )  # fmt: skip
    if made_new or (new_head and headless):
        weights = {name: t for name, t in weights.items() if not layouts.is_head(name)}
    weights, notes = _with_channels(weights, own)
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    left = set(HEAD) if made_new else set()
    problems = [
        *_listed("missing", own.keys() - weights.keys() - counters - left, shown),
        *_listed("unknown", weights.keys() - own.keys(), shown),
        *_listed("of another shape", _misshapen(own, weights), shown),
        *_remedies(own, weights, left),
    ]
    if problems:
        raise UserError("the weights do not fit the model:\n  " + "\n  ".join(problems))
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError("".join(_listed("the weights hold NaN or infinity", broken, shown)))
    model.load_state_dict(own | weights)
    return Loaded(made_new, notes)


def _with_channels(weights: StateDict, own: StateDict) -> tuple[StateDict, tuple[str, ...]]:
    """The stem for grey images from one for colour, or the other way: a grey image gives what the
    same image with three equal channels gives."""
    kernel, wanted = weights.get(STEM), own[STEM].shape
    if kernel is None or kernel.ndim != 4 or kernel.shape == wanted:
        return weights, ()
    if (kernel.shape[1], wanted[1]) == (3, 1):
        kernel, how = kernel.sum(1, keepdim=True), "3 channels, summed for 1"
    elif (kernel.shape[1], wanted[1]) == (1, 3):
        kernel, how = kernel.repeat(1, 3, 1, 1) / 3, "1 channel, repeated for 3 and divided by 3"
    else:
        return weights, ()
    return {**weights, STEM: kernel}, (f"the stem's kernel is for {how}",)


def _variant_of(config: DenseNetConfig, source: str) -> str:
    """The published variant whose body `config` has. Raises UserError."""
    names = [row.model for row in published.PUBLISHED if row.source == source]
    for name in names:
        if all(getattr(VARIANTS[name], key) == getattr(config, key) for key in BODY):
            return name
    raise UserError(
        f"{source} has weights for {', '.join(names)} only; give a file, or one of these as "
        f"model.name"
    )


def _differs(name: str, own: StateDict, weights: StateDict) -> bool:
    return name in weights and own[name].shape != weights[name].shape


def _misshapen(own: StateDict, weights: StateDict) -> list[str]:
    return [
        f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if _differs(name, own, weights)
    ]


def _listed(problem: str, names: Iterable[str], shown: int | None) -> list[str]:
    """One line for all of `names`: the first ones, and how many more."""
    names = sorted(names)
    more = f" and {len(names) - shown} more" if shown and len(names) > shown else ""
    return [f"{problem}: {', '.join(names[:shown])}{more}"] if names else []


def _remedies(own: StateDict, weights: StateDict, left: set[str]) -> list[str]:
    """What to do where only the two ends may differ."""
    found = []
    if set(HEAD) <= own.keys() - left - weights.keys() and weights.keys() & own.keys():
        found.append(
            "these weights have no class head that fits; densekit convert --new-head N makes one, "
            "and so does training from them (model.pretrained)"
        )
    for name, axis, key in (
        (STEM, 1, "in_channels"),
        (HEAD[0], 0, "num_classes"),
    ):
        if name not in own:  # the head of a network without one
            continue
        theirs = weights.get(name, own[name]).shape
        if len(theirs) > axis and theirs[axis] != own[name].shape[axis]:
            found.append(f"these weights are for model.{key}={theirs[axis]}")
    return found
