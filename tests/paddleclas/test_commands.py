"""The commands with PaddleClas' own file, on real ImageNet images: a launch line of theirs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml

import runs

pytestmark = pytest.mark.slow
TRAIN, VAL = 32, 12
# so that two cores need seconds: fewer pixels, by list index
SMALL = {
    "DataLoader.Train.dataset.transform_ops.1.RandCropImage.size": 64,
    "DataLoader.Eval.dataset.transform_ops.1.ResizeImage.resize_short": 72,
    "DataLoader.Eval.dataset.transform_ops.2.CropImage.size": 64,
    "Infer.transforms.1.ResizeImage.resize_short": 72,
    "Infer.transforms.2.CropImage.size": 64,
    "DataLoader.Train.loader.num_workers": 0,
    "Global.epochs": 1,
    "Global.print_batch_step": 1,
}
CPU = {"Arch.pretrained": False, "Global.device": "cpu", "DataLoader.Train.sampler.batch_size": 4}


@pytest.fixture(scope="module")
def folder(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DenseNet121.yaml beside ./dataset/ILSVRC2012/, as their users have both."""
    from shipped import DENSENET121

    place = tmp_path_factory.mktemp("paddle")
    (place / "DenseNet121.yaml").write_text(DENSENET121)
    with tarfile.open(test_data / "imagenet-sample.tar") as tar:
        files = [m for m in tar.getmembers() if m.name.endswith((".JPEG", ".txt"))]
        pictures = sorted(m.name for m in files if m.name.endswith(".JPEG"))[: TRAIN + VAL]
        tar.extractall(place, [m for m in files if m.name in pictures or ".txt" in m.name],
                       filter="data")  # fmt: skip
    root = place / "dataset" / "ILSVRC2012"
    root.parent.mkdir()
    (place / "imagenet-sample").rename(root)
    listed = dict(line.split(" ") for line in (root / "val_list.txt").read_text().splitlines())
    names = [name.removeprefix("imagenet-sample/") for name in pictures]
    lines = [f"{name} {listed[name]}\n" for name in names]
    (root / "train_list.txt").write_text("".join(lines[:TRAIN]))
    (root / "val_list.txt").write_text("".join(lines[TRAIN:]))
    return place


def options(*settings: dict[str, object]) -> list[str]:
    pairs = {key: value for each in settings for key, value in each.items()}
    return [text for key, value in pairs.items() for text in ("-o", f"{key}={value}")]


