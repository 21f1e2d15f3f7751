"""metrics.py against numpy in float64, and against torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from densekit.infer import metrics
from densekit.infer.bootstrap import Resampling


def answers(n: int, num_classes: int, signal: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that know their label more or less well."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (n,), generator=generator)
    logits = torch.randn(n, num_classes, generator=generator)
    logits[torch.arange(n), labels] += signal
    return logits, labels


def numpy_softmax(logits: Tensor) -> np.ndarray:
    values = logits.numpy().astype(np.float64)
    exponentials = np.exp(values - values.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def numpy_place(logits: Tensor, labels: Tensor) -> np.ndarray:
    """Where a stable descending sort puts the label."""
    order = np.argsort(-logits.numpy(), axis=1, kind="stable")
    return np.argmax(order == labels.numpy()[:, None], axis=1)


CASES = [(10, 0.5), (10, 2.0), (10, 3.0), (1000, 3.0), (3, 0.2)]


@pytest.mark.parametrize(("num_classes", "signal"), CASES)
def test_summary_is_numpys(num_classes: int, signal: float) -> None:
    logits, labels = answers(997, num_classes, signal)
    rows = [metrics.batch_sums(logits[i : i + 64], labels[i : i + 64]) for i in range(0, 997, 64)]
    place = numpy_place(logits, labels)
    likelihood = np.log(numpy_softmax(logits)[np.arange(997), labels.numpy()])

    found = metrics.summary(torch.stack(rows))

    assert 0.2 < found["top1"] < 0.95, "the case must be able to show a mistake"
    assert found["count"] == 997
    assert found["top1"] == (place < 1).sum() / 997
    assert found["top5"] == (place < 5).sum() / 997
    assert found["loss"] == pytest.approx(-likelihood.mean(), rel=1e-12)


def test_summary_does_not_depend_on_who_had_which_batch() -> None:
    logits, labels = answers(101, 10, 2.0)
    rows = torch.stack(
        [metrics.batch_sums(logits[i : i + 1], labels[i : i + 1]) for i in range(101)]
    )
    shares = [torch.zeros_like(rows) for _ in range(3)]
    for batch, row in enumerate(rows):
        shares[batch % 3][batch] = row
    assert metrics.summary(shares[2] + shares[0] + shares[1]) == metrics.summary(rows)
    assert metrics.summary(rows.flip(0)) == metrics.summary(rows)


def test_equal_logits_go_to_the_smaller_class() -> None:
    logits = torch.zeros(8, 8)
    labels = torch.arange(8)
    assert metrics.correct(logits, labels).tolist() == [1, 5]


def test_a_row_with_a_nan_is_wrong() -> None:
    logits, labels = torch.eye(3) * 9, torch.arange(3)
    assert metrics.correct(logits, labels).tolist() == [3, 3]
    logits[0, 0] = math.nan  # the label's own
    logits[1, 0] = math.nan  # another class'
    assert metrics.correct(logits, labels).tolist() == [1, 1]
    assert math.isnan(metrics.batch_sums(logits, labels)[3])
    found = metrics.report(logits, labels, 3)
    assert found["confusion"] == [[0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert [row["recall"] for row in found["per_class"]] == [0, 0, 1]
    assert [row["count"] for row in found["per_class"]] == [1, 1, 1]
    assert found["ece"] is None
    assert found["auroc"] is None


@pytest.mark.parametrize(("num_classes", "signal"), CASES)
def test_report_is_numpys(num_classes: int, signal: float) -> None:
    logits, labels = answers(503, num_classes, signal, seed=1)
    probabilities, true = numpy_softmax(logits), labels.numpy()
    answered = numpy_place(logits, labels) == 0
    predicted = probabilities.argmax(1)
    confusion = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(confusion, (true, predicted), 1)

    found = metrics.report(logits, labels, num_classes)

    assert found["confusion"] == confusion.tolist()
    assert np.trace(confusion) == answered.sum()
    recalls = []
    for index, row in enumerate(found["per_class"]):
        hits, count = confusion[index, index], (true == index).sum()
        guesses = (predicted == index).sum()
        assert row["count"] == count
        assert row["precision"] == (hits / guesses if guesses else None)
        assert row["recall"] == (hits / count if count else None)
        recalls += [hits / count] if count else []
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls), rel=1e-12)
    assert found["ece"] == pytest.approx(numpy_ece(probabilities, true), rel=1e-12)
    assert found["auroc"] == pytest.approx(numpy_auroc(probabilities, true), rel=1e-12)


def numpy_ece(probabilities: np.ndarray, true: np.ndarray) -> float:
    confidence, right = probabilities.max(1), probabilities.argmax(1) == true
    total = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def numpy_auroc(probabilities: np.ndarray, true: np.ndarray) -> float:
    areas = []
    for index in np.unique(true):
        own, other = probabilities[true == index, index], probabilities[true != index, index]
        wins = (own[:, None] > other).sum() + (own[:, None] == other).sum() / 2
        areas.append(wins / (len(own) * len(other)))
    return float(np.mean(areas))


def test_report_agrees_with_torchmetrics() -> None:
    logits, labels = answers(2000, 12, 1.5, seed=2)
    found = metrics.report(logits, labels, 12)
    close = {"abs": 1e-5}  # torchmetrics adds in float32
    ece = multiclass_calibration_error(logits, labels, 12, n_bins=15)
    assert found["ece"] == pytest.approx(float(ece), **close)
    assert found["auroc"] == pytest.approx(float(multiclass_auroc(logits, labels, 12)), **close)
    confusion = multiclass_confusion_matrix(logits, labels, 12)
    assert found["confusion"] == confusion.tolist()
    macro = multiclass_accuracy(logits, labels, 12, average="macro")
    assert found["balanced_accuracy"] == pytest.approx(float(macro), **close)


def test_certain_answers_share_the_last_bin() -> None:
    logits = torch.tensor([[1000.0, 0.0], [1000.0, 0.0], [3.0, 0.0], [3.0, 0.0]])
    labels = torch.tensor([0, 0, 1, 1])  # confidence 1 and 0.953, right and wrong
    found = metrics.report(logits, labels, 2)
    confidence = (2 + 2 / (1 + math.exp(-3))) / 4
    assert found["ece"] == pytest.approx(confidence - 0.5, rel=1e-12)
    labels = torch.tensor([0, 1, 0, 0])  # certain and wrong, unsure and right: they make up
    theirs = multiclass_calibration_error(logits.double(), labels, 2, n_bins=15)
    assert theirs.dtype == torch.float32
    assert float(theirs) > metrics.report(logits, labels, 2)["ece"] + 0.04


def test_ties_are_half_a_win() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert metrics.report(logits, torch.tensor([0, 1, 1]), 2)["auroc"] == 0.75


def test_classes_without_images_are_left_out_of_the_means() -> None:
    logits = torch.tensor([[3.0, 0, 0, 0], [0, 3.0, 0, 0], [0, -1.0, 3.0, 0]])
    found = metrics.report(logits, torch.tensor([0, 1, 1]), 4)
    assert found["balanced_accuracy"] == 0.75
    assert found["auroc"] == (1.0 + 0.5) / 2
    rows = [(row["precision"], row["recall"], row["count"]) for row in found["per_class"]]
    assert rows == [(1.0, 1.0, 1), (1.0, 0.5, 2), (0.0, None, 0), (None, None, 0)]
    assert [row["auroc"] for row in found["per_class"]] == [1.0, 0.5, None, None]
    assert [row["f1"] for row in found["per_class"]] == [1.0, 2 / 3, 0.0, None]
    assert metrics.report(logits[:1], torch.tensor([0]), 4)["auroc"] is None


@pytest.mark.parametrize(("num_classes", "signal"), [(10, 2.0), (3, 0.2)])
def test_report_is_scikit_learns(num_classes: int, signal: float) -> None:
    logits, labels = answers(503, num_classes, signal, seed=3)
    scores, true = numpy_softmax(logits), labels.numpy()
    found = metrics.report(logits, labels, num_classes)
    close = {"rel": 1e-12}
    theirs = sklearn.metrics.roc_auc_score(true, scores, multi_class="ovr", average="macro")
    assert found["auroc"] == pytest.approx(theirs, **close)
    theirs = sklearn.metrics.average_precision_score(true, scores, average="macro")
    assert found["average_precision"] == pytest.approx(theirs, **close)
    theirs = sklearn.metrics.f1_score(true, scores.argmax(1), average="macro")
    assert found["f1"] == pytest.approx(theirs, **close)
    theirs = sklearn.metrics.balanced_accuracy_score(true, scores.argmax(1))
    assert found["balanced_accuracy"] == pytest.approx(theirs, **close)


def test_intervals_hold_the_numbers() -> None:
    logits, labels = answers(400, 4, 1.0, seed=4)
    found = metrics.report(logits, labels, 4, Resampling(rounds=300))
    again = metrics.report(logits, labels, 4, Resampling(rounds=300))
    assert found == again
    top1 = float((logits.argmax(1) == labels).double().mean())
    for name, value in {**found, "top1": top1}.items():
        if name in found["intervals"]:
            low, high = found["intervals"][name]
            assert low < value < high
            assert 0.02 < high - low < 0.15
    assert set(found["intervals"]) == {
        "top1", "balanced_accuracy", "f1", "auroc", "average_precision",
    }  # fmt: skip
