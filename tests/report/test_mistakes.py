"""mistakes.py: every mistake is found, the most confident ones are shown, with their maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from judged import FP32, NAMES, answered

from densekit.data.config import Task
from densekit.infer.classifier import Classifier
from densekit.report.mistakes import Mistake, find_mistakes, most_confident, show_mistakes


def test_of_one_class_an_image(tmp_path: Path) -> None:
    of = answered(tmp_path, "multiclass")
    found = find_mistakes(of)
    assert len(found) == round((1 - of.found["top1"]) * len(of.examples)) > 0
    for each in found:
        said, true = each.classes
        assert of.examples.labels[each.image] == true != said
        assert each.said == f"said {NAMES[said]}"
        assert each.confidence == of.probabilities[each.image].max()
    assert found == sorted(found, key=lambda each: -each.confidence)


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_of_several_classes(tmp_path: Path, task: Task) -> None:
    of = answered(tmp_path, task)
    found = {(each.image, *each.classes): each for each in find_mistakes(of)}
    labels = of.examples.labels
    wrong = (labels >= 0) & ((of.probabilities >= of.thresholds) != (labels == 1))
    assert set(found) == set(zip(*(axis.tolist() for axis in np.nonzero(wrong)), strict=True))
    for (image, k), each in found.items():
        assert each.missed == (labels[image, k] == 1)
        sure = of.probabilities[image, k]
        assert each.confidence == (1 - sure if each.missed else sure)


@pytest.mark.parametrize(
    ("alarms", "misses"), [(20, 20), (20, 2), (2, 20), (0, 20), (20, 0), (1, 1)]
)
def test_half_are_misses_where_there_are_as_many(alarms: int, misses: int) -> None:
    each = [Mistake(i, "", "", (0,), 1 / (i + 1)) for i in range(alarms)]
    each += [Mistake(i, "", "", (0,), 1 / (i + 1), missed=True) for i in range(misses)]
    found = most_confident(each, 12)
    assert len(found) == min(12, alarms + misses)
    missed = sum(one.missed for one in found)
    assert missed == min(misses, max(6, 12 - alarms))


@pytest.mark.parametrize("maps", [True, False])
def test_pictures_are_what_the_network_saw(tmp_path: Path, maps: bool) -> None:
    of = answered(tmp_path, "multiclass")
    mistakes = find_mistakes(of)[:2]
    shown = list(show_mistakes(of, Classifier(of.opened, FP32), mistakes, maps))
    assert [each.mistake for each in shown] == mistakes
    for each in shown:
        assert each.file == f"{each.mistake.image}.png"
        titles = [NAMES[k] for k in each.mistake.classes] if maps else []
        assert [view.title for view in each.pictures] == ["as the network sees it", *titles]
        numbers = [of.probabilities[each.mistake.image, k] for k in each.mistake.classes]
        said = [f"{number:.1%}" for number in numbers] if maps else []
        assert [view.number for view in each.pictures[1:]] == said
