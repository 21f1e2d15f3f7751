"""classifier.py: rows for images of every kind, in order, whole in every format."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from densekit.config import UserError
from densekit.data.decode import content_of, decode
from densekit.data.transforms import Preprocessing
from densekit.infer.classifier import Classifier, load
from densekit.infer.inputs import image_names
from densekit.infer.rows import write_csv, write_json, write_text
from densekit.models import artifact
from densekit.models.artifact import ArtifactConfig, Described, Task
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.precision import Precision
from runs import WAIT

TINY = DenseNetConfig(
    growth_rate=4, block_config=(1, 2), num_init_features=8, stem="cifar", num_classes=7,
    image_size=24,
)  # fmt: skip
PREPROCESSING = Preprocessing(resize=28, crop=24)
CLASSES = ("ant", "bee", "cat", 'dog, "big"', "égret", "fox", "gnu")


def network() -> DenseNet:
    torch.manual_seed(3)
    model = DenseNet(TINY)
    model.classifier.weight.data *= 20  # probabilities that differ
    model(torch.randn(8, 3, 24, 24))
    return model.eval()


def write(folder: Path, task: Task = "multiclass") -> Path:
    config = ArtifactConfig(
        task=task,
        model=Described(name="tiny", architecture=TINY),
        preprocessing=PREPROCESSING,
        classes=CLASSES,
    )
    artifact.write_artifact(folder, config, network().state_dict())
    return folder


@pytest.fixture
def classifier(tmp_path: Path) -> Classifier:
    return load(write(tmp_path / "best"), device="cpu")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Eleven images of noise around a colour, of several sizes and kinds."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator, names = np.random.default_rng(0), []
    for i in range(11):
        colour = generator.integers(0, 200, 3)
        pixels = (colour + generator.integers(0, 56, (30 + 3 * i, 45 - i, 3))).astype(np.uint8)
        names.append(str(folder / f"{i:02d}.{('png', 'jpg', 'bmp')[i % 3]}"))
        Image.fromarray(pixels).save(names[-1])
    return names


def logits(file: str) -> np.ndarray:
    """By the network alone, one image at a time."""
    square = PREPROCESSING(decode(file, 3))
    with torch.inference_mode():
        return network()(PREPROCESSING.normalize(square[None]))[0].numpy().astype(np.float64)


def test_a_row_is_the_networks_answer(classifier: Classifier, files: list[str]) -> None:
    rows = classifier.predict(files, topk=3)
    assert [row["file"] for row in rows] == files
    winners = set()
    for row in rows:
        assert row["error"] is None
        assert list(row) == ["file", "topk", "error"]
        values = logits(str(row["file"]))
        probs = np.exp(values - values.max())
        probs /= probs.sum()
        order = np.argsort(-probs)[:3]
        assert [answer["class"] for answer in row["topk"]] == order.tolist()
        assert [answer["label"] for answer in row["topk"]] == [CLASSES[i] for i in order]
        assert [answer["prob"] for answer in row["topk"]] == pytest.approx(
            probs[order].tolist(), rel=1e-4
        )
        winners.add(row["topk"][0]["class"])
    assert len(winners) > 1, "a network that always answers the same shows nothing"


def test_the_limit_on_pixels(files: list[str], tmp_path: Path) -> None:
    folder = write(tmp_path / "best")
    (row,) = load(folder, device="cpu", max_pixels=100).predict(files[:1])
    assert "more than 100 pixels" in str(row["error"])
    assert load(folder, device="cpu").predict(files[:1])[0]["error"] is None


def test_files_that_would_be_seen_black_are_warned_of(
    classifier: Classifier, files: list[str], tmp_path: Path
) -> None:
    Image.fromarray(np.full((30, 30), 4000, np.uint16)).save(tmp_path / "xray.png")
    with pytest.warns(UserWarning, match=r"xray\.png: a 16-bit image .* 4000, 12 bits"):
        classifier.predict([*files, str(tmp_path / "xray.png")])


def test_rows_do_not_depend_on_the_batch(classifier: Classifier, files: list[str]) -> None:
    whole = classifier.predict(files, topk=7, batch_size=11)
    for batch_size in (1, 2, 4, 5, 64):
        rows = classifier.predict(files, topk=7, batch_size=batch_size)
        assert [row["file"] for row in rows] == files
        for row, other in zip(rows, whole, strict=True):
            probs = {a["class"]: a["prob"] for a in row["topk"]}
            others = {a["class"]: a["prob"] for a in other["topk"]}
            assert probs == pytest.approx(others, rel=1e-4)


def test_every_kind_of_input_gives_the_same_answer(
    classifier: Classifier, files: list[str]
) -> None:
    path = Path(files[0])  # a PNG
    image = Image.open(path)
    inputs = [str(path), path, path.read_bytes(), image, np.array(image)]
    rows = classifier.predict(inputs, batch_size=5)
    assert [row["file"] for row in rows] == [str(path), str(path), None, None, None]
    for row in rows:
        probs = [
            (answer["class"], pytest.approx(answer["prob"], rel=1e-4)) for answer in row["topk"]
        ]
        assert [(answer["class"], answer["prob"]) for answer in rows[0]["topk"]] == probs
    squares = [classifier.read_square(image) for image in inputs]
    assert all(torch.equal(square, squares[0]) for square in squares)  # type: ignore[arg-type]


def test_topk_is_at_most_the_classes(classifier: Classifier, files: list[str]) -> None:
    (row,) = classifier.predict(files[:1], topk=100)
    assert len(row["topk"]) == 7
    assert sum(answer["prob"] for answer in row["topk"]) == pytest.approx(1)
    assert len(classifier.predict(files[:1])[0]["topk"]) == 5
    assert classifier.predict([]) == []


def test_multilabel_is_a_sigmoid_each(tmp_path: Path, files: list[str]) -> None:
    (row,) = load(write(tmp_path / "many", "multilabel"), "cpu").predict(files[:1], topk=7)
    values = logits(files[0])
    expected = 1 / (1 + np.exp(-values))
    for answer in row["topk"]:
        assert answer["prob"] == pytest.approx(expected[answer["class"]], rel=1e-4)
    probs = [answer["prob"] for answer in row["topk"]]
    assert probs == sorted(probs, reverse=True)
    assert sum(probs) != pytest.approx(1)


def test_what_a_notebook_holds(classifier: Classifier) -> None:
    assert isinstance(classifier.model, DenseNet)
    assert not classifier.model.training
    assert classifier.classes == list(CLASSES)
    assert classifier.preprocess == PREPROCESSING


@pytest.mark.gpu
def test_a_gpu_answers_alike(classifier: Classifier, files: list[str], tmp_path: Path) -> None:
    gpu = load(tmp_path / "best", device="cuda")
    assert gpu.model.classifier.weight.is_cuda
    rows = zip(gpu.predict(files), classifier.predict(files), strict=True)
    for row, other in rows:
        assert row["topk"][0]["prob"] == pytest.approx(other["topk"][0]["prob"], abs=0.02)


# What goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_file_that_cannot_be_read_is_a_row(
    classifier: Classifier, files: list[str], tmp_path: Path, batch_size: int
) -> None:
    empty, text, half = tmp_path / "empty.jpg", tmp_path / "text.png", tmp_path / "half.jpg"
    empty.write_bytes(b"")
    text.write_text("hello")
    half.write_bytes(Path(files[1]).read_bytes()[:300])
    bad = {
        1: (str(empty), "is empty"),
        3: (str(tmp_path / "gone.png"), "there is no such file"),
        4: (str(text), "is not an image"),
        9: (str(half), "cannot be read as an image"),
    }
    mixed = list(files)
    for place, (name, _) in bad.items():
        mixed.insert(place, name)

    rows = classifier.predict(mixed, batch_size=batch_size)

    assert [row["file"] for row in rows] == mixed
    good = classifier.predict(files)
    assert [r["topk"][0]["class"] for r in rows if not r["error"]] == [
        r["topk"][0]["class"] for r in good
    ]
    for place, row in enumerate(rows):
        assert (row["error"] is not None) == (place in bad)
        if place in bad:
            assert row["topk"] == []
            assert bad[place][1] in str(row["error"])


def test_only_unreadable_files(classifier: Classifier, tmp_path: Path) -> None:
    rows = classifier.predict([str(tmp_path / "a.png"), b"not an image"])
    assert [row["file"] for row in rows] == [str(tmp_path / "a.png"), None]
    assert all(row["error"] and not row["topk"] for row in rows)


def test_answers_that_are_not_finite_are_errors(classifier: Classifier, files: list[str]) -> None:
    classifier.model.classifier.bias.data[2] = float("nan")
    (row,) = classifier.predict(files[:1])
    assert row["topk"] == []
    assert row["error"] == "the network's output is not finite"


def test_mistakes_of_the_caller(classifier: Classifier, files: list[str]) -> None:
    with pytest.raises(UserError, match="takes a list"):
        classifier.predict(files[0])
    with pytest.raises(UserError, match="uint8 array"):
        classifier.predict([np.zeros((8, 8, 3))])
    with pytest.raises(UserError, match="at least 1"):
        classifier.predict(files, topk=0)


# Files --------------------------------------------------------------------------------------


def test_a_folder_without_images_is_a_row(
    classifier: Classifier, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").touch()
    (tmp_path / "images/raw.nii").touch()
    asked = list(image_names([str(empty), str(tmp_path / "images")]))
    assert asked == [str(empty), *files]
    assert "images: left out as not images: 1 .nii" in capsys.readouterr().err
    rows = classifier.predict([*asked, tmp_path / "images"])
    assert [row["error"] for row in rows[1:-1]] == [None] * len(files)
    assert rows[0]["error"] == "is a folder without images, only 1 .txt"
    assert rows[-1]["error"] == "is a folder; name its images"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes")
def test_a_pipe_or_a_device_is_a_row_at_once(classifier: Classifier, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    rows = classifier.predict([str(tmp_path / "x.jpg"), "/dev/zero", "nul\0.jpg"])
    assert [row["error"] for row in rows] == [
        "is not a regular file", "is not a regular file", "cannot be read: embedded null byte"
    ]  # fmt: skip


# Output -------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_a_latin1_name_is_written_everywhere(classifier: Classifier, files: list[str]) -> None:
    latin1 = Path(files[0]).rename(Path(files[0]).with_name(os.fsdecode(b"caf\xe9.png")))
    rows = classifier.predict([latin1])
    assert rows[0]["file"] == str(latin1)
    for writer in write_json, write_text, lambda rows, out: write_csv(rows, out, 5):
        out = io.StringIO()
        assert writer(iter(rows), out) == 0
        assert "caf\\xe9.png" in out.getvalue().replace("\\\\", "\\")
        out.getvalue().encode()
    text = io.StringIO()
    write_json(rows, text)
    assert json.loads(text.getvalue())[0]["file"].endswith("caf\\xe9.png")


def test_rows_come_before_the_last_file_is_read(classifier: Classifier, files: list[str]) -> None:
    """A folder of a million images is not held in memory."""
    read: list[str] = []
    square = classifier.read_square
    classifier.read_square = lambda image: (read.append(str(image)), square(image))[1]  # type: ignore
    first = next(classifier.rows(files, batch_size=2))
    assert first["file"] == files[0]
    assert len(read) <= 4


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_cpu_decodes_in_turn_with_its_network_and_a_gpus_beside_it(
    classifier: Classifier, files: list[str], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next batch's files are fetched while the network computes; only a GPU's are decoded."""
    done: list[str] = []

    def recorded(name: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda given: (done.append(name), function(given))[1]

    fetch = recorded("fetch", content_of)
    monkeypatch.setattr("densekit.infer.classifier.content_of", fetch)
    monkeypatch.setattr(classifier, "read_square", recorded("decode", classifier.read_square))
    monkeypatch.setattr(classifier, "precision", Precision(torch.device(device)))

    def logits(squares: Tensor) -> Tensor:
        deadline = time.monotonic() + WAIT
        while done.count("fetch") < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        done.append("compute")
        return torch.zeros(len(squares), 7)

    monkeypatch.setattr(classifier, "logits", logits)
    rows = list(classifier.rows(files[:4], batch_size=2))
    assert [row["file"] for row in rows] == files[:4]
    before = done[: done.index("compute")]
    assert before.count("fetch") == 4
    assert before.count("decode") == (2 if device == "cpu" else 4)
    assert done.count("decode") == 4


def test_a_notebook_shows_it_escaped(tmp_path: Path) -> None:
    config = artifact.read_artifact(write(tmp_path / "plain")).config
    changed = config.model_copy(
        update={
            "classes": ("<script>", "a&b", *config.classes[2:]),
            "metrics": {"top1": 0.75, "loss": 1.25, "count": 1234, "ece": None},
        }
    )
    artifact.write_artifact(tmp_path / "best", changed, network().state_dict())
    shown = load(tmp_path / "best", "cpu")._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;, a&amp;b, cat, dog, &quot;big&quot;, égret" in shown
    assert "Classes (7)" in shown
    assert "top-1 0.7500, loss 1.2500, images 1,234" in shown
    assert "tiny, torch on cpu in fp32" in shown
    assert shown.count("<tr>") == shown.count("</tr>") == 5
