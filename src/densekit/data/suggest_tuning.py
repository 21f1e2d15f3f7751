"""`densekit train --data FOLDER -o model.pretrained=...`: how a network is fine-tuned, and why.

What is chosen where no option says otherwise:

- The head is new, and random: it is trained alone for the first epoch, or its gradients would
  wreck what the body knows (Howard and Ruder, 2018).
- Earlier blocks are more general, so their rates are lower: optim.layer_decay (the same paper
  divides by 2.6 from layer to layer; a DenseNet's parts are its few blocks, and 2 is taken).
- AdamW at a rate a 30th of what training from scratch takes, a third of the epochs.
- Of few images BatchNorm keeps its statistics (optim.freeze_norm), as Keras' guide to fine-tuning
  has it: small batches of few images are a poor sample.
"""

from __future__ import annotations

from densekit.config import Tree

TUNING_RATES = {"adamw": 3e-4, "adam": 3e-4, "sgd": 0.01, "rmsprop": 1e-4}
"""Of the last block, at the suggested batch."""
HEAD_TIMES = 3  # times that
LAYER_DECAY = 0.5
FEW_TO_TUNE = 5000  # images, below which BatchNorm keeps its statistics
TUNING_EPOCHS = 60  # epochs
HEAD_FIRST = 3  # epochs of a run, from which on the first one is the head's alone


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
"""The user's options that decide what else is chosen, or what is said of it."""


def tuning_settings(images: int, batch: int, epochs: int, asked: Tree) -> tuple[Tree, list[str]]:
    """Settings for fine-tuning on so many training images, and sentences that say why.

    `epochs` are those that training from scratch would take; `asked` is what the user's options say
    of ASKED, None of what they leave out.
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
        f"model.pretrained: loop.epochs={run}, optim.name={name} at optim.lr={rate:g}: weights "
        f"that know much already need fewer epochs and lower rates than new ones",
        *_reasons(images, optim, asked),
    ]


def _reasons(images: int, optim: Tree, asked: Tree) -> list[str]:
    """A sentence on each setting that nothing typed decides."""
    reasons = {
        "layer_decay": f"optim.layer_decay={LAYER_DECAY}: each block learns at half the rate of "
        f"the one after it, since the first see edges, which stay the same",
        "head_lr": f"optim.head_lr={optim['head_lr']:g}: the head is new and learns faster",
        "head_epochs": "optim.head_epochs=1: the first epoch trains the head alone, which is "
        "random and would wreck the others",
        "freeze_norm": f"optim.freeze_norm=true: of {images} training images batches are a poor "
        f"sample, so BatchNorm keeps its statistics; set it to false if the images look unlike "
        f"those that the weights come from",
    }
    head_alone = asked["optim.freeze"] == "norm5"
    return [
        why
        for key, why in reasons.items()
        if optim[key] and asked[f"optim.{key}"] is None and (key == "head_lr" or not head_alone)
    ]
