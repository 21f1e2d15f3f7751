"""model.py: what can be opened, and what is said of what cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from densekit.config import UserError
from densekit.data.config import DataConfig, EvaluateConfig
from densekit.data.transforms import Preprocessing
from densekit.infer import model as source
from densekit.models import artifact
from densekit.models.artifact import ArtifactConfig, Described
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.models.variants import ModelConfig

TINY = DenseNetConfig(
    growth_rate=4, block_config=(1, 1), num_init_features=8, stem="cifar", in_channels=1,
    num_classes=3, image_size=28,
)  # fmt: skip
PREPROCESSING = Preprocessing(channels=1, resize=None, crop=28, mean=(0.5,), std=(0.5,))


def tiny(seed: int = 0, dtype: torch.dtype = torch.float32) -> DenseNet:
    torch.manual_seed(seed)
    return DenseNet(TINY).to(dtype)


def write(folder: Path, model: DenseNet, task: artifact.Task = "multiclass") -> Path:
    config = ArtifactConfig(
        task=task,
        model=Described(name="tiny", architecture=TINY),
        preprocessing=PREPROCESSING,
        classes=("zero", "one", "two"),
        data={"val": "val_list.txt"},
    )
    artifact.write_artifact(folder, config, model.state_dict())
    return folder


# Folders ------------------------------------------------------------------------------------


def test_an_artifact_opens_whole(tmp_path: Path) -> None:
    opened = source.open_path(str(write(tmp_path / "best", tiny())))
    assert opened.name == "tiny"
    assert opened.preprocessing == PREPROCESSING
    assert opened.classes == ["zero", "one", "two"]
    assert opened.task == "multiclass"
    assert opened.data == {"val": "val_list.txt"}
    assert opened.notes == ()
    assert not any(module.training for module in opened.model.modules())
    assert opened.model.op == "auto"
    written, images = tiny().eval(), torch.randn(2, 1, 28, 28)
    with torch.inference_mode():
        assert torch.equal(opened.model(images), written(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_open_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny(dtype=dtype)
    opened = source.open_path(str(write(tmp_path, model)))
    for name, tensor in opened.model.state_dict().items():
        assert tensor.dtype == (torch.float32 if tensor.is_floating_point() else torch.int64)
        assert torch.equal(tensor, model.state_dict()[name].to(tensor.dtype))


def test_multilabel_opens(tmp_path: Path) -> None:
    assert source.open_path(str(write(tmp_path, tiny(), "multilabel"))).task == "multilabel"


def test_a_runs_folder_gives_best_then_last(tmp_path: Path) -> None:
    write(tmp_path / "last", tiny(1))
    opened = source.open_path(str(tmp_path))
    assert str(tmp_path / "last") in opened.notes[0]
    write(tmp_path / "best", tiny(2))
    opened = source.open_path(str(tmp_path))
    assert str(tmp_path / "best") in opened.notes[0]
    assert torch.equal(opened.model.classifier.weight, tiny(2).classifier.weight)


def test_weights_that_do_not_fit_their_config(tmp_path: Path) -> None:
    write(tmp_path, tiny())
    stored = artifact.read_artifact(tmp_path)
    state = dict(stored.state_dict)
    del state["classifier.bias"]
    artifact.write_artifact(tmp_path, stored.config, state)
    with pytest.raises(UserError, match=r"(?s)do not fit.*missing: classifier\.bias"):
        source.open_path(str(tmp_path))


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not an artifact: it holds no model\.safetensors"):
        source.open_path(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"model": "densenet121"}, "--model"), ({"classes": "abc.txt"}, "--classes")],
)
def test_options_that_a_folder_does_not_take(
    tmp_path: Path, options: dict[str, object], named: str
) -> None:
    write(tmp_path, tiny())
    with pytest.raises(UserError, match=f"{named} is for files of weights"):
        source.open_path(str(tmp_path), **options)  # type: ignore[arg-type]


def test_a_path_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "quickstart", tiny())
    with pytest.raises(UserError, match=r'no such file or folder; did you mean "quickstart"\?'):
        source.open_path(str(tmp_path / "quikstart"))
    with pytest.raises(UserError, match=r"no such file or folder$"):
        source.open_path(str(tmp_path / "nothing" / "like" / "it"))


# Files of weights ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def densenet121(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "ten.pth"
    torch.save(torchvision.models.densenet121(num_classes=10).state_dict(), file)
    return file


def test_a_torchvision_file(densenet121: Path) -> None:
    opened = source.open_path(str(densenet121), model="densenet121")
    torch.manual_seed(0)
    theirs, images = (
        torchvision.models.densenet121(num_classes=10).eval(),
        torch.randn(1, 3, 64, 64),
    )
    opened.model.set_op("reference")
    with torch.inference_mode():
        assert torch.equal(opened.model(images), theirs(images))
    assert opened.preprocessing == Preprocessing(resize=256, crop=224)
    assert opened.classes == [str(label) for label in range(10)]
    assert opened.data == {}
    assert "ImageNet" in opened.notes[0]


def test_classes_for_a_file(densenet121: Path, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("".join(f"{label} {'abcdefghij'[label]}\n" for label in reversed(range(10))))
    opened = source.open_path(str(densenet121), "densenet121", str(file))
    assert opened.classes == list("abcdefghij")
    assert opened.named
    assert not source.open_path(str(densenet121), "densenet121").named
    file.write_text("0 a\n1 b\n")
    with pytest.raises(UserError, match=r"--classes .*: 2 names, but the network has 10 outputs"):
        source.open_path(str(densenet121), "densenet121", str(file))


def test_a_file_needs_its_model(densenet121: Path) -> None:
    with pytest.raises(UserError, match="give --model NAME"):
        source.open_path(str(densenet121))
    with pytest.raises(UserError, match=r'unknown model "densnet121"; did you mean "densenet121"'):
        source.open_path(str(densenet121), model="densnet121")
    with pytest.raises(UserError, match=r"ten\.pth: the weights do not fit the model"):
        source.open_path(str(densenet121), model="densenet169")


def test_grey_weights_need_a_recipe(tmp_path: Path) -> None:
    torch.manual_seed(0)
    grey = DenseNet(DenseNetConfig(in_channels=1))
    save_file(grey.state_dict(), tmp_path / "grey.safetensors")
    with pytest.raises(UserError, match=r"for 1 input .*model\.pretrained"):
        source.open_path(str(tmp_path / "grey.safetensors"), model="densenet121")


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"neither a folder nor a file of weights"):
        source.open_path(str(tmp_path / "cat.jpg"), model="densenet121")


# Recipes ------------------------------------------------------------------------------------


def recipe(**model: object) -> tuple[ModelConfig, DataConfig]:
    return (
        ModelConfig.model_validate({"name": "densenet_bc_10_4", "in_channels": 1, **model}),
        DataConfig(
            channels=1, image_size=28, mean=(0.5,), std=(0.25,), evaluate=EvaluateConfig(resize=32)
        ),
    )


def test_a_recipe_with_pretrained_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = source.architecture(recipe(num_classes=4)[0])
    state = DenseNet(config).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    opened = source.open_configured(*recipe(pretrained=str(tmp_path / "w.safetensors")))
    assert opened.preprocessing == Preprocessing(
        channels=1, resize=32, crop=28, mean=(0.5,), std=(0.25,)
    )
    assert opened.classes == ["0", "1", "2", "3"]
    assert torch.equal(opened.model.classifier.weight, state["classifier.weight"])
    named = source.open_configured(
        *recipe(op="recompute", pretrained=str(tmp_path / "w.safetensors"))
    )
    assert (opened.model.op, named.model.op) == ("auto", "recompute")
    with pytest.raises(UserError, match=r"these weights are for model\.num_classes=4"):
        source.open_configured(*recipe(num_classes=5, pretrained=str(tmp_path / "w.safetensors")))


def test_a_recipe_without_weights() -> None:
    with pytest.raises(UserError, match=r"add -o model\.pretrained"):
        source.open_configured(*recipe())
