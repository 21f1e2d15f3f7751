"""Three training steps of PaddleClas' recipe, in Paddle and here, both in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.models.densenet import DenseNet
from densekit.training import optim
from densekit.training.optim import OptimConfig
from densekit.weights import keymaps, pretrained, weights_file

# Paddle hands these to its kernels as float32 whatever the weights are, so here they are rounded
MOMENTUM, DECAY = float(np.float32(0.9)), float(np.float32(1e-4))


def train_rows(depth: int, folder: Path) -> list[tuple[str, float, float]]:
    """(what, the largest relative difference, its bound), from what peer_paddle.py left."""
    data, theirs = (
        np.load(folder / "train.npz"),
        weights_file.read_weights(folder / "before.pdparams"),
    )
    _, config = weights_file.identify(theirs)
    model = DenseNet(config, op="reference").double().train()
    pretrained.load_into(model, theirs.tensors)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    sizes = _watch(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1 - MOMENTUM  # Paddle's is the share that stays
    losses, gradients = _train(model, data["images"], data["labels"])
    after = weights_file.read_weights(folder / "after.pdparams").tensors
    own = model.state_dict()
    steps = len(losses)
    unbiased = {}
    for name, values in sizes.items():
        old = MOMENTUM**steps * before[f"{name}.running_var"]  # what is left of the first values
        factor = values / (values - 1)
        unbiased[f"{name}.running_var"] = old + (after[f"{name}.running_var"] - old) * factor
    plain = [n for n in after if not n.endswith(("running_var", "running_mean"))]
    return [
        ("loss, each of 3 steps", _worst(losses, data["losses"]), 1e-9),
        ("gradients, first step", _of(gradients, _gradients(folder)), 1e-6),
        ("weights after 3 steps", _of({n: own[n] for n in plain}, after), 1e-6),
        ("running means after 3 steps",
         _of({n: own[n] for n in after if n.endswith("running_mean")}, after), 1e-6),
        ("running variances after 3 steps, Paddle's times n / (n - 1)",
         _of({n: own[n] for n in unbiased}, unbiased), 1e-6),
    ]  # fmt: skip


def _train(
    model: DenseNet, images: np.ndarray, labels: np.ndarray
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and the first step's gradients; PaddleClas' settings as densekit's sections."""
    batch, steps = len(labels[0]), len(labels)
    config = OptimConfig(
        lr=0.1, reference_batch=batch, milestones=(2,), gamma=0.1, momentum=MOMENTUM,
        weight_decay=DECAY,
    )  # fmt: skip
    optimizer = optim.create_optimizer(model, config, batch)
    losses, gradients = [], {}
    for step in range(steps):
        optim.set_lr(optimizer, optim.lr_factor(config, step, 1, steps))
        loss = F.cross_entropy(
            model(torch.from_numpy(images[step])), torch.from_numpy(labels[step])
        )
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            gradients = {
                n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
            }
        optimizer.step()
        optimizer.zero_grad()
    return losses, gradients


def _watch(model: DenseNet) -> dict[str, int]:
    """Filled in the forward pass: the values per channel that each norm sees."""
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda _, args, name=name: sizes.update({name: args[0].numel() // args[0].shape[1]})
            )
    return sizes


def _gradients(folder: Path) -> dict[str, Tensor]:
    """Paddle's, by our names and in our layout."""
    found = {}
    for name, gradient in np.load(folder / "gradients.npz").items():
        tensor = torch.from_numpy(gradient)
        ours = keymaps.PADDLE.ours(name)
        assert ours is not None, name
        found[ours] = tensor.T if tensor.ndim == 2 else tensor
    return found


def _of(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of a tensor, relative to that tensor's largest value."""
    assert own.keys() <= theirs.keys()
    return max(float((t - theirs[n]).abs().max() / theirs[n].abs().max()) for n, t in own.items())


def _worst(own: list[float], theirs: np.ndarray) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(own, theirs.tolist(), strict=True))
