"""weights/convert.py: `densekit convert`, complete or failing with a list."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from networks import TINY, densenet121, tiny, write_keras_by_order, write_paddle
from PIL import Image
from torch import Tensor

from densekit.cli import main as cli
from densekit.config import UserError
from densekit.infer import model as source
from densekit.infer.classifier import load
from densekit.models import artifact
from densekit.models.artifact import Preprocessing
from densekit.models.densenet import DenseNet
from densekit.models.variants import VARIANTS, ModelConfig, create
from densekit.weights import published, weights_file
from densekit.weights.convert import ConvertOptions, convert


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return densenet121()


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> ConvertOptions:
    """What a file of weights cannot say."""
    classes = tmp_path_factory.mktemp("known") / "classes.txt"
    classes.write_text("".join(f"{i} {name}\n" for i, name in enumerate("abcde")))
    return ConvertOptions(preprocessing="imagenet", classes=str(classes))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_there_and_back_again(
    state: dict[str, Tensor], known: ConvertOptions, tmp_path: Path
) -> None:
    """Paddle -> torchvision -> an artifact -> Paddle -> safetensors, every value the same."""
    places = [
        tmp_path / name for name in ("w.pdparams", "w.pth", "a", "2.pdparams", "3.safetensors")
    ]
    write_paddle(places[0], state)
    for src, dst in itertools.pairwise(places):
        said = convert(str(src), str(dst), known if dst.suffix == "" else ConvertOptions())
        assert "densenet121" in said[0]
        assert str(dst) in said[-1]
    for place in (places[1], places[4]):
        assert same(weights_file.read_weights(place).tensors, state)
    stored = artifact.read_artifact(tmp_path / "a")
    assert same(stored.state_dict, state)
    assert stored.config.classes == tuple("abcde")
    assert stored.config.model.architecture == VARIANTS["densenet121"].model_copy(
        update={"num_classes": 5}
    )
    model = torchvision.models.densenet121(num_classes=5).eval()
    model.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits = source.open_path(str(tmp_path / "a")).model(images)
        assert torch.equal(logits, model(images))


def test_kerass_epsilon_is_kept(
    state: dict[str, Tensor], known: ConvertOptions, tmp_path: Path
) -> None:
    write_keras_by_order(tmp_path / "w.weights.h5", state)
    convert(str(tmp_path / "w.weights.h5"), str(tmp_path / "a"), known)
    stored = artifact.read_artifact(tmp_path / "a")
    assert stored.config.model.architecture.bn_eps == 1.001e-5
    assert torch.equal(stored.state_dict["classifier.weight"], state["classifier.weight"])
    said = convert(str(tmp_path / "a"), str(tmp_path / "w.pth"), ConvertOptions())
    assert any("running_var is moved" in line for line in said)


def test_provenance(state: dict[str, Tensor], known: ConvertOptions, tmp_path: Path) -> None:
    write_paddle(tmp_path / "w.pdparams", state)
    convert(str(tmp_path / "w.pdparams"), str(tmp_path / "a"), known)
    tree = json.loads((tmp_path / "a" / "config.json").read_text())
    assert tree["provenance"]["source"] == {
        "file": "w.pdparams",
        "sha256": weights_file.read_weights(tmp_path / "w.pdparams").sha256,
        "names": "paddle",
    }


# Complete -----------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(tiny().state_dict(), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def test_the_patterns_names_are_found(file: Path, known: ConvertOptions) -> None:
    assert "densenet_bc_16_12" in convert(str(file), str(file.with_suffix("")), known)[0]


def test_all_that_does_not_fit_is_listed(file: Path, tmp_path: Path) -> None:
    state = tiny().state_dict()
    missing = [name for name in state if "denseblock2.denselayer1" in name]
    for name in missing:
        del state[name]
    state["features.norm5.bias"] = torch.ones(3)
    state["extra"] = torch.ones(1)
    torch.save(state, file)
    with pytest.raises(UserError) as caught:
        convert(str(file), str(tmp_path / "a"), ConvertOptions(model="densenet_bc_16_12"))
    text = str(caught.value)
    assert all(name in text for name in missing if "num_batches" not in name)
    assert "unknown: extra" in text
    assert "features.norm5.bias [3] instead of" in text
    assert not (tmp_path / "a").exists()


def test_another_class_count_is_a_new_head(file: Path, tmp_path: Path) -> None:
    said = convert(
        str(file), str(tmp_path / "a"), ConvertOptions(new_head=3, preprocessing="imagenet")
    )
    assert any("the head is new, 3 classes" in line for line in said)
    stored = artifact.read_artifact(tmp_path / "a")
    assert stored.config.classes == ("0", "1", "2")
    assert stored.state_dict["classifier.weight"].shape[0] == 3
    body = [name for name in stored.state_dict if not name.startswith("classifier")]
    assert all(torch.equal(stored.state_dict[n], tiny().state_dict()[n]) for n in body)


def test_a_new_head_is_the_same_every_time(file: Path, tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        torch.rand(1)
        convert(str(file), str(tmp_path / name), ConvertOptions(new_head=3))
    one, other = (weights_file.read_weights(tmp_path / name).tensors for name in ("a.pth", "b.pth"))
    assert same(one, other)


# On the command line ------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["densekit", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def test_the_command(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "convert", file, tmp_path / "w.safetensors") == 0
    assert "read back the same" in capsys.readouterr().out
    assert run(monkeypatch, "convert", file, tmp_path / "w.safetensors") == 2
    assert "add --force" in capsys.readouterr().err
    assert run(monkeypatch, "convert", file, tmp_path / "w.safetensors", "--force") == 0
    assert "read back the same" in capsys.readouterr().out
    assert run(monkeypatch, "convert", file, tmp_path / "2.pth", "--model", "densenet121") == 2
    said = capsys.readouterr()
    assert "features.denseblock4.denselayer16.conv2.weight" in said.err
    assert said.out == ""
    (tmp_path / "bad.pdparams").write_bytes(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.")
    assert run(monkeypatch, "convert", tmp_path / "bad.pdparams", tmp_path / "3.pth") == 2
    assert "names posix.system" in capsys.readouterr().err
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "bad.pdparams", "tiny.pth", "w.safetensors"
    ]  # fmt: skip


# How it is used -----------------------------------------------------------------------------


def test_what_a_file_does_not_say_must_be_given(file: Path, known: ConvertOptions) -> None:
    with pytest.raises(UserError, match=r"--preprocessing imagenet\|.*paddleclas"):
        convert(str(file), str(file.with_suffix("")), ConvertOptions())
    with pytest.raises(UserError, match=r"name its 5 classes; give --classes imagenet\|"):
        convert(str(file), str(file.with_suffix("")), ConvertOptions(preprocessing="imagenet"))
    with pytest.raises(UserError, match="--classes imagenet: 1000 names for 5 outputs"):
        convert(
            str(file),
            str(file.with_suffix("")),
            ConvertOptions(preprocessing="imagenet", classes="imagenet"),
        )
    assert not file.with_suffix("").exists()


def test_a_published_checksum_says_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(tiny(num_classes=1000).state_dict(), file)
    row = published.Published(
        "x",
        "densenet121",
        "u",
        f"sha256:{weights_file.read_weights(file).sha256[:8]}",
        preprocessing="timm",
    )
    monkeypatch.setattr(published, "PUBLISHED", (row,))
    convert(str(file), str(tmp_path / "a"), ConvertOptions())
    config = artifact.read_artifact(tmp_path / "a").config
    assert config.preprocessing == published.PREPROCESSINGS["timm"]
    assert config.classes[0] == "tench"


def test_a_file_of_preprocessing(file: Path, known: ConvertOptions, tmp_path: Path) -> None:
    yaml = tmp_path / "own.yaml"
    yaml.write_text("resize: 40\ncrop: 32\nmean: [0.5]\nstd: [0.25]\n")
    convert(str(file), str(tmp_path / "a"), ConvertOptions(None, None, str(yaml), known.classes))
    assert artifact.read_artifact(tmp_path / "a").config.preprocessing == Preprocessing(
        resize=40, crop=32, mean=(0.5,), std=(0.25,)
    )
    yaml.write_text("resise: 40\n")
    with pytest.raises(UserError, match=r'own\.yaml:1.*resise.*"resize"'):
        convert(
            str(file), str(tmp_path / "b"), ConvertOptions(None, None, str(yaml), known.classes)
        )


XRAYS = ConvertOptions(preprocessing="torchxrayvision", classes="torchxrayvision")


@pytest.fixture
def grey() -> DenseNet:
    return tiny(num_classes=18, in_channels=1)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_xrays_are_multilabel(grey: DenseNet, tmp_path: Path, kind: type) -> None:
    """What a file's bits can hold is -1024..1024, in torchxrayvision's own words."""
    torch.save(grey.state_dict(), tmp_path / "x.pth")
    convert(str(tmp_path / "x.pth"), str(tmp_path / "x"), XRAYS)
    classifier, most = load(tmp_path / "x", device="cpu"), np.iinfo(kind).max
    assert classifier.task == "multilabel"
    pixels = np.random.default_rng(0).integers(0, most, (224, 224), kind, endpoint=True)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (row,) = classifier.predict([tmp_path / "x.png"], topk=18)
    scaled = (2 * (torch.from_numpy(pixels.astype(np.float32)) / most) - 1) * 1024
    with torch.inference_mode():
        wanted = grey(scaled[None, None]).sigmoid()[0]
    found = torch.zeros(18)
    for answer in row["topk"]:
        found[answer["class"]] = answer["prob"]
        assert answer["label"] == published.XRAY_CLASSES[answer["class"]]
        assert "positive" not in answer
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_operating_points_are_the_thresholds(grey: DenseNet, tmp_path: Path) -> None:
    """NaN: the finding was not trained, which is said."""
    points = torch.linspace(0.01, 0.18, 18).double()
    points[[3, 17]] = torch.nan
    torch.save({**grey.state_dict(), "op_threshs": points}, tmp_path / "x.pth")
    said = convert(str(tmp_path / "x.pth"), str(tmp_path / "x"), XRAYS)
    assert "none for outputs 3, 17, on whose findings these weights were not trained" in said[-1]
    thresholds = artifact.read_artifact(tmp_path / "x").config.thresholds
    assert thresholds is not None
    assert thresholds.rule == "TorchXRayVision's op_threshs"
    wanted = [None if k in (3, 17) else float(points[k]) for k in range(18)]
    assert list(thresholds.values) == wanted
    torch.save({**grey.state_dict(), "op_threshs": points[:14]}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="op_threshs are 14 for 18 outputs"):
        convert(str(tmp_path / "x.pth"), str(tmp_path / "y"), XRAYS)


def test_a_published_xray_file_needs_no_options(tmp_path: Path) -> None:
    """Its name alone says what it is: no checksum of it is published."""
    row = published.find_published("torchxrayvision-rsna", "densenet121")
    file = tmp_path / row.url.rpartition("/")[2]
    config = ModelConfig(name="densenet121", num_classes=18, in_channels=1)
    torch.save(create(config).state_dict(), file)
    convert(str(file), str(tmp_path / "x"), ConvertOptions())
    stored = artifact.read_artifact(tmp_path / "x").config
    assert stored.thresholds is not None
    named = zip(stored.classes, stored.thresholds.values, strict=True)
    trained = {name: value for name, value in named if value is not None}
    assert trained == {"Pneumonia": 0.13486601, "Lung Opacity": 0.13511065}


def test_options_that_do_not_apply(file: Path, known: ConvertOptions, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--preprocessing: goes with an artifact"):
        convert(str(file), str(tmp_path / "w.safetensors"), known)
    with pytest.raises(UserError, match=r"not a format that densekit writes.*\.pdparams"):
        convert(str(file), str(tmp_path / "w.onnx"), ConvertOptions())
    with pytest.raises(UserError, match="--task both: expected multiclass or multilabel"):
        convert(str(file), str(tmp_path / "a"), ConvertOptions(task="both"))
    with pytest.raises(UserError, match=r"--preprocessing imagnet.*\"imagenet\""):
        convert(str(file), str(tmp_path / "a"), ConvertOptions(preprocessing="imagnet"))
    convert(str(file), str(tmp_path / "a"), known)
    with pytest.raises(UserError, match="--model is for files"):
        convert(str(tmp_path / "a"), str(tmp_path / "b"), ConvertOptions(model="densenet121"))


def test_colour_weights_for_grey_images(file: Path, known: ConvertOptions, tmp_path: Path) -> None:
    options = ConvertOptions(preprocessing="torchxrayvision", classes=known.classes)
    said = convert(str(file), str(tmp_path / "a"), options)
    assert f"{file}: the stem's kernel is for 3 channels, summed for 1" in said
    stored = artifact.read_artifact(tmp_path / "a")
    assert stored.config.model.architecture.in_channels == 1


def test_weights_with_nan_are_refused(file: Path, tmp_path: Path) -> None:
    state = tiny().state_dict()
    state["classifier.bias"][2] = float("nan")
    torch.save(state, file)
    with pytest.raises(UserError, match=r"the weights hold NaN or infinity: classifier\.bias"):
        convert(str(file), str(tmp_path / "w.safetensors"), ConvertOptions())
    assert not (tmp_path / "w.safetensors").exists()


# Nothing is overwritten ---------------------------------------------------------------------


def test_what_is_there_is_kept_without_force(
    file: Path, known: ConvertOptions, tmp_path: Path
) -> None:
    forced = replace(known, force=True)
    convert(str(file), str(tmp_path / "a"), known)
    (tmp_path / "other.safetensors").write_bytes(b"mine")
    whole = file.read_bytes()
    for dst, words in (
        (file, "tiny.pth: there is SRC itself"),
        (tmp_path / "other.safetensors", "there is a file"),
        (tmp_path / "a", "there is an artifact already"),
    ):
        options = known if dst.suffix == "" else ConvertOptions()
        with pytest.raises(UserError, match=rf"{words}.*; add --force"):
            convert(str(file), str(dst), options)
    assert file.read_bytes() == whole
    assert (tmp_path / "other.safetensors").read_bytes() == b"mine"
    convert(str(file), str(tmp_path / "other.safetensors"), ConvertOptions(force=True))
    convert(str(tmp_path / "a"), str(tmp_path / "a"), forced)  # onto itself
    assert same(artifact.read_artifact(tmp_path / "a").state_dict, tiny().state_dict())


def test_force_does_not_reach_what_is_no_artifact(
    file: Path, known: ConvertOptions, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "plain").write_text("mine")
    forced = replace(known, force=True)
    with pytest.raises(UserError, match="holds something else than an artifact"):
        convert(str(file), str(tmp_path / "run"), forced)
    with pytest.raises(UserError, match="a file, and an artifact is a folder"):
        convert(str(file), str(tmp_path / "plain"), forced)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UserError, match="a folder"):
        convert(str(file), str(tmp_path / "folder.pth"), ConvertOptions(force=True))


def test_a_home_folder_is_expanded(
    file: Path, known: ConvertOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.txt").write_text(Path(str(known.classes)).read_text())
    (tmp_path / "p.yaml").write_text("resize: 40\ncrop: 32\n")
    options = ConvertOptions(preprocessing="~/p.yaml", classes="~/c.txt")
    convert("~/tiny.pth", "~/a", options)
    config = artifact.read_artifact(tmp_path / "a").config
    assert (config.classes, config.preprocessing.crop) == (tuple("abcde"), 32)


def test_names_are_changed_and_all_else_is_kept(
    file: Path, known: ConvertOptions, tmp_path: Path
) -> None:
    convert(str(file), str(tmp_path / "a"), known)
    stored = artifact.read_artifact(tmp_path / "a")
    trained = stored.config.model_copy(update={"metrics": {"top1": 0.9}, "data": {"val": "v"}})
    artifact.write_artifact(tmp_path / "a", trained, stored.state_dict)
    (tmp_path / "names.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate("vwxyz")))
    convert(
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        ConvertOptions(classes=str(tmp_path / "names.txt")),
    )
    config = artifact.read_artifact(tmp_path / "b").config
    assert config.classes == tuple("vwxyz")
    assert (config.metrics, config.data) == (trained.metrics, trained.data)
    convert(str(tmp_path / "a"), str(tmp_path / "c"), ConvertOptions(preprocessing="timm"))
    assert artifact.read_artifact(tmp_path / "c").config.metrics == {}


def test_half_precision_is_widened(file: Path, tmp_path: Path) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in tiny().state_dict().items()}
    torch.save(half, file)
    convert(str(file), str(tmp_path / "w.safetensors"), ConvertOptions())
    tensors = weights_file.read_weights(tmp_path / "w.safetensors").tensors
    assert tensors["classifier.weight"].dtype == torch.float32
    assert torch.equal(tensors["classifier.weight"], half["classifier.weight"].float())


# Paddle's own -------------------------------------------------------------------------------


def test_real_paddle_weights_give_paddles_logits(test_data: Path, tmp_path: Path) -> None:
    folder = test_data / "paddle"
    options = ConvertOptions(preprocessing="paddleclas", classes="imagenet")
    convert(str(folder / "DenseNet121_random.pdparams"), str(tmp_path / "a"), options)
    recorded = np.load(folder / "DenseNet121_random_io.npz")
    with torch.inference_mode():
        model = source.open_path(str(tmp_path / "a")).model
        logits = model(torch.from_numpy(recorded["images"])).numpy()
    scale = np.abs(recorded["logits"]).max()
    assert scale > 1
    assert np.abs(logits - recorded["logits"]).max() < 2e-5 * scale
    convert(str(tmp_path / "a"), str(tmp_path / "back.pdparams"), ConvertOptions())
    one = weights_file.read_weights(folder / "DenseNet121_random.pdparams").tensors
    assert same(one, weights_file.read_weights(tmp_path / "back.pdparams").tensors)


def test_tiny_is_what_its_name_says() -> None:
    from densekit.models.variants import variant

    assert variant("densenet_bc_16_12").model_copy(update={"num_classes": 5}) == TINY
