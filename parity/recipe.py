"""PaddleClas' DenseNet121.yaml trained by Paddle and, translated, by densekit: part of make parity.

The same weights, the same 20 batches, over the boundary at epoch 30, both in float64: every rate
must be the same number, every weight within 1e-4 of its tensor's largest. Paddle hands momentum
and decay to its kernels as float32, whose rounding alone grows to 4e-4 in these 20 steps, so here
they are rounded alike.

    python parity/recipe.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from densekit.models.densenet import DenseNet
from densekit.paddleclas.translate import load
from densekit.training import optim
from densekit.weights import pretrained, weights_file
from run import HERE, python_of
from training import DECAY, MOMENTUM

sys.path.insert(0, str(HERE.parent / "tests" / "paddleclas"))

from shipped import DENSENET121

FIRST, BOUND, CARDS = 20, 1e-4, 4
CLIP = 64.0  # Paddle's softmax on CPU reports no larger loss of an image


def main() -> int:
    """Prints what was compared; 1 if something is over its bound."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.check_call([python_of("paddle"), HERE / "peer_recipe.py", folder])
        (folder / "DenseNet121.yaml").write_text(DENSENET121, encoding="utf-8")
        rates, losses, weights = train(folder)
        theirs, after = (
            np.load(folder / "recipe.npz"),
            weights_file.read_weights(folder / "after.pdparams"),
        )
    same = rates == theirs["rates"].tolist()
    loss = float(np.abs(np.array(losses) - theirs["losses"]).max() / theirs["losses"].max())
    trained = [n for n in weights if "running" not in n and "num_batches" not in n]
    worst = max(
        float((weights[n] - after.tensors[n]).abs().max() / after.tensors[n].abs().max())
        for n in trained
    )
    print(f"learning rates of 20 steps, {rates[0]:g} to {rates[-1]:g}: "
          f"{'identical' if same else 'DIFFERENT'}")  # fmt: skip
    print(f"losses: {loss:.1e} of the largest")
    print(f"weights after 20 steps: {worst:.1e} (bound {BOUND:.0e})")
    return 0 if same and worst <= BOUND else 1


def train(folder: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Rates, losses and the last weights, by the translated recipe."""
    recipe = load(str(folder / "DenseNet121.yaml"), [], CARDS).recipe
    assert (recipe.optim.momentum, recipe.optim.weight_decay) == (0.9, 1e-4)
    data, theirs = (
        np.load(folder / "recipe.npz"),
        weights_file.read_weights(folder / "before.pdparams"),
    )
    _, config = weights_file.identify(theirs)
    model = DenseNet(config, op="reference").double().train()
    pretrained.load_into(model, theirs.tensors)
    rounded = {"momentum": MOMENTUM, "weight_decay": DECAY}
    optimizer = optim.create_optimizer(
        model, recipe.optim.model_copy(update=rounded), recipe.data.batch_size
    )
    rates, losses = [], []
    for step, (images, labels) in enumerate(zip(data["images"], data["labels"], strict=True)):
        factor = optim.lr_factor(recipe.optim, FIRST + step, 1, recipe.loop.epochs)
        rates.append(optim.set_lr(optimizer, factor))
        logits, targets = model(torch.from_numpy(images)), torch.from_numpy(labels)
        loss = F.cross_entropy(logits, targets, reduction="none")
        loss.mean().backward()
        losses.append(loss.detach().clamp(max=CLIP).mean().item())
        optimizer.step()
        optimizer.zero_grad()
    return rates, losses, model.state_dict()


if __name__ == "__main__":
    sys.exit(main())
