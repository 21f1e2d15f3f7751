"""Mixing: what comes out is what the labels say, and a function of the step's position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densekit.data.augment_config import AugmentConfig
from densekit.data.config import DataConfig
from densekit.data.mix import mixing

CLASSES = 7


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Image i is filled with the number i; its label is i mod 7."""
    images = torch.arange(12.0)[:, None, None, None].expand(12, 3, 20, 24).clone()
    return images, torch.arange(12) % CLASSES


def test_off_changes_and_draws_nothing(batch: tuple[Tensor, Tensor]) -> None:
    mix = mixing(DataConfig(), CLASSES)
    torch.manual_seed(0)
    first = torch.rand(())
    torch.manual_seed(0)
    images, labels = mix(*batch)
    assert images is batch[0]
    assert labels is batch[1]
    assert torch.rand(()) == first


def test_mixup_mixes_images_and_labels_by_one_share(batch: tuple[Tensor, Tensor]) -> None:
    mix = mixing(DataConfig(augment=AugmentConfig(mixup=1.0, mixup_alpha=1.0)), CLASSES)
    shares = []
    for seed in range(30):
        torch.manual_seed(seed)
        images, labels = mix(*batch)
        partner = torch.arange(12.0).roll(1)
        share = ((images[:, 0, 0, 0] - partner) / (torch.arange(12.0) - partner))[3]
        expected = torch.arange(12.0) * share + partner * (1 - share)
        torch.testing.assert_close(images[:, 0, 0, 0], expected, atol=1e-4, rtol=1e-4)
        one_hot = F.one_hot(batch[1], CLASSES).float()
        soft = one_hot * share + one_hot.roll(1, 0) * (1 - share)
        torch.testing.assert_close(labels, soft, atol=1e-4, rtol=1e-4)
        shares.append(float(share))
    assert min(shares) < 0.3
    assert max(shares) > 0.7


def test_cutmix_labels_are_the_areas(batch: tuple[Tensor, Tensor]) -> None:
    mix = mixing(DataConfig(augment=AugmentConfig(cutmix=1.0)), CLASSES)
    cut = 0
    for seed in range(20):
        torch.manual_seed(seed)
        images, labels = mix(*batch)
        for i in range(1, 12):
            own = (images[i, 0] == i).double().mean()
            assert set(images[i].unique().tolist()) <= {i, i - 1}
            expected = torch.zeros(CLASSES, dtype=torch.float64)
            expected[i % CLASSES] += own
            expected[(i - 1) % CLASSES] += 1 - own
            torch.testing.assert_close(labels[i].double(), expected, atol=1e-6, rtol=0)
            cut += own < 1
    assert cut > 100


def test_one_of_them_or_neither_by_their_probabilities(batch: tuple[Tensor, Tensor]) -> None:
    mix = mixing(DataConfig(augment=AugmentConfig(mixup=0.5, cutmix=0.3, mixup_alpha=1.0)), CLASSES)
    torch.manual_seed(0)
    kinds = []
    for _ in range(600):
        images, labels = mix(*batch)
        if not labels.is_floating_point():
            kinds.append("neither")
        else:
            whole = images[5].unique().numel() == 1 and images[5, 0, 0, 0] not in (4, 5)
            kinds.append("mixup" if whole else "cutmix")
    counts = {kind: kinds.count(kind) / 600 for kind in ("mixup", "cutmix", "neither")}
    assert abs(counts["mixup"] - 0.5) < 0.08
    assert abs(counts["cutmix"] - 0.3) < 0.08
    assert abs(counts["neither"] - 0.2) < 0.08


@pytest.mark.parametrize("images", [0, 1])
def test_an_empty_share_and_a_lonely_image(images: int) -> None:
    mix = mixing(DataConfig(augment=AugmentConfig(mixup=0.5, cutmix=0.5)), CLASSES)
    pixels, labels = mix(torch.ones(images, 3, 8, 8), torch.zeros(images, dtype=torch.int64))
    assert pixels.shape == (images, 3, 8, 8)
    loss = F.cross_entropy(torch.zeros(images, CLASSES), labels, reduction="sum")
    assert loss.item() == pytest.approx(images * np.log(CLASSES))


def test_soft_labels_and_smoothing_in_the_loss_are_the_definition() -> None:
    """Theirs pass the soft labels through a softmax; the definition does not."""
    rng = np.random.default_rng(0)
    logits, soft = rng.normal(size=(5, CLASSES)), rng.dirichlet(np.ones(CLASSES), 5)
    target = 0.9 * soft + 0.1 / CLASSES
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = F.cross_entropy(
        torch.tensor(logits), torch.tensor(soft), label_smoothing=0.1, reduction="sum"
    )
    assert loss.item() == pytest.approx(-(target * log_p).sum(), rel=1e-12)
