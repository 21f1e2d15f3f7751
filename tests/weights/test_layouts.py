"""weights/layouts.py: checkpoints as people's scripts and libraries write them."""

from __future__ import annotations

import re
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from networks import SMALL, named_by, old_names, small, write_keras, write_keras_by_order
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from densekit.config import UserError
from densekit.models.densenet import DenseNet
from densekit.weights import keymaps, pretrained, weights_file

State = dict[str, Tensor]
HEAD = ("classifier.weight", "classifier.bias")


@pytest.fixture(scope="module")
def state() -> State:
    return small()


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def with_head(module: str, state: State, prefix: str = "") -> State:
    """The class head by another name, the body under `prefix`."""
    body = under(prefix, {n: t for n, t in state.items() if n not in HEAD})
    return body | {f"{module}.{n.split('.')[1]}": state[n] for n in HEAD}


def averaged(state: State) -> State:
    return {n: t + 1 if t.is_floating_point() else t for n, t in state.items()}


def optimizer(state: State) -> dict[str, Any]:
    return {
        "state": {0: {"exp_avg": torch.ones(8), "step": torch.tensor(1.0)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}],
    }


class ExponentialMovingAverage(AveragedModel):
    """torchvision's references keep the average so, with a counter of its own."""


def model_ema(state: State) -> State:
    model = DenseNet(SMALL)
    model.load_state_dict(averaged(state))
    return ExponentialMovingAverage(model).state_dict()


def mmpretrain(state: State) -> State:
    named = {keymaps.MMPRETRAIN.theirs(name): tensor for name, tensor in state.items()}
    return {(n if n.startswith("head.") else f"backbone.{n}"): t for n, t in named.items() if n}


CHECKPOINTS: dict[str, tuple[Callable[[State], Any], str]] = {
    # what is saved, and what is said of it
    "torchvision's references": (
        lambda s: {"model": s, "optimizer": optimizer(s), "epoch": 3, "args": Namespace(lr=0.1),
                   "model_ema": model_ema(s)},
        r'took "model\." off .*ignored 3 entries beside .*: optimizer, epoch, args; '
        r'holds averaged weights \(EMA\) too, under "model_ema\.module"',
    ),
    "timm's script": (
        lambda s: {"epoch": 3, "arch": "densenet121", "state_dict": s, "args": Namespace(lr=0.1),
                   "state_dict_ema": averaged(s), "metric": np.float64(0.5)},
        r'took "state_dict\.".*: epoch, arch, args, metric; .*under "state_dict_ema"',
    ),
    "Lightning": (
        lambda s: {"pytorch-lightning_version": "2.1", "hyper_parameters": {"lr": 0.1},
                   "state_dict": under("model.", s) | {"loss.weight": torch.ones(5)}},
        r'took "state_dict\.model\.".* pytorch-lightning_version, hyper_parameters, '
        r"state_dict\.loss$",
    ),
    "Lightning, net": (lambda s: {"state_dict": under("net.", s)}, r'took "state_dict\.net\."'),
    "model_state_dict": (lambda s: {"model_state_dict": s}, "model_state_dict"),
    "net": (lambda s: {"net": s, "acc": 93.1}, "ignored 1 entry .*: acc"),
    "torch.compile": (lambda s: under("_orig_mod.", s), 'took "_orig_mod."'),
    "compiled and parallel": (lambda s: under("module._orig_mod.", s), "module._orig_mod."),
    "backbone": (lambda s: with_head("head", s, "backbone."), 'took "head" for the class head'),
    "encoder": (lambda s: with_head("fc", s, "model.encoder."), 'took "fc" for the class head'),
    "CheXNet": (
        lambda s: {"state_dict": under("module.densenet121.", old_names(
            with_head("classifier.0", s)))},
        r'took "state_dict\.module\.densenet121\.".*"state_dict\.module.*\.classifier\.0"',
    ),
    "Sequential head": (lambda s: with_head("classifier.1", s), "classifier.1"),
    "timm's fc": (lambda s: with_head("fc", s), 'took "fc"'),
    "Cadene": (lambda s: with_head("last_linear", s), 'took "last_linear"'),
    "MMPretrain": (
        lambda s: {"meta": {"epoch": 1}, "state_dict": mmpretrain(s)},
        r'took "state_dict\.backbone\.".*took "state_dict\.head\.fc"',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_known_checkpoints(name: str, state: State, tmp_path: Path) -> None:
    make, said = CHECKPOINTS[name]
    torch.save(make(state), tmp_path / "w.pth")
    found = weights_file.read_weights(tmp_path / "w.pth")
    (note,) = found.notes
    assert re.search(said, note), note
    assert same(found.tensors, state)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("torchvision's references", "ema"),
        ("torchvision's references", "model_ema"),
        ("timm's script", "EMA"),
        ("timm's script", "state_dict_ema"),
    ],
)
def test_the_average_is_taken_when_asked_for(
    name: str, key: str, state: State, tmp_path: Path
) -> None:
    torch.save(CHECKPOINTS[name][0](state), tmp_path / "w.pth")
    found = weights_file.read_weights(tmp_path / "w.pth", key)
    assert same(found.tensors, averaged(state))
    assert "these are averaged weights (EMA)" in found.notes[0]


def test_an_average_alone_is_taken_and_said(state: State, tmp_path: Path) -> None:
    torch.save({"ema": averaged(state)}, tmp_path / "w.pth")
    found = weights_file.read_weights(tmp_path / "w.pth")
    assert same(found.tensors, averaged(state))
    assert "these are averaged weights (EMA)" in found.notes[0]


