"""steps.py: exports of a network that has learned real digits; what passes, and what does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from densekit.config import UserError
from densekit.export import formats, gate, steps
from densekit.export.steps import ExportOptions, export_network
from densekit.infer.classifier import load
from densekit.infer.engines import open_engine
from densekit.infer.evaluate import evaluate_source
from densekit.infer.model import Opened, open_path
from densekit.models import artifact
from densekit.precision import Precision

FP32 = Precision(torch.device("cpu"))
Make = Callable[..., Path]
FLOAT = ("onnx", "openvino", "torch-export")
INT8 = ("onnx-int8", "openvino-int8")


def left(folder: Path) -> list[str]:
    """All in the folder, hidden ones too."""
    return sorted(entry.name for entry in folder.iterdir())


# What passes --------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FLOAT)
@pytest.mark.parametrize("inside", [False, True])
def test_a_float_export_is_torchs_network(
    exported: Make, opened: Opened, squares: torch.Tensor, to: str, inside: bool
) -> None:
    folder = exported(to, with_preprocessing=inside)
    other = open_path(str(folder))
    for images in (squares, squares[:1]):
        wanted = open_engine(opened, FP32)(images)
        got = open_engine(other, FP32)(images)
        assert got.dtype == torch.float32
        assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (other.classes, other.preprocessing) == (opened.classes, opened.preprocessing)
    assert other.data == opened.data
    assert other.described
    assert opened.described
    assert other.described.provenance == opened.described.provenance


@pytest.mark.parametrize("to", [*FLOAT, *INT8])
def test_evaluate_and_predict_take_it(
    exported: Make, opened: Opened, trained: Path, to: str
) -> None:
    folder = exported(to, with_preprocessing=to in INT8)
    found = evaluate_source(open_path(str(folder)), FP32, workers=0)
    wanted = evaluate_source(opened, FP32, workers=0)
    assert wanted["top1"] > 0.9
    lost = wanted["top1"] - found["top1"]
    assert lost <= 0.005 if to in INT8 else lost == 0
    measured = json.loads((folder / "gate.json").read_text())
    assert measured["exported"]["top1"] == found["top1"]
    assert measured["torch"]["top1"] == wanted["top1"]
    files = sorted(str(f) for f in (trained.parent / "data").glob("*9.png"))[:12]
    rows, ours = load(folder).predict(files), load(trained).predict(files)
    assert [r["file"] for r in rows] == files
    assert [r["topk"][0]["label"] for r in rows] == [r["topk"][0]["label"] for r in ours]


def test_an_onnx_file_has_two_engines(exported: Make, squares: torch.Tensor) -> None:
    for to in ("onnx", "onnx-int8"):
        opened = open_path(str(exported(to)))
        one, other = (open_engine(opened, FP32, e)(squares) for e in ("onnxruntime", "openvino"))
        assert (one - other).norm() <= (1e-5 if to == "onnx" else 0.15) * one.norm()


@pytest.mark.slow
def test_any_size_if_asked(exported: Make, opened: Opened, squares: torch.Tensor) -> None:
    larger = torch.nn.functional.pad(squares, (3, 10, 4, 1))
    wanted = open_engine(opened, FP32)(larger)
    for to in FLOAT:
        other = open_path(str(exported(to, dynamic_size=True, with_preprocessing=True)))
        torch.testing.assert_close(open_engine(other, FP32)(larger), wanted, rtol=1e-4, atol=1e-4)
        fixed = open_engine(open_path(str(exported(to))), FP32)
        with pytest.raises(UserError, match="takes images of 28 x 28 pixels, got 33 x 41"):
            fixed(larger)


PLAIN = """
import json, sys
import numpy as np
kind, file, images = sys.argv[1:]
images = np.load(images)
if kind == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(file)
    metadata = session.get_modelmeta().custom_metadata_map["densekit"]
    probabilities = session.run(["probabilities"], {"images": images})[0]
else:
    import openvino
    model = openvino.Core().read_model(file)
    metadata = model.get_rt_info("densekit").astype(str)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    probabilities = compiled({"images": images})["probabilities"]
assert not any(name.startswith(("densekit", "torch")) for name in sys.modules)
config = json.loads(metadata)
print(json.dumps({"classes": config["classes"], "crop": config["preprocessing"]["crop"],
                  "densekit": config["export"]["versions"]["densekit"],
                  "probabilities": probabilities.tolist()}))
"""


@pytest.mark.parametrize("to", ["onnx", "openvino", *INT8])
def test_the_file_alone_answers_without_densekit(
    exported: Make, trained: Path, squares: torch.Tensor, tmp_path: Path, to: str
) -> None:
    """By a plain engine in a process of its own, fed uint8 [N, H, W, C]."""
    folder = exported(to, with_preprocessing=True)
    np.save(tmp_path / "images.npy", squares.permute(0, 2, 3, 1).numpy())
    kind, file = to.split("-")[0], next(iter(folder.glob("model.[ox][nm]*")))
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, kind, str(file), str(tmp_path / "images.npy")],
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = load(folder).predict([image[0].numpy() for image in squares], topk=10)
    assert found["crop"] == 28
    for row, probabilities in zip(rows, found["probabilities"], strict=True):
        for answer in row["topk"]:
            assert answer["prob"] == pytest.approx(probabilities[answer["class"]], abs=1e-5)
            assert answer["label"] == found["classes"][answer["class"]]


def test_no_path_of_this_machine_is_in_the_file(exported: Make) -> None:
    here = str(Path(steps.__file__).parent.parent).encode()
    for to in FLOAT:
        folder = exported(to)
        assert not any(here in file.read_bytes() for file in folder.iterdir())


# What does not pass -------------------------------------------------------------------------


def tampered(model: Any, folder: Path, text: str) -> None:
    """Writes the file with one layer's weights changed by a thousandth."""
    weights = {w.name: w for w in model.graph.initializer}
    node = next(n for n in model.graph.node if n.name == "features.denseblock2.denselayer1.conv2")
    stored = weights[node.input[1]]
    changed = onnx.numpy_helper.to_array(stored) * np.float32(1.001)
    stored.CopyFrom(onnx.numpy_helper.from_array(changed, stored.name))
    onnx.helper.set_model_props(model, {"densekit": text})
    onnx.save_model(model, folder / "model.onnx")


