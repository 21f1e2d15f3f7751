"""weights/weights_file.py: every library's files, read whole and by our names; and written."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from networks import (
    TINY,
    named_by,
    old_names,
    shaken,
    small,
    tiny,
    write_keras,
    write_keras_by_order,
    write_paddle,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from densekit.config import UserError
from densekit.models.densenet import DenseNet
from densekit.models.variants import VARIANTS, variant
from densekit.weights import keymaps, weights_file

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return small()


def save_monai(file: Path, state: State) -> None:
    named = {keymaps.MONAI.theirs(name): tensor for name, tensor in state.items()}
    torch.save(named, file)


class _DenseNet(nn.Module):
    """A whole module, by the class name under which TorchXRayVision publishes its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.features, self.classifier = model.features, model.classifier
        self.register_buffer("op_threshs", torch.ones(5))


def save_module(file: Path, state: State) -> None:
    model = nn.Module()
    model.features, model.classifier = nn.Sequential(), nn.Linear(24, 5)
    if len(state) > 3:
        model = torchvision.models.DenseNet(4, (2, 3, 2, 2), 8, num_classes=5)
        model.load_state_dict(state)
    saved = io.BytesIO()
    torch.save(_DenseNet(model), saved, _use_new_zipfile_serialization=False)
    # the same module as if it were pickled where that library is installed
    text = saved.getvalue().replace(f"c{__name__}\n_DenseNet".encode(), b"cmodels\nDenseNet")
    file.write_bytes(text)


FORMS: dict[str, Callable[[Path, State], object]] = {
    "torchvision.pth": lambda file, s: torch.save(s, file),
    "legacy.pth": lambda file, s: torch.save(s, file, _use_new_zipfile_serialization=False),
    "names_2017.pth": lambda file, s: torch.save(old_names(s), file),
    "state_dict.pth.tar": lambda file, s: torch.save({"state_dict": s, "epoch": 3}, file),
    "model.pt": lambda file, s: torch.save({"model": s, "optimizer": {"lr": [0.1]}}, file),
    "parallel.pth": lambda file, s: torch.save({f"module.{n}": t for n, t in s.items()}, file),
    "parameters.pth": lambda file, s: torch.save(
        {n: nn.Parameter(t, requires_grad=False) for n, t in s.items()}, file
    ),
    "timm.safetensors": lambda file, s: save_file(s, file),
    "monai.pth": save_monai,
    "paddle.pdparams": write_paddle,
    "paddle2.pdparams": lambda file, s: write_paddle(file, s, protocol=2),
    "paddle5.pdparams": lambda file, s: write_paddle(file, s, protocol=5),
    "keras.h5": write_keras,
    "keras_2017.h5": lambda file, s: write_keras(file, s, keymaps.KERAS_2017),
    "keras.weights.h5": write_keras_by_order,
    "module.pt": lambda file, s: save_module(file, s),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_tensor_of_every_form(name: str, state: State, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name, state)
    found = weights_file.read_weights(tmp_path / name)
    wanted = {n: t for n, t in state.items() if "num_batches" not in n or n in found.tensors}
    assert found.tensors.keys() == wanted.keys()
    assert all(torch.equal(found.tensors[n], tensor) for n, tensor in wanted.items())
    assert found.keymap.bn_eps == (1.001e-5 if "keras" in name else 1e-5)


def test_old_names_really_differ(state: State) -> None:
    assert "features.denseblock1.denselayer1.norm.1.weight" in old_names(state)


@pytest.mark.parametrize(
    "name", [n for n in VARIANTS if n.startswith("densenet1") or "_40_" in n] + ["densenet_bc_16_8"]
)
def test_the_variant_is_found_by_shapes(name: str) -> None:
    config = variant(name).model_copy(update={"num_classes": 3, "in_channels": 1})
    with torch.device("meta"):
        tensors = DenseNet(config).state_dict()
    assert weights_file.identify(weights_file.Weights(tensors, keymaps.TORCHVISION, "")) == (
        name,
        config,
    )


def test_an_unknown_network_is_described(tmp_path: Path) -> None:
    torch.save(tiny(block_config=(1, 2)).state_dict(), tmp_path / "own.pth")
    with pytest.raises(UserError, match=r"blocks of \[1, 2\] layers, growth rate 12.*--model NAME"):
        weights_file.identify(weights_file.read_weights(tmp_path / "own.pth"))


def test_an_epsilon_is_folded_into_the_variance() -> None:
    keras = tiny(bn_eps=1.001e-5)
    with torch.no_grad():
        for module in keras.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.mul_(1e-4)  # where a difference of 1e-8 shows
    keras = keras.double()
    own = tiny().double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        own.load_state_dict(keras.state_dict())
        assert not torch.allclose(own(images), keras(images), rtol=1e-6, atol=0)
        own.load_state_dict(weights_file.at_eps(keras.state_dict(), 1.001e-5, 1e-5))
        torch.testing.assert_close(own(images), keras(images), rtol=1e-9, atol=1e-9)


# Written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", weights_file.WRITTEN)
def test_what_is_written_is_read(suffix: str, state: State, tmp_path: Path) -> None:
    assert weights_file.write_weights(tmp_path / f"w{suffix}", state, VARIANTS["densenet121"]) == []
    found = weights_file.read_weights(tmp_path / f"w{suffix}").tensors
    counters = {n for n in state if n.endswith("num_batches_tracked")}
    assert found.keys() == (state.keys() - counters if suffix == ".pdparams" else state.keys())
    assert all(torch.equal(state[name], tensor) for name, tensor in found.items())


def test_paddles_file_is_what_paddle_writes(state: State, tmp_path: Path) -> None:
    weights_file.write_weights(tmp_path / "w.pdparams", state, VARIANTS["densenet121"])
    written = pickle.loads((tmp_path / "w.pdparams").read_bytes())
    wanted = named_by(keymaps.PADDLE, state)
    assert written.keys() == wanted.keys()
    assert all(np.array_equal(written[n], array) for n, array in wanted.items())
    assert written["out.weight"].shape == (17, 5)


def test_torch_loads_what_is_written(state: State, tmp_path: Path) -> None:
    weights_file.write_weights(tmp_path / "w.pth", state, VARIANTS["densenet121"])
    model = torchvision.models.DenseNet(4, (2, 3, 2, 2), 8, num_classes=5)
    model.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True))