def test_several_networks_must_be_named(state: State, tmp_path: Path) -> None:
    torch.save({"student": state, "teacher": averaged(state)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"networks, under student, teacher: .*FILE#student"):
        weights_file.read_weights(tmp_path / "w.pth")
    found = weights_file.read_weights(tmp_path / "w.pth", "teacher").tensors
    assert torch.equal(found["classifier.bias"], state["classifier.bias"] + 1)
    with pytest.raises(UserError, match=r"no network under #best; .* under: student, teacher"):
        weights_file.read_weights(tmp_path / "w.pth", "best")


# Without a head -----------------------------------------------------------------------------


def radimagenet(state: State) -> State:
    """nn.Sequential of the network's children but the classifier, as a backbone."""
    return {
        n.replace("features.", "backbone.0."): t for n, t in state.items() if n not in HEAD
    }  # fmt: skip


def fastai(state: State) -> State:
    """vision_learner's body, and its head of two linear layers."""
    body = {n.replace("features.", "0.0."): t for n, t in state.items() if n not in HEAD}
    return body | {"1.4.weight": torch.ones(6, 48), "1.8.weight": torch.ones(5, 6)}


HEADLESS: dict[str, Callable[[State], Any]] = {
    "headless": lambda s: {n: t for n, t in s.items() if n not in HEAD},
    "RadImageNet": radimagenet,
    "fastai": lambda s: {"model": fastai(s), "opt": {}},
    "a head of two layers": lambda s: {
        **with_head("classifier.3", s), "classifier.0.weight": torch.ones(17, 17)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HEADLESS)
def test_bodies(name: str, state: State, tmp_path: Path) -> None:
    torch.save(HEADLESS[name](state), tmp_path / "w.pth")
    found = pretrained.find_weights(str(tmp_path / "w.pth"), SMALL)
    model = DenseNet(SMALL)
    with pytest.raises(UserError, match=r"missing: classifier\.bias, classifier\.weight[^?]*"
                       "no class head that fits; densekit convert --new-head N"):  # fmt: skip
        pretrained.load_into(model, found.tensors)
    assert pretrained.load_into(model, found.tensors, new_head=True).new_head
    body = [n for n in state if n not in HEAD]
    assert all(torch.equal(model.state_dict()[n], state[n]) for n in body)
    (*_, said) = pretrained.start_from(DenseNet(SMALL), str(tmp_path / "w.pth"))
    assert "a new head of 5 classes; the weights' own has none" in said


# Keras --------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_order", [False, True])
def test_keras_without_a_top(by_order: bool, state: State, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    body = {n: t for n, t in state.items() if n not in HEAD}
    (write_keras_by_order if by_order else write_keras)(tmp_path / "w.h5", body)
    found = weights_file.read_weights(tmp_path / "w.h5").tensors
    assert found.keys() == {n for n in body if "num_batches" not in n}
    assert all(torch.equal(tensor, body[n]) for n, tensor in found.items())


def test_a_network_within_a_keras_model(state: State, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "w.h5", "w") as h5:
        for name, array in named_by(keymaps.KERAS, state).items():
            layer, variable = name.rsplit("/", 1)
            place = "dense/dense" if layer == "predictions" else f"densenet121/{layer}"
            h5[f"model_weights/{place}/{variable}:0"] = array
    found = weights_file.read_weights(tmp_path / "w.h5")
    assert 'took "densenet121/" off the names; took "dense" for the class head' in found.notes[0]
    assert all(torch.equal(tensor, state[n]) for n, tensor in found.tensors.items())


def test_a_keras_archive(state: State, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_keras_by_order(tmp_path / "inner.h5", state)
    with h5py.File(tmp_path / "outer.h5", "w") as outer, h5py.File(tmp_path / "inner.h5") as inner:
        inner.copy("layers", outer.create_group("layers/functional"))
        outer.move("layers/functional/layers/dense", "layers/dense")
        outer["optimizer/vars/0"] = 1
    with zipfile.ZipFile(tmp_path / "w.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.write(tmp_path / "outer.h5", "model.weights.h5")
    found = weights_file.read_weights(tmp_path / "w.keras").tensors
    assert found.keys() == {n for n in state if "num_batches" not in n}
    assert all(torch.equal(tensor, state[n]) for n, tensor in found.items())


# What is not one ----------------------------------------------------------------------------


def test_another_network_is_named_by_its_first_keys(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"no DenseNet .* named conv1\.weight, bn1\.weight, bn1\.bias and 119 more"
        r"; the nearest layout that is known is ",
    ):  # fmt: skip
        weights_file.read_weights(tmp_path / "w.pth")


def test_a_checkpoint_without_weights(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "args": Namespace(lr=0.1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds no weights, .* its entries are epoch, args"):
        weights_file.read_weights(tmp_path / "w.pth")


def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "w.pt"))
    with pytest.raises(UserError, match=r"TorchScript .*torch\.jit\.load\(FILE") as refusal:
        weights_file.read_weights(tmp_path / "w.pt")
    assert "corrupt" not in str(refusal.value)


def test_integers_are_no_weights(state: State, tmp_path: Path) -> None:
    torch.save({n: t.to(torch.int8) for n, t in state.items()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"features\.conv0\.weight is int8, .*dequantized"):
        weights_file.read_weights(tmp_path / "w.pth")
