"""multilabel_metrics.py against scikit-learn in float64, unknown labels left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor

from densekit.infer import multilabel_metrics as metrics
from densekit.infer.bootstrap import Resampling

K = 5


def answers(n: int = 400, unknown: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that know their labels, some of equal value; classes from half to one in twenty."""
    draw = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.5, 0.3, 0.2, 0.1, 0.05])
    labels = (torch.rand(n, K, generator=draw) < shares).to(torch.int8)
    logits = (torch.randn(n, K, generator=draw) + 1.5 * labels).mul(8).round() / 8
    labels[torch.rand(n, K, generator=draw) < unknown] = -1
    return logits, labels


def each(logits: Tensor, labels: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and labels of each class where these are known."""
    columns = []
    for k in range(K):
        known = labels[:, k] >= 0
        columns.append((logits[known, k].double().sigmoid().numpy(), labels[known, k].numpy()))
    return columns


@pytest.mark.parametrize("rule", ["youden", "f1", 0.3])
def test_report_is_scikit_learns(rule: str | float) -> None:
    logits, labels = answers()
    thresholds = metrics.choose_thresholds(logits, labels, rule)
    found = metrics.report(logits, labels, thresholds)
    rows = []
    for row, threshold, (scores, true) in zip(
        found["per_class"], thresholds, each(logits, labels), strict=True
    ):
        guesses = scores >= threshold
        recall = sklearn.metrics.recall_score(true, guesses)
        specificity = sklearn.metrics.recall_score(true, guesses, pos_label=0)
        alarms, hits, _ = sklearn.metrics.roc_curve(true, scores, drop_intermediate=False)
        theirs = {
            "auroc": sklearn.metrics.roc_auc_score(true, scores),
            "average_precision": sklearn.metrics.average_precision_score(true, scores),
            "f1": sklearn.metrics.f1_score(true, guesses),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(true, guesses),
            "sensitivity_at_specificity": hits[1 - alarms >= 0.9].max(),
            "precision": sklearn.metrics.precision_score(true, guesses),
            "sensitivity": recall,
            "specificity": specificity,
        }
        assert {name: row[name] for name in theirs} == pytest.approx(theirs, rel=1e-12)
        assert row["threshold"] == threshold
        assert row["positives"] == (true == 1).sum()
        assert row["negatives"] + row["positives"] + row["unknown"] == len(labels)
        rows.append(theirs)
    for name in metrics.NUMBERS[: metrics.MEANS]:
        assert found[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-12)


def test_the_loss_is_torchs_without_unknown_labels() -> None:
    logits, labels = answers(unknown=0)
    rows = [metrics.batch_sums(logits[i : i + 7], labels[i : i + 7]) for i in range(0, 400, 7)]
    truth = torch.nn.BCEWithLogitsLoss()(logits.double(), labels.double())
    assert metrics.summary(torch.stack(rows))["loss"] == pytest.approx(truth.item(), rel=1e-12)


def test_unknown_labels_count_nothing() -> None:
    logits, labels = answers()
    thresholds = [0.5] * K
    other = torch.where(labels < 0, logits + 7, logits)
    first, second = (metrics.report(x, labels, thresholds) for x in (logits, other))
    assert first == second
    sums = [metrics.batch_sums(x, labels) for x in (logits, other)]
    assert torch.equal(*sums)


def test_youden_is_the_best_of_all_thresholds() -> None:
    logits, labels = answers()
    chosen = metrics.choose_thresholds(logits, labels, "youden")
    for threshold, (scores, true) in zip(chosen, each(logits, labels), strict=True):
        alarms, hits, _ = sklearn.metrics.roc_curve(true, scores, drop_intermediate=False)
        guesses = scores >= threshold
        own = guesses[true == 1].mean() - guesses[true == 0].mean()
        assert own == pytest.approx((hits - alarms).max(), rel=1e-12)
        assert threshold not in scores, "halfway between two scores"


def test_a_class_of_one_kind_has_no_auroc_and_no_threshold() -> None:
    logits, labels = answers()
    labels[:, 0], labels[:, 1], labels[:, 2] = 0, 1, -1
    thresholds = metrics.choose_thresholds(logits, labels, "youden")
    assert thresholds[:3] == [None, None, None]
    found = metrics.report(logits, labels, thresholds, resampling=Resampling(20))
    rows = found["per_class"]
    assert [row["auroc"] for row in rows[:3]] == [None, None, None]
    assert rows[2]["ece"] is None
    assert rows[0]["intervals"]["auroc"] is None
    assert found["auroc"] == pytest.approx(np.mean([row["auroc"] for row in rows[3:]]))


def test_a_nan_leaves_only_counts() -> None:
    logits, labels = answers(n=50)
    logits[3, 0] = math.nan
    thresholds = metrics.choose_thresholds(logits, labels, "f1")
    found = metrics.report(logits, labels, thresholds)
    assert thresholds[0] is found["per_class"][0]["auroc"] is None
    assert found["per_class"][1]["auroc"] is not None
    assert math.isnan(metrics.batch_sums(logits, labels)[1])


def test_intervals_are_those_of_scikit_learn_on_resampled_images() -> None:
    logits, labels = answers(unknown=0)
    found = metrics.report(logits, labels, [0.5] * K, resampling=Resampling(200, seed=5))
    chunks = Resampling(200, seed=5)._chunks(metrics.strata_of(labels.numpy()), None, 10_000)
    (weights,) = chunks
    scores, true = logits.sigmoid().numpy(), labels.numpy()
    areas = [
        sklearn.metrics.roc_auc_score(true[:, 3], scores[:, 3], sample_weight=each)
        for each in weights
    ]
    low, high = np.percentile(areas, [2.5, 97.5])
    assert found["per_class"][3]["intervals"]["auroc"] == pytest.approx([low, high], rel=1e-9)
    assert low < found["per_class"][3]["auroc"] < high


def test_calibration_of_a_calibrated_network_is_small() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 1, generator=draw)
    labels = (torch.rand(20_000, 1, generator=draw) < logits.sigmoid()).to(torch.int8)
    assert metrics.report(logits, labels, [0.5])["ece"] < 0.02
    assert metrics.report(logits * 4, labels, [0.5])["ece"] > 0.1
