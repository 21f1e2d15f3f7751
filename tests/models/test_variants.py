from __future__ import annotations

import functools
import re

import pytest
import torch
from torch import nn

from densekit.config import UserError
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.variants import (
    VARIANTS,
    ModelConfig,
    architecture,
    create,
    multiply_adds,
    variant,
)
from densekit.ops.sync_bn import SyncBatchNorm2d

PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet264": 33_337_704,
    "densenet_40_12": 1_019_722,
    "densenet_100_12": 6_979_642,
    "densenet_100_24": 27_249_082,
    "densenet_bc_100_12": 769_162,
    "densenet_bc_250_24": 15_324_406,
    "densenet_bc_190_40": 25_624_430,
    "densenet_bc_40_36": 1_542_682,
    "densenet_bc_40_48": 2_733_130,
    "densenet_bc_40_60": 4_261_690,
}


@functools.cache
def shapes(name: str) -> DenseNet:
    """The published network without its numbers."""
    with torch.device("meta"):
        return DenseNet(VARIANTS[name])


def test_every_published_count_is_held() -> None:
    assert set(PARAMETERS) == set(VARIANTS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name: str) -> None:
    assert sum(p.numel() for p in shapes(name).parameters()) == PARAMETERS[name]
    assert VARIANTS[name].parameter_count == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        ("densenet121", 2.834),
        pytest.param("densenet161", 7.728, marks=pytest.mark.slow),
        pytest.param("densenet201", 4.291, marks=pytest.mark.slow),
    ],
)
def test_multiply_adds_are_those_that_torchvision_states(name: str, giga: float) -> None:
    assert multiply_adds(VARIANTS[name]) / 1e9 == pytest.approx(giga, abs=6e-4)


def test_multiply_adds_by_hand() -> None:
    config = DenseNetConfig(
        stem="cifar", block_config=(1,), growth_rate=2, num_init_features=4, bn_size=0,
        in_channels=1, num_classes=3, image_size=5,
    )  # fmt: skip
    assert multiply_adds(config) == 25 * 9 * 1 * 4 + 25 * 9 * 4 * 2 + 6 * 3


@pytest.mark.parametrize("name", VARIANTS)
def test_depth_is_the_number_in_the_name(name: str) -> None:
    layers = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in shapes(name).modules())
    number = re.findall("[0-9]+", name)[0]
    assert layers == (265 if number == "264" else int(number))  # the paper's own miscount


def test_pattern_names_any_other() -> None:
    assert variant("densenet_bc_16_8").block_config == (2, 2, 2)
    assert variant("densenet_bc_16_8").num_init_features == 16
    assert variant("densenet_22_5").block_config == (6, 6, 6)
    assert variant("densenet_22_5").compression == 1
    assert variant("densenet_22_5").bn_size == 0


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("densnet121", 'did you mean "densenet121"'),
        ("densenet_bc_101_12", "100 and 106"),
        ("densenet_39_12", "37 and 40"),
        ("densenet_bc_4_12", "10 and 16"),
        ("densenet_0_12", "7 and 10"),
        ("densenet_40_0", "growth rate 0"),
        ("densenet_bc_40000_4", "19,998 dense layers; more than 1,000 are refused"),
        ("densenet_bc_40_9000000", "parameters; more than 10,000,000,000 are refused"),
        ("densenet_bc_" + "9" * 5000 + "_4", "densenet_bc_L_k"),
        ("resnet50", "densenet_bc_L_k"),
    ],
)
def test_unknown_names_are_refused_with_a_remedy(name: str, remedy: str) -> None:
    with pytest.raises(UserError, match=r"^model\.name: ") as error:
        variant(name)
    assert remedy in str(error.value)


def test_architecture_is_the_variant_with_the_configs_own_fields_and_overrides() -> None:
    assert architecture(ModelConfig()) == VARIANTS["densenet121"]
    config = ModelConfig(
        name="densenet_bc_100_12", in_channels=1, drop_rate=0.2, overrides={"bn_eps": 1e-3}
    )
    want = {"in_channels": 1, "drop_rate": 0.2, "bn_eps": 1e-3, "num_classes": 10}
    assert architecture(config) == VARIANTS["densenet_bc_100_12"].model_copy(update=want)
    assert architecture(ModelConfig(num_classes=7)).num_classes == 7


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"growthrate": 3}, 'model.overrides: growthrate: .*did you mean "growth_rate"'),
        ({"growth_rate": 0}, "model.overrides: growth_rate: .*greater than or equal to 1, got 0"),
        ({"block_config": [3, 0]}, "model.overrides: block_config.1: .*got 0"),
        ({"block_config": []}, "model.overrides: block_config: "),
        ({"num_classes": 3}, "model.overrides: .*model.num_classes"),
        ({"compression": 0.001}, "compression=0.001 leaves a block without channels"),
        ({"block_config": [400, 400, 400]}, "1,200 dense layers; more than 1,000 are refused"),
        ({"growth_rate": 10**8}, "parameters; more than 10,000,000,000 are refused"),
    ],
)
def test_wrong_overrides_are_refused_by_name(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        architecture(ModelConfig(overrides=overrides))


def test_create_follows_the_whole_config() -> None:
    config = ModelConfig(
        name="densenet_bc_16_8", num_classes=4, in_channels=1, op="reference", sync_bn=True
    )
    model = create(config)
    assert model.op == "reference"
    assert model.config == architecture(config)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, SyncBatchNorm2d) for norm in norms)
    plain = create(config.model_copy(update={"sync_bn": False}))
    assert not any(isinstance(m, SyncBatchNorm2d) for m in plain.modules())
    assert list(plain.state_dict()) == list(model.state_dict())


def test_without_a_head_it_gives_pooled_features() -> None:
    config = ModelConfig(name="densenet_bc_16_8")
    headless, whole = create(config, with_head=False).eval(), create(config).eval()
    left = whole.load_state_dict(headless.state_dict(), strict=False).missing_keys
    x = torch.randn(2, 3, 8, 8)
    assert isinstance(headless.classifier, nn.Identity)
    assert torch.allclose(headless(x), whole.forward_features(x).mean((2, 3)), atol=1e-6)
    assert left == ["classifier.weight", "classifier.bias"]
