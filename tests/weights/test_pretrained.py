"""weights/pretrained.py: all tensors into a network, or none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from densekit.config import UserError
from densekit.data.transforms import Preprocessing
from densekit.models import artifact
from densekit.models.artifact import ArtifactConfig, Described
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.variants import VARIANTS
from densekit.weights import pretrained, weights_file

TINY = DenseNetConfig(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=5)


def torchvision_tiny() -> torchvision.models.DenseNet:
    torch.manual_seed(7)
    model = torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5)
    model(torch.randn(4, 3, 32, 32))  # running statistics that are not the initial ones
    return model.eval()


def weights() -> dict[str, Tensor]:
    return torchvision_tiny().state_dict()


def ours(**changes: object) -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(TINY.model_copy(update=changes)).eval()


# Files that are not weights -----------------------------------------------------------------


class Harm:
    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return (Path.touch, (Path("harmed"),))  # type: ignore[return-value]


def test_code_in_a_pth_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harm()}, "weights.pth")
    with pytest.raises(UserError, match="could run code"):
        weights_file.read_weights(Path("weights.pth"))
    assert not Path("harmed").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", ["empty", "text", "half"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    if name.endswith("pth"):
        torch.save(weights(), file)
    else:
        save_file(weights(), file)
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "text": b"hello\n" * 9, "half": whole[: len(whole) // 2]}[
        content])  # fmt: skip
    with pytest.raises(UserError, match=re.escape(str(file))):
        weights_file.read_weights(file)


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"holds no weights|no DenseNet"):
        weights_file.read_weights(tmp_path / "list.pth")


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "densenet.pth")
    with pytest.raises(UserError, match=r'did you mean "densenet\.pth"'):
        weights_file.read_weights(tmp_path / "densnet.pth")


# Complete or failing ------------------------------------------------------------------------


def refusal(model: DenseNet, state: dict[str, Tensor], new_head: bool = False) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        pretrained.load_into(model, state, new_head)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items()), "half loaded"
    return str(caught.value)


def test_missing_unknown_and_misshapen_tensors_are_named() -> None:
    state = weights()
    del state["features.transition1.conv.weight"]
    state["head.weight"] = torch.ones(1)
    state["features.norm5.bias"] = torch.ones(3)
    text = refusal(ours(), state)
    assert "missing: features.transition1.conv.weight" in text
    assert "unknown: head.weight" in text
    assert "features.norm5.bias [3] instead of [16]" in text


def test_long_lists_are_cut() -> None:
    text = refusal(ours(), {})
    named = [name for name in weights() if "num_batches_tracked" not in name]
    assert f"and {len(named) - 5} more" in text
    assert len(text) < 500


def test_running_statistics_may_not_be_missing() -> None:
    state = weights()
    del state["features.norm5.running_var"]
    assert "missing: features.norm5.running_var" in refusal(ours(), state)


def test_batch_counters_may_be_missing() -> None:
    state = {n: t for n, t in weights().items() if not n.endswith("num_batches_tracked")}
    model = ours()
    pretrained.load_into(model, state)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_other_input_channels_than_colour_and_grey_must_agree() -> None:
    text = refusal(ours(in_channels=4), weights(), new_head=True)
    assert "features.conv0.weight [8, 3, 7, 7] instead of [8, 4, 7, 7]" in text
    assert "these weights are for model.in_channels=3" in text


def test_colour_weights_answer_alike_to_grey_images() -> None:
    colour, grey, back = torchvision_tiny(), ours(in_channels=1), ours()
    (note,) = pretrained.load_into(grey, colour.state_dict()).notes
    assert "3 channels, summed for 1" in note
    (note,) = pretrained.load_into(back, grey.state_dict()).notes
    assert "1 channel, repeated for 3 and divided by 3" in note
    images = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        wanted = colour(images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey(images), wanted)
        torch.testing.assert_close(back(images.expand(-1, 3, -1, -1)), wanted)


def test_grey_networks_start_from_colour_weights(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "w.pth")
    (said,) = pretrained.start_from(ours(in_channels=1), str(tmp_path / "w.pth"))
    assert said.endswith("w.pth: the stem's kernel is for 3 channels, summed for 1")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    state = {name: tensor.clone() for name, tensor in weights().items()}
    state["features.norm5.running_var"][3] = value
    assert "the weights hold NaN or infinity: features.norm5.running_var" in refusal(ours(), state)


def test_a_new_head_is_made_only_when_asked_for() -> None:
    text = refusal(ours(num_classes=2), weights())
    assert "these weights are for model.num_classes=5" in text

    model = ours(num_classes=2)
    head = model.classifier.weight.clone()
    assert pretrained.load_into(model, weights(), new_head=True).new_head
    assert torch.equal(model.classifier.weight, head)
    assert torch.equal(model.features.conv0.weight, weights()["features.conv0.weight"])


def test_a_head_that_fits_is_loaded() -> None:
    model = ours()
    assert not pretrained.load_into(model, weights(), new_head=True).new_head
    assert torch.equal(model.classifier.weight, weights()["classifier.weight"])


def test_dtype_and_memory_format_stay_the_models() -> None:
    model = ours().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in weights().items()}
    pretrained.load_into(model, half)
    kernel = model.features.conv0.weight
    assert kernel.dtype == torch.float32
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(kernel, half["features.conv0.weight"].float())


# model.pretrained ---------------------------------------------------------------------------


def test_start_from_a_file_says_when_the_head_is_new(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(weights(), file)
    assert pretrained.start_from(ours(), str(file)) == []
    (said,) = pretrained.start_from(ours(num_classes=2), str(file))
    assert "a new head of 2 classes" in said
    assert "5" in said


def test_start_from_an_artifact_or_a_runs_folder(tmp_path: Path) -> None:
    config = ArtifactConfig(
        model=Described(name="tiny", architecture=TINY),
        preprocessing=Preprocessing(),
        classes=tuple("abcde"),
    )
    artifact.write_artifact(tmp_path / "best", config, weights())
    for folder in (tmp_path, tmp_path / "best"):
        model = ours()
        assert pretrained.start_from(model, str(folder)) == []
        assert torch.equal(model.classifier.weight, weights()["classifier.weight"])


def test_another_epsilon_is_folded(tmp_path: Path) -> None:
    config = ArtifactConfig(
        model=Described(name="tiny", architecture=TINY.model_copy(update={"bn_eps": 1e-3})),
        preprocessing=Preprocessing(),
        classes=tuple("abcde"),
    )
    artifact.write_artifact(tmp_path, config, weights())
    model = ours()
    assert pretrained.start_from(model, str(tmp_path)) == []
    var = "features.norm5.running_var"
    torch.testing.assert_close(model.state_dict()[var], weights()[var] + 1e-3 - 1e-5)


# Sources of the published table -------------------------------------------------------------


def test_a_source_is_fetched_for_the_networks_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(pretrained, "fetch", lambda url, checksum: asked.append((url, checksum)))
    for name in ("densenet121", "densenet264"):
        config = VARIANTS[name].model_copy(update={"num_classes": 7, "drop_rate": 0.1})
        pretrained.locate_weights("paddle", config)
    pretrained.locate_weights("torchvision", VARIANTS["densenet121"])
    pretrained.locate_weights("hf-hub:org/name")
    pretrained.locate_weights("https://download.pytorch.org/models/densenet121-a639ec97.pth")
    assert [url.rsplit("/")[-1] for url, _ in asked] == [
        "DenseNet121_pretrained.pdparams",
        "DenseNet264_pretrained.pdparams",
        "densenet121-a639ec97.pth",
        "name",
        "densenet121-a639ec97.pth",
    ]
    assert [checksum for _, checksum in asked] == [
        None, None, "sha256:a639ec97", None, "sha256:a639ec97"
    ]  # fmt: skip


def test_a_source_has_only_its_variants() -> None:
    with pytest.raises(UserError, match=r"torchvision has weights for .*densenet201 only"):
        pretrained.locate_weights("torchvision", VARIANTS["densenet264"])
    with pytest.raises(UserError, match="give --model NAME"):
        pretrained.locate_weights("timm")
