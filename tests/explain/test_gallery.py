"""Images in, files out: folder.py, images.py and gallery.py."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import tiny_artifact
from PIL import Image

from densekit.config import UserError
from densekit.explain.cam import class_maps
from densekit.explain.gallery import write_gallery
from densekit.explain.images import METHODS, MethodName, Wanted, explain_images, find_classes
from densekit.infer.classifier import Classifier, load


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Four images, a file that is none and one that is not there."""
    draw, names = np.random.default_rng(0), []
    for i, name in enumerate(("a b.png", "<script>.png", "é.jpg", "deep.png")):
        colour = draw.integers(0, 200, 3)
        pixels = (colour + draw.integers(0, 56, (30 + i, 40, 3))).astype(np.uint8)
        names.append(str(tmp_path / name))
        Image.fromarray(pixels).save(names[-1])
    (tmp_path / "text.jpg").write_text("no image")
    return [*names[:2], str(tmp_path / "text.jpg"), *names[2:], str(tmp_path / "gone.png")]


def written(
    classifier: Classifier, files: list[str], folder: Path, wanted: Wanted | None = None
) -> dict[str, Any]:
    wanted = wanted or Wanted()
    found = explain_images(classifier, files, wanted)
    return write_gallery(folder, found, wanted.method, "tiny", classifier.classes)


class Page(HTMLParser):
    """Its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_rows_are_predictions_with_their_maps(
    classifier: Classifier, photos: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = written(classifier, photos, out, Wanted(topk=2, batch_size=2))
    assert json.loads((out / "explain.json").read_text()) == said
    rows = classifier.predict(photos)
    for row, plain in zip(said["rows"], rows, strict=True):
        assert {key: row[key] for key in ("file", "error")} == {
            key: plain[key]
            for key in ("file", "error")  # type: ignore[literal-required]
        }
        assert [a["class"] for a in row["topk"]] == [a["class"] for a in plain["topk"]]
        answers = [a["class"] for a in row["topk"][:2]]
        assert [m["class"] for m in row["maps"]] == answers
    assert [row["error"] is None for row in rows] == [True, True, False, True, True, False]
    sent = said["rows"][1]["maps"][0]
    square = classifier.read_square(photos[1])
    assert isinstance(square, torch.Tensor)
    exact = class_maps(classifier, square[None], [sent["class"]])[0, 0]
    bytes_ = np.frombuffer(base64.b64decode(sent["map"]["data"]), np.int8).reshape(8, 8)
    error = np.abs(bytes_ * sent["map"]["scale"] / 127 - exact.numpy()).max()
    assert error < sent["map"]["scale"] / 100
    overlays = {m["overlay"] for row in said["rows"] for m in row["maps"]}
    assert overlays == {p.relative_to(out).as_posix() for p in (out / "overlays").iterdir()}
    assert len(overlays) == 8
    for name in overlays:
        assert re.fullmatch(r"overlays/\d{4}-[\w.-]+\.png", name, re.ASCII)
        with Image.open(out / name) as image:
            assert image.size == (224, 224)
    assert {p.name for p in out.iterdir()} == {"index.html", "explain.json", "overlays"}


def test_the_page_is_whole_in_itself(
    classifier: Classifier, photos: list[str], tmp_path: Path
) -> None:
    written(classifier, photos, tmp_path / "out")
    page = Page((tmp_path / "out/index.html").read_text(encoding="utf-8"))
    names = [tag for tag, _ in page.tags]
    assert names.count("article") == 6
    assert not {"script", "link", "iframe"} & set(names)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 4 * (1 + 3)
    for attrs in images:
        head, _, data = str(attrs["src"]).partition(",")
        assert head == "data:image/jpeg;base64"
        Image.open(io.BytesIO(base64.b64decode(data))).load()
        assert attrs["alt"]
    assert "<script>.png" in page.text
    assert "is not an image that PIL can read" in page.text
    assert "there is no such file" in page.text
    assert METHODS["cam"] in page.text
    assert "$" not in page.text


@pytest.mark.parametrize("method", ["gradcam++", "occlusion"])
def test_other_methods(
    classifier: Classifier, photos: list[str], tmp_path: Path, method: MethodName
) -> None:
    pytest.importorskip({"gradcam++": "pytorch_grad_cam", "occlusion": "captum"}[method])
    files = photos[1:4]
    said = written(classifier, files, tmp_path / "out", Wanted(method, classes=(4, 2)))
    assert said["method"] == method
    side = {"gradcam++": 8, "occlusion": 14}[method]
    for row in said["rows"]:
        sizes = [(m["class"], m["map"]["height"]) for m in row["maps"]]
        assert sizes == ([] if row["error"] else [(4, side), (2, side)])


def test_classes_by_name_or_number(classifier: Classifier) -> None:
    assert find_classes(classifier, ["c", "a", "4", "c"]) == (2, 0, 4)
    with pytest.raises(UserError, match="--class 5: this network has no such class; known: a, b"):
        find_classes(classifier, ["5"])


def test_an_answer_that_is_not_finite_is_an_error(
    classifier: Classifier, photos: list[str], tmp_path: Path
) -> None:
    classifier.model.classifier.bias.data[0] = float("nan")
    said = written(classifier, photos[:1], tmp_path / "out")
    assert said["rows"][0]["error"] == "the network's output is not finite"
    assert said["rows"][0]["maps"] == []


# The folder ---------------------------------------------------------------------------------


def test_an_earlier_explanation_is_replaced(
    classifier: Classifier, photos: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    written(classifier, photos, out)
    (out / "overlays" / ".0001-x.png.densekit-1.tmp").touch()  # of a process that was killed
    said = written(classifier, photos[:1], out)
    assert len(list((out / "overlays").iterdir())) == len(said["rows"][0]["maps"]) == 3


@pytest.mark.parametrize("name", ["notes.txt", "overlays/mine.png", "overlays/0001-a.jpg", "a/b"])
def test_a_folder_of_something_else_is_left_as_it_is(
    classifier: Classifier, photos: list[str], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    written(classifier, photos[:1], out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"out: holds .* choose a new or empty folder"):
        written(classifier, photos, out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_pages_that_are_not_ours(classifier: Classifier, photos: list[str], tmp_path: Path) -> None:
    for text in (None, "{}", "[1]", '{"densekit": "0", "kind": "feature-reuse"}'):
        (tmp_path / "index.html").write_text("mine")
        if text is not None:
            (tmp_path / "explain.json").write_text(text)
        with pytest.raises(UserError, match="choose a new or empty folder"):
            written(classifier, photos, tmp_path)


def test_a_network_without_maps_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    classifier = load(tiny_artifact(tmp_path / "best"), "cpu")
    classifier.model.classifier = torch.nn.Sequential(classifier.model.classifier)
    with pytest.raises(UserError, match="ends with one linear layer"):
        written(classifier, ["none.jpg"], tmp_path / "out")
