"""loss.py against torch's and torchvision's own losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torchvision.ops import sigmoid_focal_loss

from densekit.config import UserError
from densekit.data.listing import Examples
from densekit.training.loss import balanced_weights, make_loss, multiclass_loss, multilabel_loss
from densekit.training.recipe import LoopConfig

N, K = 32, 4
CPU = torch.device("cpu")
DRAW = torch.Generator().manual_seed(0)
LOGITS = torch.randn(N, K, generator=DRAW, dtype=torch.float64) * 3
LABELS = torch.randint(K, (N,), generator=DRAW)
THERE = torch.randint(2, (N, K), generator=DRAW).double()
WEIGHTS = torch.tensor([0.5, 1, 2, 7], dtype=torch.float64)
SOFT = torch.rand(N, K, generator=DRAW, dtype=torch.float64).softmax(1)


def examples(labels: np.ndarray) -> Examples:
    return Examples([""] * len(labels), labels, {}, "", "list.txt")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [LABELS, SOFT])
def test_focal_loss_of_no_gamma_is_cross_entropy(targets: torch.Tensor, smoothing: float) -> None:
    """By the formula of the focal one, at a gamma too small to matter."""
    truth = F.cross_entropy(LOGITS, targets, WEIGHTS, label_smoothing=smoothing, reduction="sum")
    how = {"weights": WEIGHTS, "smoothing": smoothing}
    assert multiclass_loss(LOGITS, targets, **how) == truth
    close = multiclass_loss(LOGITS, targets, **how, gamma=1e-12)
    assert close.item() == pytest.approx(truth.item(), rel=1e-9)


def test_focal_loss_is_lins() -> None:
    right = LOGITS.softmax(1)[range(N), LABELS]
    truth = (-((1 - right) ** 2) * right.log()).sum()
    assert multiclass_loss(LOGITS, LABELS, gamma=2).item() == pytest.approx(truth.item())
    truth = sigmoid_focal_loss(LOGITS, THERE, alpha=-1, gamma=2, reduction="sum") / K
    assert multilabel_loss(LOGITS, THERE, gamma=2).item() == pytest.approx(truth.item())


def test_multilabel_is_torchs() -> None:
    for weights in (None, WEIGHTS):
        truth = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(LOGITS, THERE) * N
        found = multilabel_loss(LOGITS, THERE, weights=weights)
        assert found.item() == pytest.approx(truth.item(), rel=1e-12)
    smooth = F.binary_cross_entropy_with_logits(LOGITS, THERE * 0.9 + 0.05) * N
    assert multilabel_loss(LOGITS, THERE, smoothing=0.1).item() == pytest.approx(smooth.item())


def test_an_unknown_label_moves_nothing() -> None:
    targets = THERE.clone()
    targets[:, 2] = math.nan
    logits = LOGITS.clone().requires_grad_()
    multilabel_loss(logits, targets, weights=WEIGHTS, gamma=2).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 2] == 0).all()
    assert (logits.grad[:, 0] != 0).all()


def test_gradients_are_finite_at_certain_answers() -> None:
    for gamma in (0.0, 1.0, 2.0):
        logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
        multiclass_loss(logits, torch.tensor([0]), gamma=gamma).backward()
        multilabel_loss(logits, torch.tensor([[1.0, 0.0]]), gamma=gamma).backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
    with pytest.raises(ValidationError, match="0, or 1 and more"):
        LoopConfig(focal_gamma=0.5)


def test_balanced_weights() -> None:
    labels = np.repeat([0, 1, 2], [10, 30, 20])
    found = balanced_weights(examples(labels))
    assert found == pytest.approx((2.0, 2 / 3, 1.0))  # scikit-learn's "balanced"
    several = np.array([[1, 0], [0, 0], [0, 1], [0, -1]], np.int8)
    assert balanced_weights(examples(several)) == (3.0, 2.0)
    with pytest.raises(UserError, match="one kind alone for the class 1"):
        balanced_weights(examples(np.array([[1, 0], [0, 0]], np.int8)))


def test_the_recipe_decides() -> None:
    config = LoopConfig(class_weights=(0.5, 1, 2, 7), focal_gamma=2, label_smoothing=0.1)
    how = {"weights": WEIGHTS, "gamma": 2.0, "smoothing": 0.1}
    found = make_loss(config, "multiclass", CPU)(LOGITS, LABELS)
    assert found.item() == pytest.approx(multiclass_loss(LOGITS, LABELS, **how).item())
    for task in ("multilabel", "binary"):
        found = make_loss(config, task, CPU)(LOGITS, THERE)
        assert found.item() == pytest.approx(multilabel_loss(LOGITS, THERE, **how).item())
