"""`densekit serve EXPORT`: the artifact's answers by another engine, and what it does not have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from servers import CLASSES, picture, serving

from densekit.export.steps import ExportOptions, export_network
from densekit.infer.classifier import Classifier
from densekit.infer.model import open_path
from runs import densekit

PICTURES = [picture(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def export(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = tmp_path_factory.mktemp("pictures")
    for seed in range(8):
        (images / f"{seed}.png").write_bytes(picture(seed))
    target = images.parent / "export"
    options = ExportOptions("onnx", with_preprocessing=True, images=str(images))
    export_network(open_path(str(network)), target, options)
    return target


@pytest.fixture(scope="module")
def exported_client(
    export: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    with serving(export, tmp_path_factory.mktemp("served"), "--max-batch", "4") as served:
        with httpx.Client(base_url=served.url, timeout=60) as client:
            yield client
        assert served.end() == 0


def test_answers_are_the_artifacts(exported_client: httpx.Client, classifier: Classifier) -> None:
    form = [("images", (f"{i}.png", data)) for i, data in enumerate(PICTURES)]
    answer = exported_client.post("/v1/predict?topk=7", files=form)
    assert answer.status_code == 200
    for found, wanted in zip(
        answer.json()["predictions"], classifier.predict(PICTURES, topk=7), strict=True
    ):
        probs = {one["class"]: one["prob"] for one in found["topk"]}
        assert probs == {
            one["class"]: pytest.approx(one["prob"], abs=1e-4) for one in wanted["topk"]
        }
        assert [one["label"] for one in found["topk"]][:1] == [wanted["topk"][0]["label"]]


def test_the_card_and_the_metrics_name_the_engine(exported_client: httpx.Client) -> None:
    card = exported_client.get("/v1/model").json()
    assert card["classes"] == list(CLASSES)
    assert (card["engine"], card["maps"], card["parameters"]) == ("onnxruntime", False, None)
    assert card["metrics"]["top1"] == 0.9
    assert "secret" not in exported_client.get("/v1/model").text
    assert 'engine="onnxruntime"' in exported_client.get("/metrics").text


def test_maps_are_refused_in_a_sentence(exported_client: httpx.Client) -> None:
    answer = exported_client.post("/v1/predict?cam=answers", files={"a": PICTURES[0]})
    assert answer.status_code == 400
    assert "exported" in answer.json()["error"]


def test_what_an_export_cannot_do_is_a_sentence(export: Path) -> None:
    for options, said in (
        (("--precision", "bf16"), "--precision bf16: what is exported to onnx"),
        (("--engine", "torch"), "--engine torch: a network exported to onnx"),
    ):
        done = densekit("serve", export, "--port", "0", *options)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
