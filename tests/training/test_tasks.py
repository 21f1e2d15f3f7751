"""A run of each task from real digits to numbers that scikit-learn finds, too.

Several classes by a stated rule: odd digits, digits below four, threes; a tenth of the labels of
the second is unknown. Yes or no: threes against the others, thinned to one in twenty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image

from densekit.config import UserError
from densekit.infer.classifier import load
from densekit.infer.evaluate import evaluate_source
from densekit.infer.model import open_path
from densekit.precision import resolve
from densekit.training import curves
from densekit.training.loop import Outcome, train
from densekit.training.recipe import load_recipe
from densekit.training.rehearsal import rehearse
from runs import OPTIONS, Options, Runs, assert_same_run, digits, lines

NAMES = ("odd", "small", "three")
TRAIN = 400
OWN: Options = {
    "model.num_classes": "null",
    "model.drop_rate": 0,
    "data.batch_size": 40,
    "data.augment.flip": 0,
    "optim.reference_batch": 40,
    "optim.lr": 0.1,
    "loop.save_every": 100,
}


@pytest.fixture(autouse=True)
def _draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "draw", lambda *_: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv and val.csv of several classes; yes.txt and yes-val.txt of threes."""
    root = tmp_path_factory.mktemp("tasks")
    pixels, labels = digits()
    draw = np.random.default_rng(0)
    order = draw.permutation(len(labels))[: 2 * TRAIN]
    rows, threes, others = [], [], 0
    for at, index in enumerate(order.tolist()):
        label = int(labels[index])
        Image.fromarray(pixels[index].reshape(28, 28).astype(np.uint8)).save(root / f"{at}.png")
        there = [label % 2 == 1, label < 4, label == 3]
        cells = [str(float(each)) for each in there]
        cells[1] = "" if draw.random() < 0.1 else cells[1]
        rows.append(f"{at}.png,{'F' if at % 2 else 'M'},{','.join(cells)}\n")
        others += label != 3
        if label != 3 or others > 20 * sum(line.endswith("1\n") for line in threes):
            threes.append(f"{at}.png {int(label == 3)}\n")
    head = f"Path,Sex,{','.join(NAMES)}\n"
    half = len(threes) // 2
    for name, part, few in (("", slice(TRAIN), slice(half)),
                            ("val", slice(TRAIN, None), slice(half, None))):  # fmt: skip
        (root / f"{name or 'train'}.csv").write_text(head + "".join(rows[part]))
        (root / f"yes{'-val' if name else ''}.txt").write_text("".join(threes[few]))
    (root / "classes.txt").write_text("0 other\n1 three\n")
    return root


def options(data: Path, task: str) -> Options:
    files = ("train.csv", "val.csv") if task == "multilabel" else ("yes.txt", "yes-val.txt")
    own = {"data.root": data, "data.train": files[0], "data.val": files[1], "model.task": task}
    return {**OPTIONS, **OWN, **own}


def run(data: Path, folder: Path, task: str, **more: Any) -> Outcome:
    values = {**options(data, task), "loop.output_dir": folder}
    values |= {key.replace("__", "."): value for key, value in more.items()}
    before = torch.get_num_threads()
    try:
        return train(load_recipe(None, [f"{k}={v}" for k, v in values.items()]))
    finally:
        torch.set_num_threads(before)


