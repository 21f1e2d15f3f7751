"""What auto takes, and that what is asked for by name is what computes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from seen import LEAN, SMALL, Seen, images
from torch import Tensor, nn

import densekit
from densekit.config import UserError
from densekit.infer.engines import logits_of
from densekit.models.artifact import Preprocessing
from densekit.models.densenet import DenseNet
from densekit.ops import choose
from densekit.ops.lean.kernels import implementation, native
from densekit.precision import Precision

FLOAT32 = torch.float32


def network(op: str = "auto", dtype: torch.dtype = FLOAT32) -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(SMALL, op=op).to(dtype)


def lean_of(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Which lean ops ran for the forward pass."""
    with Seen() as seen:
        model(x)
    return seen.lean


@pytest.fixture
def has_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """That there are C++ kernels, where nothing calls them."""
    monkeypatch.setattr(choose, "native_reason", lambda: None)


# auto ---------------------------------------------------------------------------------------


def test_auto_takes_lean_in_training_in_float32_and_bfloat16() -> None:
    assert native.reason() is None, "this test needs a C++ compiler"
    assert lean_of(network(), images()) == LEAN
    with torch.autocast("cpu", torch.bfloat16):
        assert lean_of(network(), images()) == LEAN
    assert lean_of(network(dtype=torch.bfloat16), images().bfloat16()) == LEAN


@pytest.mark.usefixtures("has_kernels")
def test_auto_takes_the_reference_in_evaluation() -> None:
    assert lean_of(network().eval(), images()) == {}


@pytest.mark.usefixtures("has_kernels")
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_auto_takes_the_reference_without_gradients(without: Callable[[], object]) -> None:
    with without():  # type: ignore[attr-defined]
        assert lean_of(network(), images()) == {}


@pytest.mark.usefixtures("has_kernels")
def test_auto_takes_the_reference_where_nothing_needs_a_gradient() -> None:
    model = network().requires_grad_(False)
    assert lean_of(model, images()) == {}
    assert lean_of(model, images().requires_grad_()) == LEAN


@pytest.mark.usefixtures("has_kernels")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_auto_takes_the_reference_in_formats_without_kernels(dtype: torch.dtype) -> None:
    assert lean_of(network(dtype=dtype), images().to(dtype)) == {}
    reason = choose.why_not_lean(torch.device("cpu"), dtype)
    assert reason == f"lean's C++ kernels are for float32 and bfloat16, not {dtype}"


def test_auto_takes_the_reference_on_other_devices() -> None:
    assert lean_of(network().to("meta"), images().to("meta")) == {}
    reason = choose.why_not_lean(torch.device("cuda"), FLOAT32)
    assert reason == "lean has not been measured on this GPU"


def test_auto_takes_the_reference_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "native_reason", lambda: "no C++ compiler was found")
    assert lean_of(network(), images()) == {}


@pytest.mark.usefixtures("has_kernels")
def test_auto_chooses_part_by_part() -> None:
    """A frozen stage is in evaluation mode, and needs no gradient."""
    model = network()
    model.freeze("block1")
    assert lean_of(model, images()) == {"densekit::dense_block": 1, "densekit::norm_relu": 1}


def test_no_images_have_nothing_to_compute() -> None:
    assert lean_of(network("lean"), images(0)) == {}
    assert network("lean")(images(0)).shape == (0, 3)


def test_a_loop_of_ones_own_gets_lean() -> None:
    model = densekit.create_model("densenet_bc_22_12", num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with Seen() as seen:
        model.train()(images(2, 8)).logsumexp(1).sum().backward()
    optimizer.step()
    assert seen.counts["densekit::dense_block"] == 3
    assert seen.counts["densekit::dense_block_backward"] == 3


@pytest.mark.usefixtures("has_kernels")
def test_a_loop_of_ones_own_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choose, "_SAID", set())
    model = network()
    for _ in range(2):
        model(images()).sum().backward()
    assert capsys.readouterr().err.count("model.op=auto takes lean in training") == 1
    model.features.denseblock1.denselayer1.relu1.register_forward_hook(lambda *_: None)
    for _ in range(2):
        model(images()).sum().backward()
    assert capsys.readouterr().err.count("takes the reference in training: ") == 1
    network("lean")(images())
    network("reference")(images())
    network().eval()(images())
    assert capsys.readouterr().err == "", "what was asked for by name, and evaluation"


# By name ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad", "float64"])
def test_lean_by_name_is_lean_always(mode: str) -> None:
    dtype = torch.float64 if mode == "float64" else FLOAT32
    model = network("lean", dtype).train(mode != "eval")
    with torch.set_grad_enabled(mode != "no_grad"):
        assert lean_of(model, images().to(dtype)) == LEAN


@pytest.mark.parametrize("op", ["reference", "recompute"])
def test_others_by_name_are_never_lean(op: str) -> None:
    assert lean_of(network(op), images()) == {}


def test_an_unknown_op_is_refused_with_the_nearest() -> None:
    model = network()
    with pytest.raises(UserError, match=r'^model\.op: unknown op "leen"; did you mean "lean"\?'):
        model.set_op("leen")
    assert lean_of(model, images()) == LEAN


@pytest.mark.parametrize(
    "clone",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: torch.optim.swa_utils.AveragedModel(model).module,
    ],
    ids=["deepcopy", "pickle", "AveragedModel"],
)
def test_copies_keep_the_op(clone: Callable[[DenseNet], DenseNet]) -> None:
    model = network("lean")
    twin = clone(model)
    assert twin.op == "lean"
    assert lean_of(twin, images()) == LEAN
    assert lean_of(model, images()) == LEAN
    assert torch.equal(twin.eval()(images(seed=1)), model.eval()(images(seed=1)))
    twin.set_op("reference")
    assert model.op == "lean"


# Evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("op", choose.OP_NAMES)
def test_evaluation_is_the_same_whatever_the_op(op: str, training: bool) -> None:
    model = network(op)
    model(images(seed=1))  # the running statistics of a batch
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    pixels = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).to(torch.uint8)
    precision = Precision(torch.device("cpu"))
    logits = logits_of(model, Preprocessing(), precision)(pixels)
    artifact = copy.deepcopy(model).eval()
    artifact.set_op("auto")
    assert torch.equal(logits, logits_of(artifact, Preprocessing(), precision)(pixels))
    artifact.set_op("reference")
    with torch.no_grad():
        torch.testing.assert_close(logits, artifact(Preprocessing().normalize(pixels)))
    assert model.op == op
    assert model.training == training
    assert model.features.denseblock1.op == op
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("capability", "kernels"), [((7, 5), "plain"), ((8, 0), "triton"), ((9, 0), "triton")]
)
def test_triton_is_for_gpus_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], kernels: str
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert implementation(torch.device("cuda", 0), torch.bfloat16) == kernels