def test_another_epsilon_is_said(tmp_path: Path) -> None:
    model = tiny(bn_eps=1e-3)
    (said,) = weights_file.write_weights(tmp_path / "w.pth", model.state_dict(), model.config)
    assert "running_var is moved" in said
    var = "features.norm5.running_var"
    found = weights_file.read_weights(tmp_path / "w.pth").tensors[var]
    torch.testing.assert_close(found, model.state_dict()[var] + 1e-3 - 1e-5)


def test_paddle_has_no_such_network(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"PaddleClas has densenet121, .* only"):
        weights_file.write_weights(tmp_path / "w.pdparams", tiny().state_dict(), TINY)
    grey = VARIANTS["densenet121"].model_copy(update={"in_channels": 1})
    with pytest.raises(UserError, match="take 3 channels, this 1"):
        weights_file.write_weights(tmp_path / "w.pdparams", small(), grey)
    assert list(tmp_path.iterdir()) == []


# Damage -------------------------------------------------------------------------------------


def test_tensors_given_twice_are_refused(tmp_path: Path) -> None:
    arrays = named_by(keymaps.PADDLE, small())
    arrays["classifier.bias"] = arrays["out.bias"]
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(arrays))
    with pytest.raises(UserError, match=r"holds classifier\.bias twice"):
        weights_file.read_weights(tmp_path / "w.pdparams")


def test_volumes_are_refused(tmp_path: Path) -> None:
    volumes = {**small(), "features.conv0.weight": torch.ones(8, 1, 7, 7, 7)}
    torch.save(volumes, tmp_path / "3d.pth")
    with pytest.raises(UserError, match="kernel over volumes"):
        weights_file.read_weights(tmp_path / "3d.pth")


@pytest.mark.parametrize("name", FORMS)
def test_files_that_are_cut_short_are_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    some = ("features.conv0.weight", "features.norm0.bias", "classifier.weight")
    FORMS[name](file, {n: t for n, t in tiny().state_dict().items() if n in some})
    whole = file.read_bytes()
    for share in (0.0, 0.001, 0.5, 0.999):
        file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=name):
            weights_file.read_weights(file)


