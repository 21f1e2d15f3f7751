"""Weights into a network, whole or not at all; and where `pretrained` finds them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from densekit.config import UserError
from densekit.models import artifact
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.variants import VARIANTS
from densekit.weights import published
from densekit.weights.fetch import fetch
from densekit.weights.weights_file import BODY, StateDict, at_eps
from densekit.weights.weights_file import nearest_sibling as nearest_sibling
from densekit.weights.weights_file import read as read_file

HEAD = ("classifier.weight", "classifier.bias")


def start_from(model: DenseNet, pretrained: str) -> list[str]:
    """Loads what `model.pretrained` names into a network that is to be trained.

    Another class count makes a new head; a network without a head ignores the weights' own.
    Returns what a person should know. Raises UserError.
    """
    weights = find(pretrained, model.config)
    if model.config.num_classes == 0:
        weights = {name: tensor for name, tensor in weights.items() if name not in HEAD}
    if not load_into(model, weights, new_head=True):
        return []
    return [
        f"model.pretrained={pretrained}: a new head of {model.config.num_classes} classes; the "
        f"weights' own has {len(weights[HEAD[0]])}"
    ]


def find(pretrained: str, config: DenseNetConfig) -> StateDict:
    """The tensors of an artifact, a run's best/, a weights file, a URL, hf-hub:org/name, or a
    source in the published table for `config`; for the network's own BatchNorm epsilon.

    Raises UserError.
    """
    place = locate(pretrained, config)
    if not place.is_dir():
        return read_file(place).at_eps(config.bn_eps)
    stored = artifact.read(artifact.locate(place))
    return at_eps(stored.state_dict, stored.config.model.architecture.bn_eps, config.bn_eps)


def read(file: Path) -> StateDict:
    """Tensors by our names of a file of any format that `formats` reads, for epsilon 1e-5.

    Raises UserError.
    """
    return read_file(file).at_eps(1e-5)


def locate(pretrained: str, config: DenseNetConfig | None = None) -> Path:
    """The file or folder that `pretrained` names, fetched if need be; `config` picks a source's.

    Raises UserError.
    """
    if pretrained in published.SOURCES:
        if config is None:
            raise UserError(f"{pretrained}: has several DenseNets; give --model NAME")
        row = published.find(pretrained, _variant_of(config, pretrained))
        return fetch(row.url, row.checksum)
    if pretrained.startswith(("http://", "https://", "hf-hub:")):
        known = {row.url: row.checksum for row in published.PUBLISHED}
        return fetch(pretrained, known.get(pretrained))
    return Path(pretrained).expanduser()


def load_into(
    model: DenseNet, weights: StateDict, new_head: bool = False, shown: int | None = 5
) -> list[str]:
    """Copies every tensor into `model`, in the model's dtypes and memory format, or none.

    With `new_head` a classifier of another class count is left as it was initialised. Returns the
    names of the tensors so left. num_batches_tracked may be missing. Raises UserError that lists
    the tensors that are missing, unknown or of another shape: the first `shown` of each, or all.
    """
    own = model.state_dict()
    left = [name for name in HEAD if new_head and _differs(name, own, weights)]
    weights = {name: t for name, t in weights.items() if name not in left}
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    problems = [
        *_listed("missing", own.keys() - weights.keys() - counters - set(left), shown),
        *_listed("unknown", weights.keys() - own.keys(), shown),
        *_listed("of another shape", _misshapen(own, weights), shown),
        *_remedies(own, weights),
    ]
    if problems:
        raise UserError("the weights do not fit the model:\n  " + "\n  ".join(problems))
    model.load_state_dict(own | weights)
    return left


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


def _remedies(own: StateDict, weights: StateDict) -> list[str]:
    """What to set where the two ends are all that may differ."""
    found = []
    for name, axis, key in (
        ("features.conv0.weight", 1, "in_channels"),
        (HEAD[0], 0, "num_classes"),
    ):
        if name not in own:  # the head of a network without one
            continue
        theirs = weights.get(name, own[name]).shape
        if len(theirs) > axis and theirs[axis] != own[name].shape[axis]:
            found.append(f"these weights are for model.{key}={theirs[axis]}")
    return found
