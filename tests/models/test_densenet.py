from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from densekit.config import UserError
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.variants import VARIANTS

SMALL = DenseNetConfig(
    growth_rate=4, block_config=(2, 3, 2), num_init_features=6, bn_size=2, num_classes=5
)
TINY = SMALL.model_copy(update={"block_config": (1, 1)})
CIFAR = SMALL.model_copy(update={"stem": "cifar"})


# The architecture ---------------------------------------------------------------------------


@st.composite
def configs(draw: st.DrawFn) -> DenseNetConfig:
    return DenseNetConfig(
        growth_rate=draw(st.integers(1, 5)),
        block_config=tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))),
        num_init_features=draw(st.integers(2, 7)),
        bn_size=draw(st.integers(0, 3)),
        compression=draw(st.sampled_from([0.5, 0.7, 1.0])),
        stem=draw(st.sampled_from(["imagenet", "cifar"])),
        init=draw(st.sampled_from(["fan_in", "fan_out"])),
        in_channels=draw(st.integers(1, 4)),
        num_classes=draw(st.integers(0, 4)),
    )


@settings(max_examples=15, deadline=None)
@given(config=configs(), height=st.integers(1, 3), width=st.integers(1, 3))
def test_any_config_builds_and_describes_its_maps(
    config: DenseNetConfig, height: int, width: int
) -> None:
    model = DenseNet(config).eval()
    stride = model.feature_info[-1].stride
    x = torch.randn(2, config.in_channels, height * stride, width * stride)
    logits, maps = model(x), model.forward_pyramid(x)
    assert logits.shape == (2, config.num_classes or config.block_outputs[-1])
    assert config.parameter_count == sum(p.numel() for p in model.parameters())
    assert len(maps) == len(model.feature_info)
    for features, info in zip(maps, model.feature_info, strict=True):
        size = (height * stride // info.stride, width * stride // info.stride)
        assert features.shape == (2, info.channels, *size)
    last = model.forward_features(x)
    assert torch.equal(maps[-1], last)
    assert last.min() >= 0
    assert torch.allclose(model.classifier(last.mean((2, 3))), logits, atol=1e-5)


def test_cifar_stem_has_three_maps() -> None:
    info = DenseNet(VARIANTS["densenet_bc_40_36"]).feature_info
    assert [(f.name, f.stride) for f in info] == [
        ("denseblock1", 1),
        ("denseblock2", 2),
        ("norm5", 4),
    ]


def test_without_bottleneck_a_layer_is_one_convolution() -> None:
    layer = DenseNet(VARIANTS["densenet_40_12"]).features.denseblock1.denselayer2
    assert [name for name, _ in layer.named_children()] == ["norm1", "relu1", "conv1"]
    assert layer.conv1.weight.shape == (12, 16 + 12, 3, 3)


def test_transition_keeps_the_floor() -> None:
    config = CIFAR.model_copy(update={"num_init_features": 7, "compression": 0.5})
    assert DenseNet(config).features.transition1.conv.out_channels == (7 + 2 * 4) // 2


def test_epsilon_is_every_norms() -> None:
    model = DenseNet(SMALL.model_copy(update={"bn_eps": 1e-3}))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}
    assert {norm.momentum for norm in norms} == {0.1}


@pytest.mark.parametrize(("init", "axis"), [("fan_out", 0), ("fan_in", 1)])
def test_initial_weights_have_the_papers_spread(init: str, axis: int) -> None:
    torch.manual_seed(0)
    config = VARIANTS["densenet_bc_40_36"].model_copy(update={"init": init})
    weight = DenseNet(config).features.denseblock3.denselayer6.conv2.weight
    want = (2 / (3 * 3 * weight.shape[axis])) ** 0.5
    assert weight.std().item() == pytest.approx(want, rel=0.02)
    assert abs(weight.mean().item()) < 0.02 * want


# Use ----------------------------------------------------------------------------------------


def test_hooks_fire_and_replaced_modules_are_used() -> None:
    model = DenseNet(SMALL).eval()
    x = torch.randn(1, 3, 32, 32)
    fired: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: fired.append(name))
    before = model(x)
    assert set(fired) == {name for name, _ in model.named_modules()}
    model.features.denseblock2.denselayer3.conv1 = nn.Sequential(
        model.features.denseblock2.denselayer3.conv1, nn.Tanh()
    )
    assert not torch.equal(model(x), before)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["backward_hook", "backward_pre_hook"])
@pytest.mark.parametrize("op", ["auto", "reference", "recompute"])
def test_every_module_can_have_a_backward_hook(op: str, kind: str, training: bool) -> None:
    """As Grad-CAM tools need: torch cannot hook what stands beside a relu in place."""
    model, expected = DenseNet(TINY, op=op).train(training), None
    for name, module in model.named_modules():
        fired: list[nn.Module] = []
        hook = getattr(module, f"register_full_{kind}")(lambda m, *_, f=fired: f.append(m))
        torch.manual_seed(0)
        x = torch.randn(2, 3, 16, 16, requires_grad=True)
        model(x).square().sum().backward()
        hook.remove()
        assert set(fired) == {module}, name
        assert x.grad is not None
        expected = x.grad if expected is None else expected
        assert torch.allclose(x.grad, expected, rtol=1e-3, atol=1e-5), name