def saved(folder: Path, data: Path, task: str) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities that `predict` writes, [n, K], and the labels of the files, read anew."""
    classifier = load(str(folder / "best"), "cpu")
    name = "val.csv" if task == "multilabel" else "yes-val.txt"
    text = (data / name).read_text().splitlines()
    if task == "multilabel":
        cells = [line.split(",") for line in text[1:]]
        labels = np.array([[float(c) if c else np.nan for c in row[2:]] for row in cells])
        files = [row[0] for row in cells]
    else:
        files = [line.split()[0] for line in text]
        labels = np.array([[float(line.split()[1])] for line in text])
    rows = classifier.predict([str(data / file) for file in files], batch_size=10)
    probs = np.zeros(labels.shape)
    for row, found in zip(probs, rows, strict=True):
        for answer in found["topk"]:
            row[answer["class"]] = answer["prob"]
            own = classifier.thresholds
            assert own is not None
            assert answer["positive"] == (answer["prob"] >= own[answer["class"]])
    return probs, labels


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_a_run_and_what_scikit_learn_says_of_it(data: Path, tmp_path: Path, task: str) -> None:
    more = {"loop__epochs": 4} | ({"data__balance": 1} if task == "binary" else {})
    outcome = run(data, tmp_path / "run", task, **more)
    opened = open_path(str(outcome.folder / "best"))
    assert opened.task == task
    assert opened.classes == (list(NAMES) if task == "multilabel" else ["three"])
    found = evaluate_source(opened, resolve("cpu", "fp32"), workers=0)
    probs, labels = saved(outcome.folder, data, task)
    areas = []
    for k, row in enumerate(found["per_class"]):
        known = ~np.isnan(labels[:, k])
        true, scores = labels[known, k], probs[known, k]
        guesses = scores >= row["threshold"]
        theirs = {
            "auroc": sklearn.metrics.roc_auc_score(true, scores),
            "average_precision": sklearn.metrics.average_precision_score(true, scores),
            "f1": sklearn.metrics.f1_score(true, guesses),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(true, guesses),
        }
        assert {name: row[name] for name in theirs} == pytest.approx(theirs, rel=1e-9)
        assert row["unknown"] == (~known).sum()
        areas.append(theirs["auroc"])
    assert np.mean(areas) > 0.6, "the network must have learned something"
    kept = outcome.progress.best
    for name in ("loss", "auroc", "average_precision", "f1", "balanced_accuracy"):
        assert found[name] == kept[name], "best/ gives its metrics again"
    right = np.where(labels == 1, probs, 1 - probs)
    terms = np.where(np.isnan(labels), 0, -np.log(right))  # an unknown one counts as 0
    assert found["loss"] == pytest.approx(terms.mean(), rel=1e-5)
    if task == "binary":
        assert 10 <= found["per_class"][0]["negatives"] / found["per_class"][0]["positives"] <= 30


def test_workers_and_a_kill_change_nothing(data: Path, runs: Runs, tmp_path: Path) -> None:
    own = {**options(data, "multilabel"), "data.balance": 0.5, "loop.class_weights": "[1, 2, 3]",
           "data.augment.mixup": 0.5, "loop.focal_gamma": 2, "loop.save_every": 3}  # fmt: skip
    whole = runs.train(tmp_path / "whole", own)
    other = runs.train(tmp_path / "workers", {**own, "data.workers": 1})
    assert_same_run(whole, other)
    killed = runs.killed(tmp_path / "killed", 7, own)
    assert_same_run(whole, runs.train(killed, own))
    assert [line for line in lines(whole) if line["kind"] == "train" and "top1" in line] == []
    *_, evaluated, _ = lines(whole)
    assert len(evaluated["thresholds"]) == 3


def test_patience_ends_a_run_and_a_longer_one_goes_on(data: Path, tmp_path: Path) -> None:
    still = {"optim__lr": 1e-12, "loop__epochs": 6, "loop__ema": 0}
    first = run(data, tmp_path / "run", "binary", **still, loop__patience=2,
                loop__monitor="balanced_accuracy", loop__threshold=0.0)  # fmt: skip
    # of a threshold of 0 the balanced accuracy is one half for ever
    assert (first.progress.epochs, first.progress.stale) == (3, 2)
    assert first.progress.best["epoch"] == 1
    again = run(data, tmp_path / "run", "binary", **still, loop__patience=2,
                loop__monitor="balanced_accuracy", loop__threshold=0.0)  # fmt: skip
    assert again.already_finished
    on = run(data, tmp_path / "run", "binary", **still, loop__patience=3,
             loop__monitor="balanced_accuracy", loop__threshold=0.0)  # fmt: skip
    assert on.progress.epochs == 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"loop__monitor": "top1"}, "loop.monitor=top1 needs model.task=multiclass"),
        ({"data__relabel": "true"}, "data.relabel"),
        ({"data__balance": 1, "loop__class_weights": "balanced"}, "together twice"),
        ({"loop__class_weights": "[1, 2]"}, "has 2 numbers for 3 classes"),
        ({"data__classes": "[odd, even]"}, "has no class 'even'"),
        ({"model__num_classes": 2}, "has 3 classes, but model.num_classes=2"),
    ],
)
def test_what_does_not_fit_the_task(data: Path, tmp_path: Path, more: dict, said: str) -> None:
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        run(data, tmp_path / "run", "multilabel", **more)


@pytest.mark.parametrize("option", ["loop.threshold=f1", "data.classes=[a]"])
def test_options_of_other_tasks_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=r"it needs model\.task=multilabel or binary"):
        load_recipe(None, [option])


def test_a_rehearsal(data: Path, tmp_path: Path) -> None:
    values = {**options(data, "multilabel"), "loop.output_dir": tmp_path / "run",
              "loop.class_weights": "balanced", "data.classes": "[three, odd]"}  # fmt: skip
    found = rehearse(load_recipe(None, [f"{k}={v}" for k, v in values.items()]))
    assert found.plan.classes == ["three", "odd"]
    weights = found.plan.recipe.loop.class_weights
    assert isinstance(weights, tuple)
    assert any("loop.class_weights: the loss counts three" in note for note in found.notes)
    counts = found.plan.counts
    assert weights == pytest.approx(tuple((TRAIN - counts) / counts))


@pytest.mark.slow
def test_monai_has_the_same_logits_and_loss(data: Path) -> None:
    """MONAI's own transforms and network, on the same files; its loss is torch's."""
    monai = pytest.importorskip("monai", reason="monai is not installed")
    from monai import losses, transforms

    from densekit.data.decode import decode
    from densekit.data.multilabel import Labelling
    from densekit.data.transforms import Preprocessing
    from densekit.models.variants import ModelConfig, create
    from densekit.training.loss import multilabel_loss

    examples = Labelling("multilabel").read_file(data / "val.csv", data).subset(range(16))
    seen = Preprocessing(channels=1, resize=None, crop=28, mean=(0.13,), std=(0.31,))
    ours = seen.normalize(torch.stack([seen(decode(path, 1)) for path in examples.paths]))
    reads = transforms.Compose([
        transforms.LoadImage(image_only=True, reverse_indexing=False),
        transforms.EnsureChannelFirst(),
        transforms.ScaleIntensityRange(0, 255, 0, 1),
        transforms.NormalizeIntensity(subtrahend=0.13, divisor=0.31),
    ])  # fmt: skip
    theirs = torch.stack([reads(path).as_tensor() for path in examples.paths])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.manual_seed(0)
    network = monai.networks.nets.DenseNet121(spatial_dims=2, in_channels=1, out_channels=3)
    own = create(ModelConfig(name="densenet121", num_classes=3, in_channels=1))
    own.load_state_dict(renamed(network.state_dict()))
    images = torch.nn.functional.interpolate(theirs, 64)
    with torch.inference_mode():
        logits, wanted = own.eval()(images), network.eval()(images)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    targets = torch.from_numpy((examples.labels == 1).astype(np.float32))
    weights = torch.tensor([1.0, 2.0, 9.0])
    loss = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(wanted, targets)
    found = multilabel_loss(logits, targets, weights=weights) / 16
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    focal = losses.FocalLoss(gamma=2.0, reduction="mean", use_softmax=False)(wanted, targets)
    assert (multilabel_loss(logits, targets, gamma=2) / 16).item() == pytest.approx(
        focal.item(), rel=1e-5
    )


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """MONAI's names to torchvision's."""
    names = {}
    for name in state:
        ours = name.replace(".layers.", ".").replace("class_layers.out", "classifier")
        names[ours] = state[name]
    return names
