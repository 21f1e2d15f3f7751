"""densenet121 and its kin against torchvision's, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision.models
from torch import Tensor, nn

from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.variants import VARIANTS

TORCHVISION = ["densenet121", "densenet161", "densenet169", "densenet201"]
FORMATS = [torch.contiguous_format, torch.channels_last]


def shake_norms(model: nn.Module) -> None:
    """Norms as after some training: a fresh one hides a mixed-up scale, shift or statistic."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def same_states(ours: nn.Module, theirs: nn.Module) -> bool:
    a, b = ours.state_dict(), theirs.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def pair() -> tuple[DenseNet, nn.Module]:
    """densenet121 here and in torchvision, with the same weights."""
    torch.manual_seed(3)
    ours, theirs = DenseNet(VARIANTS["densenet121"], "reference"), torchvision.models.densenet121()
    shake_norms(theirs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    "name", [TORCHVISION[0], *(pytest.param(n, marks=pytest.mark.slow) for n in TORCHVISION[1:])]
)
def test_same_seed_gives_torchvisions_weights_and_logits(name: str) -> None:
    torch.manual_seed(5)
    ours = DenseNet(VARIANTS[name], "reference")
    drawn = torch.rand(())
    torch.manual_seed(5)
    theirs = torchvision.models.get_model(name)
    assert torch.equal(drawn, torch.rand(()))
    assert same_states(ours, theirs)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))


def step(model: nn.Module, x: Tensor, bf16: bool) -> tuple[Tensor, list[Tensor]]:
    """The logits and all gradients, the input's first."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(x)
    logits.float().square().sum().backward()
    assert x.grad is not None
    grads = [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
    model.zero_grad()
    return logits, grads


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bf16", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "channels_last"])
def test_a_step_is_torchvisions_bit_for_bit(
    pair: tuple[DenseNet, nn.Module], training: bool, bf16: bool, memory_format: torch.memory_format
) -> None:
    ours, theirs = (copy.deepcopy(m).train(training).to(memory_format=memory_format) for m in pair)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=memory_format)
    logits, grads = step(ours, x, bf16)
    want_logits, want_grads = step(theirs, x, bf16)
    assert torch.equal(logits, want_logits)
    assert len(grads) == len(want_grads) == 1 + len(list(theirs.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(grads, want_grads, strict=True))
    assert same_states(ours, theirs)
    assert same_states(ours, pair[0]) != training


@pytest.mark.gpu
@pytest.mark.parametrize("bf16", [True, False])
def test_on_cuda_logits_and_statistics_are_torchvisions(
    pair: tuple[DenseNet, nn.Module], bf16: bool
) -> None:
    ours, theirs = (copy.deepcopy(m).cuda().train() for m in pair)
    x = torch.randn(2, 3, 64, 64, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        assert torch.equal(ours(x), theirs(x))
    assert same_states(ours, theirs)


@pytest.mark.parametrize("size", [(29, 29), (33, 47), (61, 29)])
def test_odd_sizes(pair: tuple[DenseNet, nn.Module], size: tuple[int, int]) -> None:
    ours, theirs = (m.eval() for m in pair)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_dropout_draws_as_torchvision_does() -> None:
    kwargs = {"growth_rate": 4, "block_config": (2, 3, 2), "num_init_features": 6, "drop_rate": 0.3}
    torch.manual_seed(0)
    ours = DenseNet(DenseNetConfig(**kwargs, bn_size=2), "reference")
    theirs = torchvision.models.DenseNet(**kwargs, bn_size=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(1)
    logits = ours(x)
    torch.manual_seed(1)
    assert torch.equal(logits, theirs(x))
    assert not torch.equal(logits, ours(x))
    ours.eval()
    assert torch.equal(ours(x), ours(x))


def test_pyramid_of_121(pair: tuple[DenseNet, nn.Module]) -> None:
    model = pair[0].eval()
    info = [(f.name, f.channels, f.stride) for f in model.feature_info]
    assert info == [
        ("norm0", 64, 2),
        ("denseblock1", 256, 4),
        ("denseblock2", 512, 8),
        ("denseblock3", 1024, 16),
        ("norm5", 1024, 32),
    ]
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        module = pair[1].eval().features.get_submodule(name)
        module.register_forward_hook(lambda m, args, out: seen.update({name: out.clone().relu()}))

    theirs = ["norm0", "denseblock1", "denseblock2", "denseblock3", "norm5"]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for name in theirs:
            keep(name)
        pair[1](x)
        maps = model.forward_pyramid(x)
    for name, features in zip(theirs, maps, strict=True):
        assert torch.equal(features.relu(), seen[name])
    assert maps[0].min() == 0
    assert maps[1].min() < 0


@pytest.mark.slow
def test_121_compiles_as_one_graph(pair: tuple[DenseNet, nn.Module]) -> None:
    torch._dynamo.reset()
    model = copy.deepcopy(pair[0]).train()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(compiled(x), twin(x))
    assert same_states(model, twin)