def test_a_file_that_answers_otherwise_is_refused(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "write_onnx", tampered)
    with pytest.raises(UserError) as refused:
        export_network(opened, tmp_path / "out", ExportOptions("onnx"))
    text = str(refused.value)
    assert "the first layer whose output differs is features.denseblock2.denselayer1.conv2" in text
    assert "by 0.001 of its norm" in text
    assert "images that differ most: " in text
    assert ".png" in text
    assert left(tmp_path) == []


@pytest.mark.parametrize("to", FLOAT)
def test_a_bound_that_rounding_exceeds(opened: Opened, tmp_path: Path, to: str) -> None:
    options = ExportOptions(to, bounds=gate.Bounds(max_difference=0.0))
    with pytest.raises(UserError, match=r"--max-difference 0.*the difference grows by rounding"):
        export_network(opened, tmp_path / "out", options)
    assert left(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("to", INT8)
def test_layers_that_int8_hurts_stay_in_float(trained: Path, tmp_path: Path, to: str) -> None:
    """Three channels of one layer's input are 3000 times the others, and its weights make up for
    it: the same network in float, while 8 bits for all channels together lose the others."""
    stored = artifact.read_artifact(trained)
    tensors, layer = dict(stored.state_dict), "features.denseblock2.denselayer2"
    for name in ("weight", "bias"):
        tensors[f"{layer}.norm1.{name}"][:3] *= 3000
    tensors[f"{layer}.conv1.weight"][:, :3] /= 3000
    artifact.write_artifact(tmp_path / "hurt", stored.config, tensors)
    opened = open_path(str(tmp_path / "hurt"))
    whole = gate.Bounds(max_drop=-1.0)
    with pytest.raises(UserError, match=f"the layers that int8 hurts most: {layer}.conv1, "):
        export_network(opened, tmp_path / "out", ExportOptions(to, limit=100, bounds=whole))
    assert left(tmp_path) == ["hurt"]
    forced = ExportOptions(to, limit=100, bounds=whole, force=True)
    found = export_network(opened, tmp_path / "out", forced)
    assert layer + ".conv1" in found["float_layers"]
    assert not found["passed"]
    assert open_path(str(tmp_path / "out")).classes == opened.classes


def test_nothing_of_the_users_is_replaced(opened: Opened, exported: Make, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for place, says in (
        (tmp_path, "holds something else than an export"),
        (tmp_path / "notes.txt", "a file, and an export is a folder"),
        (exported("onnx"), "there is an export already; add --replace"),
    ):
        with pytest.raises(UserError, match=says):
            export_network(opened, place, ExportOptions("onnx"))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    other = tmp_path / "out"
    export_network(opened, other, ExportOptions("onnx", limit=20))
    export_network(opened, other, ExportOptions("torch-export", limit=20, replace=True))
    assert left(other) == ["config.json", "gate.json", "model.pt2"]
    (other / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="something else"):
        export_network(opened, other, ExportOptions("onnx", replace=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (ExportOptions("onx"), r'--to onx: unknown; did you mean "onnx"'),
        (ExportOptions("onnx", calibration="x"), "--calibration: is for int8"),
        (ExportOptions("onnx", force=True), "--force: is for int8"),
        (ExportOptions("onnx", images="nowhere"), "there is no file or folder nowhere"),
        (ExportOptions("onnx-int8", calibration="nowhere"), "there is no file or folder nowhere"),
    ],
)
def test_options_that_mean_nothing(
    opened: Opened, tmp_path: Path, options: ExportOptions, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        export_network(opened, tmp_path / "out", options)
    assert left(tmp_path) == []


def test_an_export_is_not_exported_again(exported: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exported \(onnx\).*give the artifact"):
        export_network(open_path(str(exported("onnx"))), tmp_path / "out", ExportOptions("onnx"))


def test_images_without_labels(opened: Opened, trained: Path, tmp_path: Path) -> None:
    images = tmp_path / "photos"
    images.mkdir()
    for file in sorted((trained.parent / "data").glob("1*.png"))[:5]:
        (images / file.name).write_bytes(file.read_bytes())
    found = export_network(opened, tmp_path / "out", ExportOptions("onnx", images=str(images)))
    assert (found["images"]["count"], found["torch"], found["exported"]) == (5, {}, {})
    with pytest.raises(UserError, match="int8 is judged by its accuracy"):
        export_network(opened, tmp_path / "int8", ExportOptions("onnx-int8", images=str(images)))