def densekit(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = runs.densekit(*arguments, cwd=folder, wait=500)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def trained(folder: Path) -> subprocess.CompletedProcess[str]:
    """The launch line with four processes, on the CPU."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4")
    command = ["-m", "densekit", "train", "-c", "DenseNet121.yaml", *options(CPU, SMALL)]
    done = subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=folder,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_four_processes_train_it(trained: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert "multiplied by 0.0625" in trained.stderr
    head = r"^\[Train\]\[Epoch 1/1\]\[Iter: (\d)/2\]lr\(PiecewiseDecay\): 0\.00625000, top1: "
    tail = r".*, ips: [\d.]+ samples/s, eta: [\d:]+$"
    lines = re.findall(head + tail, trained.stderr, re.MULTILINE)
    assert lines == ["1", "2"]
    recipe = yaml.safe_load((folder / "output/DenseNet121/recipe.yaml").read_text())
    assert recipe["data"]["batch_size"] == 16
    header, _, row = trained.stdout.splitlines()[:3]
    assert header.split() == ["Model", "Device", "Top1", "Top5", "ips"]
    assert row.startswith("densenet121")


WEIGHTS = {"Global.pretrained_model": "output/DenseNet121/best_model"}


def test_the_same_file_evaluates(trained: subprocess.CompletedProcess[str], folder: Path) -> None:
    command = ["evaluate", "-c", "DenseNet121.yaml", *options(CPU, SMALL, WEIGHTS), "--json"]
    (folder / "dataset/ILSVRC2012/train_list.txt").rename(folder / "away.txt")  # not needed
    try:
        found = json.loads(densekit(folder, *command).stdout)
    finally:
        (folder / "away.txt").rename(folder / "dataset/ILSVRC2012/train_list.txt")
    config = json.loads((folder / "output/DenseNet121/best/config.json").read_text())
    assert found["count"] == VAL
    assert found["preprocessing"]["rounding"] == "paddle"
    assert found["loss"] == pytest.approx(config["metrics"]["loss"], rel=1e-5)
    assert found["top1"] == config["metrics"]["top1"]


def test_the_same_file_predicts(trained: subprocess.CompletedProcess[str], folder: Path) -> None:
    picture = str(sorted((folder / "dataset/ILSVRC2012/val").rglob("*.JPEG"))[0])
    asked = options(CPU, SMALL, WEIGHTS, {"Infer.infer_imgs": picture, "Infer.PostProcess.topk": 3})
    done = densekit(folder, "predict", "-c", "DenseNet121.yaml", *asked, "--json")
    (row,) = json.loads(done.stdout)
    assert row["file"] == picture
    assert len(row["topk"]) == 3
    assert "the names are the weights' own" in done.stderr  # theirs would go on without any
    names = folder / "names.txt"
    names.write_text("".join(f"{i} class number {i}\n" for i in range(1000)))
    asked += options({"Infer.PostProcess.class_id_map_file": "names.txt"})
    (row,) = json.loads(
        densekit(folder, "predict", "-c", "DenseNet121.yaml", *asked, "--json").stdout
    )
    assert [a["label"] for a in row["topk"]] == [f"class number {a['class']}" for a in row["topk"]]


def test_the_same_file_exports(trained: subprocess.CompletedProcess[str], folder: Path) -> None:
    """tools/export_model.py's options; the export answers as the network does."""
    into = {"Global.save_inference_dir": "./inference/DenseNet121"}
    command = ["export", "-c", "DenseNet121.yaml", *options(CPU, SMALL, WEIGHTS, into), "--json"]
    found = json.loads(densekit(folder, *command, "--to", "onnx").stdout)
    assert (found["folder"], found["images"]["count"]) == ("inference/DenseNet121", VAL)
    assert (found["passed"], found["difference"]["agreement"]) == (True, 1.0)
    pictures = [str(p) for p in sorted((folder / "dataset/ILSVRC2012/val").rglob("*.JPEG"))[:5]]
    asked = options(CPU, SMALL, WEIGHTS)
    ours = densekit(folder, "predict", "-c", "DenseNet121.yaml", *asked, *pictures, "--json")
    theirs = densekit(folder, "predict", "inference/DenseNet121", *pictures, "--json")
    for one, other in zip(*(json.loads(done.stdout) for done in (ours, theirs)), strict=True):
        assert [a["class"] for a in one["topk"]] == [a["class"] for a in other["topk"]]
        probs = [[answer["prob"] for answer in row["topk"]] for row in (one, other)]
        assert probs[0] == pytest.approx(probs[1], rel=1e-4)


def test_paddles_weights_answer_as_paddle_did_once_exported(folder: Path, test_data: Path) -> None:
    """Weights and logits that Paddle wrote; the file opened by ONNX Runtime alone."""
    onnxruntime = pytest.importorskip("onnxruntime")
    said = np.load(test_data / "paddle" / "DenseNet121_random_io.npz")
    weights = {"Global.pretrained_model": str(test_data / "paddle" / "DenseNet121_random")}
    command = ["export", "-c", "DenseNet121.yaml", *options(CPU, weights), "--out", "of-paddle"]
    densekit(folder, *command, "--to", "onnx", "--limit", "4")
    session = onnxruntime.InferenceSession(str(folder / "of-paddle" / "model.onnx"))
    (logits,) = session.run(["logits"], {"images": said["images"]})
    assert np.abs(logits - said["logits"]).max() < 1e-4 * max(1, np.abs(said["logits"]).max())


def test_what_is_missing_is_said_in_their_words(folder: Path) -> None:
    plain = densekit(folder, "evaluate", "-c", "DenseNet121.yaml", *options(CPU, SMALL), code=2)
    assert "-o Global.pretrained_model=" in plain.stderr
    typo = densekit(folder, "train", "-c", "DenseNet121.yaml", "-o", "Global.epoch=1", code=2)
    assert 'did you mean "epochs"?' in typo.stderr
    assert "Traceback" not in typo.stderr


def test_translate_prints_a_recipe_that_trains_alike(folder: Path) -> None:
    own = {"Global.output_dir": "./of-this-test/"}  # ./output/ holds a run of four processes
    done = densekit(folder, "translate", "DenseNet121.yaml", *options(CPU, SMALL, own))
    (folder / "recipe.yaml").write_text(done.stdout)
    theirs = densekit(folder, "train", "-c", "DenseNet121.yaml", *options(CPU, SMALL, own),
                      "--dry-run", "--json")  # fmt: skip
    ours = densekit(folder, "train", "-c", "recipe.yaml", "--dry-run", "--json")
    one, other = json.loads(theirs.stdout)["recipe"], json.loads(ours.stdout)["recipe"]
    del one["name"], other["name"]
    assert one == other
