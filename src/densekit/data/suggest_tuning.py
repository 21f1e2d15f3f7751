"""`densekit train --data FOLDER -o model.pretrained=...`: settings for fine-tuning, with reasons.

Chosen unless an option says otherwise:
- The head is new and random, so the first epoch trains it alone: its gradients would damage the
  pretrained weights (Howard and Ruder, 2018).
- Earlier blocks are more general, so their learning rates are lower: optim.layer_decay (that paper
  divides by 2.6 from layer to layer; a DenseNet's parts are its few blocks, and we divide by 2).
- AdamW at a 30th of the rate for training from scratch, and a third of the epochs.
- With few images, BatchNorm keeps its statistics (optim.freeze_norm), as in Keras' guide to
  fine-tuning: small batches of few images are a poor sample.
"""

from __future__ import annotations

from densekit.config import Tree

TUNING_RATES = {"adamw": 3e-4, "adam": 3e-4, "sgd": 0.01, "rmsprop": 1e-4}
"""Of the last block, at the suggested batch size."""
HEAD_TIMES = 3  # the head's rate as a multiple
LAYER_DECAY = 0.5
FEW_TO_TUNE = 5000  # images; with fewer, BatchNorm keeps its statistics
TUNING_EPOCHS = 60  # epochs at most
HEAD_FIRST = 3  # epochs; runs of at least as many train the head alone in the first


ASKED: dict[str, type] = {
    "optim.name": str,
    "optim.lr": float,
    "optim.freeze": str,
    "optim.freeze_norm": bool,
    "optim.head_epochs": int,
    "optim.head_lr": float,
    "optim.layer_decay": float,
    "model.sync_bn": bool,
    "loop.epochs": int,
}
"""The user's options on which other choices, or their reasons, depend."""


def tuning_settings(images: int, batch: int, epochs: int, asked: Tree) -> tuple[Tree, list[str]]:
    """Settings for fine-tuning on `images` training images, and sentences that say why.

    `epochs` is what training from scratch would take; `asked` has the user's values for ASKED, None
    if not given.
    """
    name = str(asked["optim.name"] or "adamw")
    suggested = TUNING_RATES.get(name, TUNING_RATES["adamw"])
    rate = asked["optim.lr"] or suggested
    third = min(max(epochs // 3, HEAD_FIRST), TUNING_EPOCHS)
    run = asked["loop.epochs"] or third
    optim: Tree = {
        "name": name,
        "lr": suggested,
        "head_lr": HEAD_TIMES * rate,
        "layer_decay": LAYER_DECAY,
        "head_epochs": int(run >= HEAD_FIRST),
        "freeze_norm": images < FEW_TO_TUNE and not asked["model.sync_bn"],
        "reference_batch": batch,
        "schedule": "cosine",
        "warmup_epochs": run // 20,
    }
    if name == "sgd":
        optim["nesterov"] = True
    return {"optim": optim, "loop": {"epochs": third}}, [
        f"model.pretrained: loop.epochs={run}, optim.name={name} at optim.lr={rate:g}: pretrained "
        f"weights need fewer epochs and lower rates than new ones",
        *_reasons(images, optim, asked),
    ]


def _reasons(images: int, optim: Tree, asked: Tree) -> list[str]:
    """A sentence on each setting that the user did not decide."""
    reasons = {
        "layer_decay": f"optim.layer_decay={LAYER_DECAY}: each block learns at half the rate of "
        f"the one after it, since the first see edges, which stay the same",
        "head_lr": f"optim.head_lr={optim['head_lr']:g}: the head is new and learns faster",
        "head_epochs": "optim.head_epochs=1: the first epoch trains the head alone, since it is "
        "random and would damage the pretrained weights",
        "freeze_norm": f"optim.freeze_norm=true: with {images} training images, batches are a poor "
        f"sample, so BatchNorm keeps its statistics; set it to false if the images look unlike "
        f"those of pretraining",
    }
    head_alone = asked["optim.freeze"] == "norm5"
    return [
        why
        for key, why in reasons.items()
        if optim[key] and asked[f"optim.{key}"] is None and (key == "head_lr" or not head_alone)
    ]
