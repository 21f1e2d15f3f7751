"""card.py: what a model card says is what the artifact says."""

from __future__ import annotations

import pytest
import yaml
from scipy.stats import binomtest

from densekit.hub.card import hub_card, is_untouched, wilson
from densekit.models.artifact import ArtifactConfig, Described, Preprocessing, Task
from densekit.models.densenet import DenseNetConfig

CONFIG = ArtifactConfig(
    model=Described(name="tiny", architecture=DenseNetConfig(num_classes=2, block_config=(1,))),
    preprocessing=Preprocessing(),
    classes=("cat", "a|b <i>`dog`"),
    metrics={"count": 1000, "top1": 0.991, "top5": 1.0, "loss": 0.04},
    data={"root": "/home/anna/secret/pets"},
)


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (991, 1000), (5, 5), (1, 2)])
def test_intervals_are_scipys(hits: int, count: int) -> None:
    theirs = binomtest(hits, count).proportion_ci(0.95, "wilson")
    assert wilson(hits / count, count) == pytest.approx(tuple(theirs), abs=1e-6)


def test_a_card_has_the_metrics_and_no_folder_of_the_machine() -> None:
    text = hub_card(CONFIG, "org/pets", "mit")
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "mit"
    assert front["library_name"] == "densekit"
    values = [m["value"] for m in front["model-index"][0]["results"][0]["metrics"]]
    assert values == [0.991, 1.0]
    assert "| accuracy (top-1) | 0.9910 | 0.9830 to 0.9953 |" in text
    assert "cat, a\\|b &lt;i>'dog'" in text
    assert 'densekit.load("hf-hub:org/pets")' in text
    assert "secret" not in text


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "binary"])
def test_every_task_has_a_sentence(task: Task) -> None:
    assert "for each image" in hub_card(CONFIG.model_copy(update={"task": task}), "o/n", None)


def test_an_edited_card_is_told_from_our_own() -> None:
    text = hub_card(CONFIG, "org/pets", None)
    assert is_untouched(text)
    assert not is_untouched(text.replace("cat", "owl"))
    assert not is_untouched("# mine\n")