def test_a_backward_hook_gets_the_gradient_of_the_last_map() -> None:
    """Of norm5 before relu: Grad-CAM's weights, by a forward and a backward hook."""
    model, x = DenseNet(SMALL).eval(), torch.randn(2, 3, 32, 32)
    seen: dict[str, Tensor] = {}
    norm5 = model.features.norm5
    norm5.register_forward_hook(lambda m, args, out: seen.update(map=out))
    norm5.register_full_backward_hook(lambda m, into, out: seen.update(gradient=out[0]))
    model(x)[:, 1].sum().backward()
    weight = model.classifier.weight[1].view(1, -1, 1, 1) / seen["map"][0, 0].numel()
    assert torch.allclose(seen["gradient"], weight * (seen["map"] > 0), atol=1e-7)
    assert seen["map"].min() < 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("config", [SMALL, CIFAR])
def test_an_empty_batch_gives_no_logits_and_zero_gradients(
    config: DenseNetConfig, training: bool
) -> None:
    model = DenseNet(config).train(training)
    before = copy.deepcopy(model.state_dict())
    x = torch.zeros(0, 3, 32, 32, requires_grad=True)
    logits = model(x)
    logits.sum().backward()
    assert logits.shape == (0, 5)
    assert x.grad is not None
    assert x.grad.shape == x.shape
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
    after = model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before if "num_batches" not in k)
    assert [m.shape[0] for m in model.forward_pyramid(x)] == [0] * len(model.feature_info)


def test_too_small_images_are_the_users_mistake() -> None:
    model = DenseNet(VARIANTS["densenet_bc_40_36"]).eval()
    assert model(torch.zeros(1, 3, 4, 4)).shape == (1, 10)
    with pytest.raises(UserError, match=r"1x2 pixels are left .*data\.image_size"):
        model(torch.zeros(1, 3, 3, 4))


def test_op_is_chosen_by_name() -> None:
    model = DenseNet(SMALL)
    assert model.op == "auto"
    model.set_op("reference")
    assert model.op == "reference"
    assert model.features.denseblock3.op == "reference"
    with pytest.raises(
        UserError, match=r'model\.op: unknown op "refrence"; did you mean "reference"'
    ):
        model.set_op("refrence")
    with pytest.raises(UserError, match=r"model\.op"):
        DenseNet(SMALL, op="fast")
    assert model.op == "reference"


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(clone: object) -> None:
    assert callable(clone)
    model = DenseNet(SMALL, op="reference")
    model.freeze("block1")
    twin = clone(model)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(twin(x), model(x))
    assert list(twin.state_dict()) == list(model.state_dict())
    assert twin.op == "reference"
    assert twin.config == model.config
    assert not twin.train().features.norm0.training


@pytest.mark.parametrize("sync_bn", [False, True])
def test_compiles_as_one_graph(sync_bn: bool) -> None:
    torch._dynamo.reset()
    model = DenseNet(TINY.model_copy(update={"drop_rate": 0.1}), sync_bn=sync_bn)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(compiled.eval()(x), model(x))
    compiled.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# Fine-tuning --------------------------------------------------------------------------------


def test_stages_hold_every_module_of_the_features_once() -> None:
    model = DenseNet(SMALL)
    stages = model.stages()
    names = ["stem", "block1", "transition1", "block2", "transition2", "block3", "norm5"]
    assert list(stages) == names
    assert [m for stage in stages.values() for m in stage] == list(model.features)
    many = DenseNet(CIFAR.model_copy(update={"block_config": (1,) * 11}))
    assert len(many.stages()["stem"]) == 1
    assert list(many.stages())[-3:] == ["transition10", "block11", "norm5"]


def test_freeze_keeps_weights_and_statistics_up_to_its_stage() -> None:
    torch.manual_seed(0)
    model = DenseNet(SMALL.model_copy(update={"drop_rate": 0.5}))
    model.freeze("transition1")
    model.eval().train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    frozen = ("features.conv0", "features.norm0", "features.denseblock1", "features.transition1")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith(frozen), key
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen)
        assert (parameter.grad is None) == name.startswith(frozen)


def test_freezing_twice_keeps_the_later_stage() -> None:
    model = DenseNet(SMALL)
    model.freeze("norm5")
    model.freeze("stem")
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    model.train()
    assert model.training
    assert not any(m.training for m in model.features.norm5.modules())


def test_an_unknown_stage_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r'optim\.freeze: .*"blok2"; did you mean "block2"'):
        DenseNet(SMALL).freeze("blok2")
