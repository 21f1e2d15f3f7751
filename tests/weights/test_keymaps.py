"""weights/keymaps.py: the tables, by hand-written names of each library."""

from __future__ import annotations

import pytest
import torch

from densekit.models.densenet import DenseNet
from densekit.models.variants import VARIANTS
from densekit.weights import keymaps
from densekit.weights.keymaps import KeyMap

NAMES = {
    keymaps.TORCHVISION_2017: {
        "features.conv0.weight": "features.conv0.weight",
        "features.denseblock2.denselayer12.norm.2.running_var":
            "features.denseblock2.denselayer12.norm2.running_var",
        "features.transition3.norm.bias": "features.transition3.norm.bias",
    },
    keymaps.MONAI: {
        "features.denseblock4.denselayer1.layers.conv1.weight":
            "features.denseblock4.denselayer1.conv1.weight",
        "class_layers.out.bias": "classifier.bias",
    },
    keymaps.PADDLE: {
        "conv1_func._conv.weight": "features.conv0.weight",
        "conv1_func._batch_norm._mean": "features.norm0.running_mean",
        "db_conv_2.conv2_6.bn_ac_func2._batch_norm._variance":
            "features.denseblock1.denselayer6.norm2.running_var",
        "db_conv_5.conv5_16.bn_ac_func1._conv.weight":
            "features.denseblock4.denselayer16.conv1.weight",
        "tr_conv2_blk.conv_ac_func._batch_norm.weight": "features.transition1.norm.weight",
        "tr_conv4_blk.conv_ac_func._conv.weight": "features.transition3.conv.weight",
        "batch_norm.bias": "features.norm5.bias",
        "out.weight": "classifier.weight",
    },
    keymaps.KERAS: {
        "conv1_conv/kernel": "features.conv0.weight",
        "conv1_bn/moving_variance": "features.norm0.running_var",
        "conv2_block1_0_bn/gamma": "features.denseblock1.denselayer1.norm1.weight",
        "conv5_block16_1_bn/beta": "features.denseblock4.denselayer16.norm2.bias",
        "conv3_block2_1_conv/kernel": "features.denseblock2.denselayer2.conv1.weight",
        "conv3_block2_2_conv/kernel": "features.denseblock2.denselayer2.conv2.weight",
        "pool2_bn/gamma": "features.transition1.norm.weight",
        "pool4_conv/kernel": "features.transition3.conv.weight",
        "bn/moving_mean": "features.norm5.running_mean",
        "predictions/bias": "classifier.bias",
    },
    keymaps.KERAS_2017: {
        "conv1/bn/gamma": "features.norm0.weight",
        "fc1000/kernel": "classifier.weight",
    },
}  # fmt: skip


@pytest.mark.parametrize("keymap", NAMES, ids=lambda keymap: keymap.name)
def test_names_by_hand(keymap: KeyMap) -> None:
    for their, ours in NAMES[keymap].items():
        assert keymap.ours(their) == ours
        assert keymap.theirs(ours) == their


@pytest.mark.parametrize("keymap", keymaps.KEYMAPS, ids=lambda keymap: keymap.name)
def test_every_tensor_of_121_has_one_name_and_comes_back(keymap: KeyMap) -> None:
    with torch.device("meta"):
        names = DenseNet(VARIANTS["densenet121"]).state_dict().keys()
    theirs = {name: keymap.theirs(name) for name in names}
    unnamed = {name for name, their in theirs.items() if their is None}
    counters = {name for name in names if name.endswith("num_batches_tracked")}
    assert unnamed == (set() if keymap.counters else counters)
    named = [their for their in theirs.values() if their is not None]
    assert len(set(named)) == len(named)
    assert all(their is None or keymap.ours(their) == name for name, their in theirs.items())


@pytest.mark.parametrize(
    "name",
    [
        "db_conv_2.conv3_1.bn_ac_func1._conv.weight",  # two blocks in one name
        "db_conv_2.conv2_01.bn_ac_func1._conv.weight",
        "out.running_mean",
        "xout.weight",
        "out.weight.extra",
        "out",
    ],
)
def test_other_names_are_unknown(name: str) -> None:
    assert keymaps.PADDLE.ours(name) is None
