"""A part's memory is that of its rows, however many batches it has."""

from __future__ import annotations

import os
import sys
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import pytest
from torch import Tensor

from densekit.data.transforms import Preprocessing
from densekit.infer.classifier import Classifier
from densekit.infer.model import Opened
from densekit.infer.rows import Answer
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.score.run import ScoreOptions, score_all
from runs import Runs, forked

SIDE, BATCH_SIZE, SETTLED, BATCHES = 96, 32, 20, 100
NETWORK = DenseNetConfig(
    growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=7, image_size=SIDE
)
MIB = 1 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def scored(names: list[str], folder: Path) -> None:
    """Resident bytes before each batch of a single part."""
    answers, before = Classifier.answers, list[int]()

    def watched(classifier: Classifier, squares: Tensor, topk: int) -> list[list[Answer]]:
        before.append(resident())
        return answers(classifier, squares, topk)

    Classifier.answers = watched  # type: ignore[method-assign]
    seen = Preprocessing(resize=SIDE, crop=SIDE)
    opened = Opened("small", DenseNet(NETWORK).eval(), seen, classes=list("abcdefg"))
    (folder / "list.txt").write_text("\n".join(names))
    options = ScoreOptions(topk=1, batch_size=BATCH_SIZE, device="cpu")
    score_all(opened, [str(folder / "list.txt")], folder / "results", options)
    print(*before)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_does_not_grow_with_its_batches(runs: Runs, tmp_path: Path) -> None:
    digits = map(str, sorted(runs.data.glob("*.png")))
    names = [*islice(cycle(digits), BATCHES * BATCH_SIZE)]
    found = forked(partial(scored, names, tmp_path))
    before = [int(size) for size in found.stdout.split()]
    assert len(before) == BATCHES, found.stderr
    assert len([*(tmp_path / "results").glob("part-*")]) == 1
    what_it_read = 3 * SIDE * SIDE * BATCH_SIZE * (BATCHES - SETTLED)
    assert what_it_read > 64 * MIB
    assert before[-1] - before[SETTLED] < what_it_read / 4