SMALL = ("torchvision.pth", "legacy.pth", "timm.safetensors", "module.pt")


@given(st.data())
def test_damaged_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([*SMALL, "paddle.pdparams", "keras.h5"]))
    file = tmp_path_factory.mktemp("fuzz") / name
    state = {"classifier.weight": torch.ones(3, 2), "classifier.bias": torch.zeros(3)}
    FORMS["torchvision.pth" if name == "module.pt" else name](file, state)
    damaged = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(damaged)
    try:
        found = weights_file.read_weights(file)
    except UserError:
        return
    assert all(t.numel() <= len(damaged) for t in found.tensors.values())


def rewrite(file: Path, change: Callable[[str, bytes], bytes], **options: Any) -> None:
    """The zip archive with other contents."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in entries.items():
            archive.writestr(name, change(name, content))


def test_a_tensor_that_claims_more_than_is_stored(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({**small(), "classifier.bias": torch.ones(77)}, file)
    claims = b"M\xff\xff"  # 65535 for 77 values
    rewrite(
        file, lambda name, content: content.replace(b"KM", claims) if "pkl" in name else content
    )
    with pytest.raises(UserError, match=r"larger than what is stored|should have 65535"):
        weights_file.read_weights(file)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1_000_000)}, file)
    rewrite(file, lambda _, content: content, compression=zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 10_000
    with pytest.raises(UserError, match="claim more than the file has"):
        weights_file.read_weights(file)


def test_one_storage_for_many_tensors(tmp_path: Path) -> None:
    values = torch.zeros(1000)
    many = {f"{i}": values.expand(1, 1000) for i in range(200)}
    torch.save({**small(), **many}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="larger than what is stored"):
        weights_file.read_weights(tmp_path / "w.pth")
    torch.save({**small(), "a": torch.zeros(1).expand(1 << 50)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="larger than what is stored"):
        weights_file.read_weights(tmp_path / "w.pth")
    array = np.zeros(1000)
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({f"{i}": array for i in range(50)}))
    with pytest.raises(UserError, match="larger than what is stored"):
        weights_file.read_weights(tmp_path / "w.pdparams")


def test_an_array_of_many_dimensions(tmp_path: Path) -> None:
    data = pickle.dumps({"w": np.ones((1,) * 60)}, 2)
    assert data.count(b"K\x01" * 60) == 1
    more = data.replace(b"K\x01" * 60, b"K\x01" * 100)  # which numpy cannot make
    (tmp_path / "w.pdparams").write_bytes(more)
    with pytest.raises(UserError, match="array of 100 dimensions, where weights have 4 at most"):
        weights_file.read_weights(tmp_path / "w.pdparams")


def test_a_tar_archive_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "w.pth", "w") as archive:
        archive.add(__file__, "tensors")
    with pytest.raises(UserError, match=r"w\.pth: a tar archive: if torch 0\.1 made it"):
        weights_file.read_weights(tmp_path / "w.pth")


def test_a_legacy_file_that_lacks_a_storage(tmp_path: Path) -> None:
    FORMS["legacy.pth"](tmp_path / "w.pth", small())
    whole = (tmp_path / "w.pth").read_bytes()
    keys = whole.rindex(b"\x80\x02]")  # the list of the storages that follow
    end = whole.index(b".", keys)
    (tmp_path / "w.pth").write_bytes(whole[:keys] + b"\x80\x02]" + whole[end:])
    with pytest.raises(UserError, match=r"corrupt: it has no storage"):
        weights_file.read_weights(tmp_path / "w.pth")


def test_an_empty_data_set_can_claim_any_size(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "w.h5", "w") as h5:
        h5.create_dataset("bn/bn/gamma", shape=(1 << 40,), dtype="f4", chunks=(1 << 20,))
    with pytest.raises(UserError, match="not all there"):
        weights_file.read_weights(tmp_path / "w.h5")


def test_links_to_other_files_are_not_followed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as h5:
        h5["gamma"] = np.ones(3)
    with h5py.File(tmp_path / "w.h5", "w") as h5:
        h5["bn/bn/gamma"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "gamma")
    assert weights_file.entries(tmp_path / "w.h5").tensors == {}


def test_shaken_networks_really_differ_from_fresh_ones() -> None:
    model = shaken(DenseNet(TINY))
    assert all(m.running_var.std() > 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
