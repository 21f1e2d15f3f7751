"""app.py: what /v1 answers, in every form that a request may have, and what it refuses."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from servers import CLASSES, NAME, Served, picture

from densekit.explain.cam import class_maps
from densekit.infer.classifier import Classifier

PICTURES = [picture(seed, kind) for seed, kind in enumerate(["png", "jpeg", "bmp"])]


def test_multipart_raw_and_json_give_predicts_rows(
    client: httpx.Client, classifier: Classifier
) -> None:
    rows = classifier.predict(PICTURES, topk=3)
    assert len({row["topk"][0]["class"] for row in rows}) > 1

    form = [("images", (f"{i}.img", data)) for i, data in enumerate(PICTURES)]
    answer = client.post("/v1/predict?topk=3", files=form)
    assert answer.status_code == 200
    named = [{**row, "file": f"{i}.img"} for i, row in enumerate(rows)]
    assert_same(answer.json()["predictions"], named)
    assert set(answer.json()["ms"]) == {"decode", "queue", "compute", "total"}

    body = {
        "images": [
            {"data": base64.b64encode(data).decode(), "file": f"{i}.img"}
            for i, data in enumerate(PICTURES)
        ]
    }
    answer = client.post("/v1/predict?topk=3", json=body)
    assert_same(answer.json()["predictions"], named)

    for kind in ("image/png", "application/octet-stream"):
        answer = client.post(
            "/v1/predict?topk=3", content=PICTURES[0], headers={"content-type": kind}
        )
        assert_same(answer.json()["predictions"], rows[:1])


def assert_same(found: list[dict], rows: list) -> None:
    """But for the last digits, which depend on the batch."""
    assert len(found) == len(rows)
    for one, other in zip(found, rows, strict=True):
        assert one["file"] == other["file"]
        assert one["error"] == other["error"]
        for a, b in zip(one["topk"], other["topk"], strict=True):
            assert (a["class"], a["label"]) == (b["class"], b["label"])
            assert a["prob"] == pytest.approx(b["prob"], abs=1e-5)


def test_an_unreadable_image_has_an_error_in_its_own_row(client: httpx.Client) -> None:
    form = [("images", ("good.png", PICTURES[0])), ("images", ("bad.png", b"nothing"))]
    answer = client.post("/v1/predict", files=form)
    assert answer.status_code == 200
    good, bad = answer.json()["predictions"]
    assert good["error"] is None
    assert len(good["topk"]) == 5
    assert bad == {"file": "bad.png", "topk": [], "error": "is not an image that PIL can read"}


def test_without_a_readable_image_it_is_a_422(client: httpx.Client) -> None:
    answer = client.post("/v1/predict", files={"a": b"", "b": PICTURES[0][:60]})
    assert answer.status_code == 422
    assert [bool(row["error"]) for row in answer.json()["predictions"]] == [True, True]
    assert "none of 2 images" in answer.json()["error"]
    answer = client.post("/v1/predict", files={"a": picture(0, size=(400, 200))})
    assert answer.status_code == 422
    assert answer.json()["error"] == "has more than 50,000 pixels, which is all it may have"


def test_cam_gives_the_maps_of_the_answers_or_of_any_class(
    client: httpx.Client, classifier: Classifier
) -> None:
    square = classifier.read_square(PICTURES[0])
    assert isinstance(square, torch.Tensor)
    answer = client.post("/v1/predict?topk=2&cam=answers", files={"a": PICTURES[0]}).json()
    (row,) = answer["predictions"]
    assert [one["class"] for one in row["cam"]] == [one["class"] for one in row["topk"]]
    for query, classes in (("answers", [a["class"] for a in row["topk"]]), ("6,0,0", [6, 0, 0])):
        answer = client.post(f"/v1/predict?topk=2&cam={query}", files={"a": PICTURES[0]}).json()
        found = answer["predictions"][0]["cam"]
        assert [(one["class"], one["label"]) for one in found] == [(c, CLASSES[c]) for c in classes]
        for one, true in zip(found, class_maps(classifier, square[None], classes)[0], strict=True):
            steps = np.frombuffer(base64.b64decode(one["data"]), np.int8)
            values = steps.reshape(one["height"], one["width"]) * one["scale"] / 127
            np.testing.assert_allclose(values, true, atol=one["scale"] / 200)


def test_the_model_card_has_what_the_artifact_has_and_no_paths(client: httpx.Client) -> None:
    card = client.get("/v1/model").json()
    assert card["name"] == NAME
    assert card["classes"] == list(CLASSES)
    assert card["preprocessing"]["crop"] == 24
    assert card["metrics"] == {"count": 100, "top1": 0.9}
    assert card["maps"] is True
    assert card["limits"]["max_images"] == 4
    assert "secret" not in client.get("/v1/model").text


BAD = [
    ("/v1/predict?topk=0", {"files": {"a": b"x"}}, 400, "topk: Input should be greater"),
    ("/v1/predict?topK=3", {"files": {"a": b"x"}}, 400, "topK: no such parameter"),
    ("/v1/predict?cam=cat", {"files": {"a": b"x"}}, 400, "cam: "),
    ("/v1/predict?cam=7", {"files": {"a": b"x"}}, 400, "cam: class 7: this network has 0 to 6"),
    ("/v1/predict", {}, 415, "the Content-Type is missing"),
    ("/v1/predict", {"data": {"a": "b"}}, 415, "x-www-form-urlencoded"),
    ("/v1/predict", {"json": {"images": []}}, 400, "images: List should have at least 1 item"),
    ("/v1/predict", {"json": {"images": [{"data": "!"}]}}, 400, "images[0].data is not base64"),
    ("/v1/predict", {"json": {"images": [{"data": "YQ==", "x": 1}]}}, 400, "images[0].x: Extra"),
    ("/v1/predict", {"json": [1]}, 400, "the body: Input should be an object"),
    ("/v1/predict", {"files": {"a": (None, "text")}}, 400, "has no filename"),
    ("/v1/predict", {"files": [("a", b"x")] * 5}, 413, "more than 4 images"),
    (
        "/v1/predict",
        {"files": {"a": bytes(300_001)}},
        413,
        "larger than this server takes, 300,000",
    ),
    ("/v1/nothing", {}, 404, "nothing at this path"),
]


@pytest.mark.parametrize(("path", "sent", "status", "sentence"), BAD, ids=lambda x: str(x)[:40])
def test_a_clients_mistake_is_a_4xx_with_a_sentence(
    client: httpx.Client, path: str, sent: dict, status: int, sentence: str
) -> None:
    answer = client.post(path, **sent)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert sentence in answer.json()["error"]


def test_a_body_without_a_length_is_counted_as_it_comes(client: httpx.Client) -> None:
    pieces = (bytes(1000) for _ in range(1000))
    answer = client.post(
        "/v1/predict", content=pieces, headers={"content-type": "application/octet-stream"}
    )
    assert answer.status_code == 413


def test_many_clients_share_batches(server: Served, classifier: Classifier) -> None:
    pictures = [picture(seed) for seed in range(64)]
    rows = classifier.predict(pictures, topk=1)
    images, batches = "densekit_batch_images_sum", "densekit_batch_images_count"
    before = [server.metric(name) for name in (images, batches)]

    def ask(data: bytes) -> dict:
        found = httpx.post(f"{server.url}/v1/predict?topk=1", files={"a": data}, timeout=60).json()
        return found["predictions"][0]

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, pictures))
    assert_same([{**row, "file": None} for row in found], rows)
    took = [server.metric(name) - was for name, was in zip((images, batches), before, strict=True)]
    assert took[0] == 64
    assert took[1] < 64


def test_the_log_says_status_and_size_and_nothing_else(
    client: httpx.Client, server: Served
) -> None:
    client.post("/v1/predict?topk=1", files={"a": ("grandmother.png", PICTURES[0])})
    client.post("/v1/predict?secret=1", files={"a": ("grandmother.png", PICTURES[0])})
    said = server.output.read_text()
    assert " 200 " in said
    assert "grandmother" not in said
    assert "secret" not in said
    assert "predict" not in said
