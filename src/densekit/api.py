"""What a notebook calls."""

from __future__ import annotations

import warnings
from functools import partial

from densekit import distributed
from densekit.config import ConfigSource, UserError, build
from densekit.data.own_dataset import MapStyle, open_datasets
from densekit.infer.classifier import Classifier, load
from densekit.models import variants
from densekit.models.densenet import DenseNet
from densekit.models.variants import ModelConfig
from densekit.paddleclas.open import open_recipe
from densekit.report.end_of_run import report_run
from densekit.training.loop import Outcome
from densekit.training.loop import train as run
from densekit.weights.pretrained import create_network

__all__ = ["Classifier", "create_model", "list_models", "load", "train"]


def create_model(
    name: str = "densenet121",
    num_classes: int | None = None,
    in_channels: int = 3,
    drop_rate: float = 0.0,
    pretrained: str | None = None,
    overrides: dict[str, object] | None = None,
) -> DenseNet:
    """A DenseNet with torchvision's state_dict keys, [N, in_channels, H, W] -> [N, num_classes].

    `num_classes` None takes the variant's; 0 leaves the classifier out, so that the network gives
    pooled features [N, C] (`densekit.train` and artifacts need a classifier). `pretrained` is an
    artifact's folder, a file of weights of any library that `densekit convert` reads, a URL,
    "hf-hub:org/name", or "torchvision", "timm", "paddle", "keras"; another class count than the
    weights' makes a new head.
    `overrides` are fields of DenseNetConfig. Raises UserError for names, numbers and weights that
    do not fit.
    """
    tree: dict[str, object] = {
        "name": name,
        "num_classes": None if num_classes == 0 else num_classes,
        "in_channels": in_channels,
        "drop_rate": drop_rate,
        "pretrained": pretrained,
        "overrides": overrides or {},
    }
    config = build(ModelConfig, ConfigSource(tree, {(): "create_model"}))
    model, notes = create_network(config, with_head=num_classes != 0)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return model


def list_models() -> list[str]:
    """The names that `densekit models` lists."""
    return list(variants.VARIANTS)


def train(
    config: str | None = None,
    *options: str,
    train: MapStyle | None = None,
    val: MapStyle | None = None,
) -> Outcome:
    """Trains by a recipe's name or file, a PaddleClas file too, and dotted options, as
    `densekit train -c ... -o ...`.

    `train` and `val` are map-style Datasets of (image, label), in place of the recipe's images;
    without a `val` data.val_fraction of `train` is held out. An image is a PIL image or a uint8
    array or tensor [H, W, C], the same whenever it is asked for; a label is a number, or of
    model.task=multilabel 0, 1 or -1 (unknown) for each class. Raises UserError.
    """
    with distributed.session():
        opened = open_recipe(config, options)
        for note in opened.notes:
            warnings.warn(note, stacklevel=2)
        if train is None and val is not None:
            raise UserError("val=Dataset goes with train=Dataset")
        images = None if train is None else partial(open_datasets, train, val)
        outcome = run(opened.recipe, images)
        report_run(outcome)
        return outcome
