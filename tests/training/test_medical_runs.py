"""A run of each task, from 16-bit grey images of patients to numbers that scikit-learn finds, too.

The images are CIFAR-10's, in grey of 16 bits. By rule: four images in a row of a seeded order are a
patient's. One class: plane, frog or truck. Several: Animal (bird to horse), Flies (plane, bird),
Wheels (car, truck), of which every tenth is unknown. Yes or no: planes among animals of the ground,
one image in twenty.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from PIL import Image

from densekit.data.config import Task
from runs import densekit

PER_PATIENT = 4
PARTS = {"Animal": ("bird", "cat", "deer", "dog", "frog", "horse"), "Flies": ("airplane", "bird"),
         "Wheels": ("automobile", "truck")}  # fmt: skip
ONE = {"airplane": "plane", "frog": "frog", "truck": "truck"}
ROUNDS = 30
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, and a CSV file for each task."""
    root = tmp_path_factory.mktemp("medical-runs")
    found: list[tuple[str, Image.Image]] = []
    with tarfile.open(test_data / "cifar10.tar.gz") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.isfile() and parts[1] == "val" and int(Path(parts[-1]).stem) % 12 == 0:
                content = archive.extractfile(member)
                assert content is not None
                found.append((parts[2], Image.open(io.BytesIO(content.read()))))
    heads = {"multiclass": "path,label,patient", "binary": "path,label,patient",
             "multilabel": f"path,patient,{','.join(PARTS)}"}  # fmt: skip
    rows: dict[str, list[str]] = {task: [] for task in heads}
    planes = 0
    for at, index in enumerate(np.random.default_rng(0).permutation(len(found)).tolist()):
        name, image = found[index]
        grey = np.asarray(image.convert("RGB"), np.float64) @ (0.299, 0.587, 0.114) * 257
        Image.fromarray(grey.round().astype(np.uint16)).save(root / f"{at}.png")
        start, patient = f"{at}.png,", f"p{at // PER_PATIENT}"
        cells = [str(int(name in of)) for of in PARTS.values()]
        if at % 10 == 0:
            cells[at // 10 % 3] = ""
        rows["multilabel"].append(f"{start}{patient},{','.join(cells)}")
        if name in ONE:
            rows["multiclass"].append(f"{start}{ONE[name]},{patient}")
        plane = name == "airplane" and 20 * planes < len(rows["binary"])
        if plane or name in PARTS["Animal"][1:]:
            planes += plane
            rows["binary"].append(f"{start}{'plane' if plane else 'none'},{patient}")
    for task, head in heads.items():
        (root / f"{task}.csv").write_text("\n".join([head, *rows[task]]) + "\n")
    return root


def ran(*words: str | Path, cwd: Path) -> str:
    done = densekit(*words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def evaluated(place: Path, task: Task) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `evaluate` says of a run's best epoch, and the answers that its report keeps."""
    options = [f"model.task={task}", f"name={task}", "data.intensity=full", "loop.epochs=5",
               "optim.lr=0.4", "data.workers=0", "loop.threads=1"]  # fmt: skip
    if task == "binary":
        options += ["data.classes=[plane]", "loop.class_weights=balanced"]
    words = [word for option in options for word in ("-o", option)]
    ran("train", "--data", f"{task}.csv", "--model", "densenet_bc_16_8", *words, cwd=place)
    text = ran(
        "evaluate", f"runs/{task}", "--report", f"{task}-report", "--workers", "0",
        "--bootstrap", str(ROUNDS), "--json", cwd=place,
    )  # fmt: skip
    found = json.loads(text)
    stored = json.loads((place / f"runs/{task}/best/config.json").read_text())["metrics"]
    assert {name: found[name] for name in stored} == stored, "best/ gives its metrics again"
    with np.load(place / f"{task}-report/predictions.npz") as saved:
        return found, dict(saved)


def resamples(groups: np.ndarray) -> list[np.ndarray]:
    """The images of each draw of whole patients."""
    names = np.unique(groups)
    source = np.random.Generator(np.random.PCG64(np.random.SeedSequence(0)))
    draws = source.integers(0, len(names), (ROUNDS, len(names)))
    own = [np.flatnonzero(groups == name) for name in names]
    return [np.concatenate([own[k] for k in draw]) for draw in draws]


def interval_of_auroc(true: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Of a class whose label may be unknown, -1."""
    areas = []
    for images in resamples(groups):
        known = images[true[images] >= 0]
        if len(set(true[known].tolist())) == 2:
            areas.append(sklearn.metrics.roc_auc_score(true[known], scores[known]))
    return np.percentile(areas, [2.5, 97.5])


def calibration_error(scores: np.ndarray, right: np.ndarray) -> float:
    """In 15 bins of equal width."""
    bins = np.minimum((scores * 15).astype(int), 14)
    gaps = [abs((right[bins == b] - scores[bins == b]).sum()) for b in range(15)]
    return sum(gaps) / len(scores)


def check_patients(found: dict[str, Any], saved: dict[str, np.ndarray], place: Path) -> None:
    """The saved groups are the files' patients, none of whom was trained on."""
    rows = (place / f"runs/{found['task']}/split.csv").read_text().splitlines()[1:]
    held = {path: group for path, side, group in (r.split(",") for r in rows) if side == "val"}
    trained = {group for _, side, group in (row.split(",") for row in rows) if side == "train"}
    assert held.keys() == set(saved["files"].tolist())
    assert not trained & set(held.values())
    numbers = zip(saved["files"].tolist(), saved["groups"].tolist(), strict=True)
    of = {(held[file], number) for file, number in numbers}
    assert len(of) == len(set(held.values())) == found["groups"] == saved["groups"].max() + 1
    assert found["group"] == "patient"


def test_one_class_an_image(place: Path) -> None:
    found, saved = evaluated(place, "multiclass")
    check_patients(found, saved, place)
    assert saved["classes"].tolist() == ["frog", "plane", "truck"]
    labels, scores = saved["labels"], scipy.special.softmax(saved["logits"].astype(float), 1)
    answers = scores.argmax(1)
    per_class = [
        (sklearn.metrics.roc_auc_score(labels == k, scores[:, k]),
         sklearn.metrics.average_precision_score(labels == k, scores[:, k]))
        for k in range(3)
    ]  # fmt: skip
    theirs = {
        "top1": sklearn.metrics.accuracy_score(labels, answers),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, answers),
        "f1": sklearn.metrics.f1_score(labels, answers, average="macro"),
        "auroc": sklearn.metrics.roc_auc_score(labels, scores, multi_class="ovr"),
        "average_precision": np.mean([each[1] for each in per_class]),
        "loss": sklearn.metrics.log_loss(labels, scores),
        "ece": calibration_error(scores.max(1), answers == labels),
    }
    assert {name: found[name] for name in theirs} == pytest.approx(theirs, rel=1e-9)
    assert found["auroc"] > 0.6, "the network must have learned something"
    assert found["confusion"] == sklearn.metrics.confusion_matrix(labels, answers).tolist()
    for k, row in enumerate(found["per_class"]):
        assert (row["auroc"], row["average_precision"]) == pytest.approx(per_class[k], rel=1e-9)
        wanted = interval_of_auroc((labels == k).astype(int), scores[:, k], saved["groups"])
        assert row["intervals"]["auroc"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_classes_that_are_there_or_not(place: Path, task: Task) -> None:
    found, saved = evaluated(place, task)
    check_patients(found, saved, place)
    assert saved["classes"].tolist() == (list(PARTS) if task == "multilabel" else ["plane"])
    scores = scipy.special.expit(saved["logits"].astype(float))
    means: dict[str, list[float]] = {}
    for k, row in enumerate(found["per_class"]):
        known = saved["labels"][:, k] >= 0
        true, own = saved["labels"][known, k], scores[known, k]
        alarms, hits, _ = sklearn.metrics.roc_curve(true, own, drop_intermediate=False)
        guesses = own >= row["threshold"]
        gained = guesses[true == 1].mean() - guesses[true == 0].mean()
        assert gained == pytest.approx((hits - alarms).max(), rel=1e-9), "youden"
        theirs = {
            "auroc": sklearn.metrics.roc_auc_score(true, own),
            "average_precision": sklearn.metrics.average_precision_score(true, own),
            "f1": sklearn.metrics.f1_score(true, guesses),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(true, guesses),
            "sensitivity_at_specificity": hits[1 - alarms >= 0.9].max(),
            "ece": calibration_error(own, true),
        }
        rates = {
            "sensitivity": sklearn.metrics.recall_score(true, guesses),
            "specificity": sklearn.metrics.recall_score(true, guesses, pos_label=0),
            "precision": sklearn.metrics.precision_score(true, guesses),
            "threshold": saved["thresholds"][k],
        }
        assert {name: row[name] for name in theirs | rates} == pytest.approx(
            theirs | rates, rel=1e-9
        )
        assert row["unknown"] == (~known).sum()
        for name, value in theirs.items():
            means.setdefault(name, []).append(value)
        wanted = interval_of_auroc(saved["labels"][:, k], scores[:, k], saved["groups"])
        assert row["intervals"]["auroc"] == pytest.approx(wanted, rel=1e-9)
    assert {name: found[name] for name in means} == pytest.approx(
        {name: np.mean(values) for name, values in means.items()}, rel=1e-9
    )
    right = np.where(saved["labels"] == 1, scores, 1 - scores)
    terms = np.where(saved["labels"] < 0, 0, -np.log(right))
    assert found["loss"] == pytest.approx(terms.mean(), rel=1e-6)
    assert found["auroc"] > 0.6, "the network must have learned something"
    if task == "binary":
        row = found["per_class"][0]
        assert 14 <= row["negatives"] / row["positives"] <= 26
