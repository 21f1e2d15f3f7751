"""kserve.py: Triton's own client works, in JSON and with binary tensors."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from servers import NAME, Served, picture
from tritonclient.utils import InferenceServerException

from densekit.infer.classifier import Classifier

PICTURES = [picture(seed) for seed in range(3)]


@pytest.fixture
def peer(server: Served) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(server.url.removeprefix("http://"))


def files(*contents: bytes) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(contents)], "BYTES")
    tensor.set_data_from_numpy(np.array(contents, dtype=object))
    return tensor


def test_health_and_metadata(peer: triton.InferenceServerClient) -> None:
    assert peer.is_server_live()
    assert peer.is_server_ready()
    assert peer.is_model_ready(NAME)
    assert peer.is_model_ready(NAME, "1")
    assert not peer.is_model_ready("another")
    assert "binary_tensor_data" in peer.get_server_metadata()["extensions"]
    (tensor,) = peer.get_model_metadata(NAME)["inputs"]
    assert tensor == {"name": "image", "datatype": "BYTES", "shape": [-1]}


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_predicts_answers(
    peer: triton.InferenceServerClient, classifier: Classifier, binary: bool
) -> None:
    rows = classifier.predict(PICTURES, topk=2)
    outputs = [
        triton.InferRequestedOutput(name, binary_data=binary) for name in ("class", "label", "prob")
    ]
    found = peer.infer(NAME, [files(*PICTURES)], outputs=outputs, parameters={"topk": 2})
    answers = [row["topk"] for row in rows]
    np.testing.assert_array_equal(
        found.as_numpy("class"), [[a["class"] for a in row] for row in answers]
    )
    np.testing.assert_allclose(
        found.as_numpy("prob"), [[a["prob"] for a in row] for row in answers], atol=1e-5
    )
    labels = [[a["label"].encode() for a in row] for row in answers]
    shown = found.as_numpy("label").tolist()
    assert [[x if isinstance(x, bytes) else x.encode() for x in row] for row in shown] == labels
    assert found.as_numpy("error") is None


def test_without_a_list_of_outputs_all_come(peer: triton.InferenceServerClient) -> None:
    found = peer.infer(NAME, [files(PICTURES[0], b"junk")], request_id="7")
    assert found.get_response()["id"] == "7"
    assert found.as_numpy("error").tolist() == [b"", b"is not an image that PIL can read"]
    assert found.as_numpy("class")[1].tolist() == [-1] * 5


def test_pixels_are_taken_as_predict_takes_arrays(
    peer: triton.InferenceServerClient, classifier: Classifier
) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
    rows = classifier.predict(list(pixels), topk=1)
    for binary in (True, False):
        tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels, binary_data=binary)
        found = peer.infer(NAME, [tensor], parameters={"topk": 1})
        assert found.as_numpy("class").ravel().tolist() == [r["topk"][0]["class"] for r in rows]


def test_an_unknown_model_parameter_or_image_is_said(peer: triton.InferenceServerClient) -> None:
    for name, options, said in (
        ("another", {}, "there is no such model"),
        (NAME, {"parameters": {"topq": 2}}, "topq: Extra inputs"),
        (NAME, {"priority": 3}, "priority: Extra inputs"),
        (NAME, {"outputs": [triton.InferRequestedOutput("x")]}, 'no output "x"'),
    ):
        with pytest.raises(InferenceServerException, match=said):
            peer.infer(name, [files(PICTURES[0])], **options)
    with pytest.raises(InferenceServerException, match="PIL"):
        peer.infer(NAME, [files(b"junk")])
    with pytest.raises(InferenceServerException, match="5 images in one request"):
        peer.infer(NAME, [files(*[PICTURES[0]] * 5)])


TEXT = base64.b64encode(PICTURES[0]).decode()
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "inputs: Field required"),
    ({"inputs": [IMAGE, IMAGE]}, "inputs: List should have at most 1"),
    ({"inputs": [{**IMAGE, "name": "pixels"}]}, "inputs[0].name"),
    ({"inputs": [{**IMAGE, "shape": [2]}]}, "the data has 1 elements"),
    ({"inputs": [{**IMAGE, "shape": [-1]}]}, "a size below 1"),
    ({"inputs": [{**IMAGE, "data": [3]}]}, "data[0]: BYTES in JSON are base64"),
    ({"inputs": [{**IMAGE, "data": None}]}, "either data or parameters"),
    ({"inputs": [{**IMAGE, "datatype": "UINT8"}]}, "UINT8 images have shape"),
    (
        {"inputs": [{**IMAGE, "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 300]}]},
        "whole numbers from 0 to 255",
    ),
    (
        {"inputs": [{**IMAGE, "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, [2]]}]},
        "several lengths",
    ),
]


@pytest.mark.parametrize(("body", "said"), BAD, ids=lambda x: str(x)[:30])
def test_what_does_not_fit_is_a_400(client: httpx.Client, body: dict, said: str) -> None:
    answer = client.post(f"/v2/models/{NAME}/infer", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]


def test_a_header_length_that_is_none_is_a_400(client: httpx.Client) -> None:
    for length in ("-1", "x", "1000"):
        answer = client.post(
            f"/v2/models/{NAME}/infer",
            content=b"{}",
            headers={"Inference-Header-Content-Length": length},
        )
        assert answer.status_code == 400
