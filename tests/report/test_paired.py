"""paired.py and predictions.py: McNemar's test is scipy's, pairs are of the same images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import UserError
from densekit.infer.bootstrap import Resampling
from densekit.report.paired import compare_pair, mcnemar
from densekit.report.predictions import KeptAnswers, pack_answers, read_answers

N, K = 300, 4
COUNT = st.integers(0, 400)
Make = Callable[[str, float, int], KeptAnswers]


def one_class(name: str, signal: float, seed: int) -> KeptAnswers:
    """Answers that know their label more or less well; every network has the same labels."""
    labels = np.random.default_rng(0).integers(0, K, N)
    logits = np.random.default_rng(seed).normal(size=(N, K))
    logits[np.arange(N), labels] += signal
    files = np.array([f"{i}.png" for i in range(N)])
    return KeptAnswers(
        name, "multiclass", tuple("abcd"), files, labels, logits, np.full(K, 0.5)
    )  # fmt: skip


def several(name: str, signal: float, seed: int) -> KeptAnswers:
    """A tenth of the labels is unknown."""
    draw = np.random.default_rng(0)
    labels = (draw.random((N, K)) < 0.3).astype(np.int8)
    labels[draw.random((N, K)) < 0.1] = -1
    logits = np.random.default_rng(seed).normal(size=(N, K)) + signal * (labels == 1)
    plain = one_class(name, 0, 0)
    thresholds = np.array([0.5, 0.6, 0.7, np.nan])
    return replace(plain, task="multilabel", labels=labels, logits=logits, thresholds=thresholds)


@given(COUNT, COUNT)
def test_mcnemar_is_scipys_binomial_test(first: int, second: int) -> None:
    if first + second == 0:
        assert mcnemar(first, second) == 1
        return
    theirs = scipy.stats.binomtest(first, first + second).pvalue
    assert mcnemar(first, second) == pytest.approx(theirs, rel=1e-9)


def test_a_better_network_is_found_to_be_better() -> None:
    worse, better = one_class("worse", 1, 1), one_class("better", 2, 2)
    found = compare_pair(worse, better, Resampling(300))
    right = [each.logits.argmax(1) == each.labels for each in (worse, better)]
    (test,) = found["mcnemar"]
    assert test["only_first"] == (right[0] & ~right[1]).sum()
    assert test["only_second"] == (right[1] & ~right[0]).sum()
    assert test["p"] < 1e-6
    top1 = found["differences"]["top1"]
    assert top1["value"] == pytest.approx(right[1].mean() - right[0].mean())
    assert 0 < top1["interval"][0] < top1["value"] < top1["interval"][1]
    balanced = [sklearn.metrics.balanced_accuracy_score(each.labels, each.logits.argmax(1))
                for each in (worse, better)]  # fmt: skip
    difference = found["differences"]["balanced_accuracy"]["value"]
    assert difference == pytest.approx(balanced[1] - balanced[0])


def test_pairs_tell_more_than_two_intervals() -> None:
    """A network that differs in few answers: the interval of the difference is narrow."""
    first = one_class("first", 1.5, 1)
    logits = first.logits.copy()
    logits[:5] = first.logits[5:10]
    found = compare_pair(first, replace(first, name="second", logits=logits), Resampling(300))
    low, high = found["differences"]["top1"]["interval"]
    assert high - low < 0.04


def test_a_network_is_as_good_as_itself() -> None:
    for make in (one_class, several):
        first = make("first", 1, 1)
        found = compare_pair(first, replace(first, name="again"), Resampling(50))
        assert all(test["p"] == 1 for test in found["mcnemar"])
        for each in found["differences"].values():
            assert each == {"value": 0, "interval": [0, 0]}


def test_several_classes_are_tested_each_where_its_label_is_known() -> None:
    worse, better = several("worse", 0.5, 1), several("better", 2, 2)
    found = compare_pair(worse, better, None)
    assert [test["label"] for test in found["mcnemar"]] == ["a", "b", "c"]  # d has no threshold
    for k, test in enumerate(found["mcnemar"]):
        known = worse.labels[:, k] >= 0
        right = [
            (scipy.special.expit(each.logits[known, k]) >= each.thresholds[k])
            == (each.labels[known, k] == 1)
            for each in (worse, better)
        ]
        assert test["only_first"] == (right[0] & ~right[1]).sum()
        assert test["only_second"] == (right[1] & ~right[0]).sum()
    aurocs = [
        np.mean([sklearn.metrics.roc_auc_score(labels[known], logits[known])
                 for labels, logits in zip(each.labels.T, each.logits.T, strict=True)
                 for known in [labels >= 0]])
        for each in (worse, better)
    ]  # fmt: skip
    assert found["differences"]["auroc"]["value"] == pytest.approx(aurocs[1] - aurocs[0])


@pytest.mark.parametrize("make", [one_class, several])
def test_another_order_of_images_and_classes_changes_nothing(make: Make) -> None:
    first, second = make("first", 1, 1), make("second", 1.5, 2)
    images = np.random.default_rng(3).permutation(N)
    order = np.array([2, 0, 3, 1])
    labels = second.labels[images]
    turned = replace(
        second, files=second.files[images], logits=second.logits[images][:, order],
        labels=labels[:, order] if labels.ndim == 2 else np.argsort(order)[labels],
        classes=tuple(second.classes[k] for k in order), thresholds=second.thresholds[order],
    )  # fmt: skip
    found = [compare_pair(first, each, Resampling(20)) for each in (second, turned)]
    assert found[0] == found[1]


def test_patients_are_drawn_with_all_their_images() -> None:
    """Of either side's groups; the same resamples as numpy's."""
    groups = np.arange(N) // 6
    first, second = one_class("first", 1, 1), one_class("second", 1.2, 2)
    found = [
        compare_pair(a, b, Resampling(60, seed=4))
        for a, b in (
            (replace(first, groups=groups), replace(second, groups=groups)),
            (first, replace(second, groups=groups)),
        )
    ]
    assert found[0] == found[1]
    assert found[0]["groups"] == N // 6
    assert compare_pair(first, second, None)["groups"] is None
    draws = np.random.Generator(np.random.PCG64(np.random.SeedSequence(4)))
    right = [each.logits.argmax(1) == each.labels for each in (first, second)]
    gains = (right[1].astype(int) - right[0]).reshape(-1, 6).mean(1)
    means = gains[draws.integers(0, N // 6, (60, N // 6))].mean(1)
    wanted = np.percentile(means, [2.5, 97.5])
    assert found[0]["differences"]["top1"]["interval"] == pytest.approx(wanted, abs=1e-12)


def test_what_cannot_be_compared_is_a_sentence() -> None:
    first = one_class("first", 1, 1)
    cut = replace(first, files=first.files[1:], labels=first.labels[1:], logits=first.logits[1:])
    with pytest.raises(UserError, match=r"not asked about the same images .*299 and 300"):
        compare_pair(first, cut, None)
    with pytest.raises(UserError, match="the same images with other labels"):
        compare_pair(first, replace(first, labels=first.labels[::-1].copy()), None)
    with pytest.raises(UserError, match="do not answer the same question"):
        compare_pair(first, several("b", 1, 1), None)


@pytest.mark.parametrize("make", [one_class, several])
def test_answers_are_read_as_they_were_written(tmp_path: Path, make: Make) -> None:
    first, file = make("first", 1, 1), tmp_path / "predictions.npz"
    file.write_bytes(pack_answers(first))
    again = read_answers("first", file)
    assert (again.task, again.classes) == (first.task, first.classes)
    for key in ("files", "labels", "logits", "thresholds"):
        np.testing.assert_array_equal(getattr(again, key), getattr(first, key))
    assert again.groups is None
    file.write_bytes(pack_answers(replace(first, groups=np.arange(N) // 2)))
    np.testing.assert_array_equal(read_answers("first", file).groups, np.arange(N) // 2)
    file.write_bytes(pack_answers(first)[:100])
    with pytest.raises(UserError, match="cannot be read"):
        read_answers("first", file)
