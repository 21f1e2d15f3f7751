"""data.decode=gpu, on a CPU, where pixels are to be the exact ones bit for bit; and on a GPU."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from densekit.config import UserError
from densekit.data import decode_on_gpu
from densekit.data.augment_config import AugmentConfig
from densekit.data.config import DataConfig, EvaluateConfig
from densekit.data.decode_on_gpu import Encoded, check_decoding, leave_encoded
from densekit.data.folders import read_folder
from densekit.data.listing import Examples
from densekit.data.loader import Batch, Step, TrainStream

CPU = torch.device("cpu")
DATA = DataConfig(
    image_size=24, batch_size=7, workers=0, cache="off", evaluate=EvaluateConfig(resize=28)
)
LEAST_PSNR = 35.0  # dB, of nvJPEG's pixels against libjpeg's


def photograph(seed: int, mode: str = "RGB", **options: Any) -> bytes:
    """Smooth colours, as photographs have them; its width and height depend on `seed`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    image = Image.fromarray(coarse).resize((60 + seed, 50 - seed), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.convert(mode).save(file, **{"format": "JPEG", "quality": 95, **options})
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return photograph(9, exif=exif)


def in_rgb() -> bytes:
    """A JPEG file whose colours are not YCbCr, as its Adobe segment says."""
    return photograph(10, keep_rgb=True)


OTHERS = {
    "a.png": lambda: photograph(7, format="PNG"),
    "b.jpg": lambda: photograph(8, "CMYK"),
    "c.jpg": turned,
    "d.jpg": in_rgb,
    "e.jpg": lambda: photograph(11, "L"),
}
"""What is not left to nvJPEG."""


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    root = tmp_path_factory.mktemp("photographs")
    for name in ("cats", "dogs"):
        (root / name).mkdir()
    for seed in range(7):
        (root / "cats" / f"{seed}.jpg").write_bytes(photograph(seed))
    for name, content in OTHERS.items():
        (root / "dogs" / name).write_bytes(content())
    return read_folder(root)


def stream(examples: Examples, decode: str, **how: Any) -> TrainStream:
    data = {name: how.pop(name) for name in list(how) if name in DataConfig.model_fields}
    config = DATA.model_copy(update={"decode": decode, **data})
    return TrainStream(examples, config, seed=3, epochs=2, **how)


def batches(steps: Sequence[Step]) -> list[Batch]:
    return [batch for step in steps for batch in step.batches]


def alike(one: Sequence[Step], other: Sequence[Step]) -> bool:
    pairs = zip(batches(one), batches(other), strict=True)
    same = (torch.equal(x, y) for a, b in pairs for x, y in zip(a[:3], b[:3], strict=True))
    return all(same) and [step.images for step in one] == [step.images for step in other]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cpu_decodes_the_exact_pixels_by_the_same_draws(examples: Examples, workers: int) -> None:
    exact = list(stream(examples, "exact"))
    assert alike(exact, list(stream(examples, "gpu", workers=workers)))
    assert alike(exact[2:], list(stream(examples, "gpu").from_step(2)))  # as a resume has it


def test_ranks_share_what_one_sees(examples: Examples) -> None:
    exact = batches(list(stream(examples, "exact")))
    ranks = [batches(list(stream(examples, "gpu", rank=rank, world=3))) for rank in range(3)]
    for whole, *shares in zip(exact, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([share.images for share in shares]))


def test_what_nvjpeg_might_not_take_is_the_workers(examples: Examples) -> None:
    left = [
        Path(examples.paths[place]).name
        for place in range(len(examples))
        if isinstance(sent(examples, place), Encoded)
    ]
    assert left == [f"{seed}.jpg" for seed in range(7)]


def sent(examples: Examples, place: int) -> Tensor | Encoded:
    from densekit.data.augment import train_transform
    from densekit.data.decode import open_image

    return leave_encoded(train_transform(DATA), open_image(examples.image(place), 3))


def test_a_file_that_is_refused_is_decoded_exactly(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself: it is found among the others of its batch."""
    real, calls = decode_on_gpu.decode_jpeg, []
    refused = len(photograph(4))

    def decode(files: list[Tensor], *rest: Any) -> list[Tensor]:
        calls.append(len(files))
        if any(len(file) == refused for file in files):
            raise RuntimeError("nvjpegDecode failed: 2")
        return real(files, *rest)

    monkeypatch.setattr(decode_on_gpu, "decode_jpeg", decode)
    assert alike(list(stream(examples, "exact")), list(stream(examples, "gpu")))
    assert calls.count(1) >= 2  # once an epoch


def test_few_pixels_are_decoded_at_once(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_on_gpu, "PIXELS_AT_ONCE", 6000)  # two files
    assert alike(list(stream(examples, "exact")), list(stream(examples, "gpu")))


def test_a_damaged_file_is_named_or_left_out(tmp_path: Path, examples: Examples) -> None:
    """Its header and its end are whole, so that only decoding finds it out."""
    (tmp_path / "cats").mkdir()
    (tmp_path / "dogs").mkdir()
    for seed in range(3):
        (tmp_path / "cats" / f"{seed}.jpg").write_bytes(photograph(seed))
    content = photograph(1)
    damaged = tmp_path / "dogs" / "bad.jpg"
    damaged.write_bytes(content[: content.index(b"\xff\xda") + 4] + b"\xff\xd9")
    (tmp_path / "dogs" / "good.jpg").write_bytes(photograph(2))
    own, skip = read_folder(tmp_path), {"on_bad_image": "skip", "max_bad_images": 3}
    with pytest.raises(UserError, match=r"bad\.jpg.*replace it with an intact file"):
        list(stream(own, "gpu"))
    exact, found = list(stream(own, "exact", **skip)), list(stream(own, "gpu", **skip))
    assert alike(exact, found)
    assert [bad.position for batch in batches(found) for bad in batch.bad] == [3, 3]


# Where it cannot be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "device", "why"),
    [
        ({}, "cpu", "nvJPEG is of NVIDIA's GPUs, and this run is on cpu"),
        ({"intensity": "full"}, "cuda", "it is for images of 8 bits"),
        (
            {"augment": AugmentConfig(erase=0.5)},
            "cuda",
            "on the GPU .*, and data.augment asks for more",
        ),
    ],
)
def test_it_is_refused_in_a_sentence(options: dict[str, Any], device: str, why: str) -> None:
    config = DATA.model_copy(update={"decode": "gpu", **options})
    with pytest.raises(UserError, match=f"data.decode=gpu: {why}.*; set data.decode=exact"):
        check_decoding(config, device)


def test_a_build_without_nvjpeg_is_found_out_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(files: list[Tensor], mode: Any, device: torch.device) -> list[Tensor]:
        raise RuntimeError("torchvision not compiled with nvJPEG support\nat decode_jpegs_cuda")

    assert decode_on_gpu.why_no_decoder(CPU) is None
    monkeypatch.setattr(decode_on_gpu, "decode_jpeg", decode)
    with pytest.raises(UserError, match=r"decodes nothing on cuda \(torchvision not compiled"):
        check_decoding(DATA.model_copy(update={"decode": "gpu"}), "cuda")
    check_decoding(DATA, "cpu")


@pytest.mark.gpu
def test_a_gpus_pixels_are_near_to_the_exact_ones(examples: Examples) -> None:
    """And the others are the exact ones; twice the same."""
    if why := decode_on_gpu.why_no_decoder(torch.device("cuda")):
        pytest.skip(why)
    runs = [list(stream(examples, "gpu", device=torch.device("cuda", 0))) for _ in range(2)]
    assert alike(*runs)
    pairs = zip(batches(list(stream(examples, "exact"))), batches(runs[0]), strict=True)
    for exact, found in islice(pairs, 4):
        assert found.images.is_cuda
        error = (exact.images.double() - found.images.cpu().double()).square().flatten(1).mean(1)
        others = [Path(examples.paths[i]).parent.name == "dogs" for i in exact.indices.tolist()]
        assert not error[torch.tensor(others)].any()
        assert (10 * torch.log10(255**2 / error.clamp(min=1e-9))).min() >= LEAST_PSNR
