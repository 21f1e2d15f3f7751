"""transforms.py: bit for bit torchvision's, or PaddleClas'; any image gives the square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from densekit.data.augment import train_transform
from densekit.data.augment_config import AugmentConfig
from densekit.data.config import DataConfig, EvaluateConfig
from densekit.data.decode import ImageFile
from densekit.data.transforms import Preprocessing


def smooth(width: int, height: int) -> Tensor:
    """uint8 [3, height, width]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([4 * x + y, 3 * y + x, 2 * x + 2 * y]) % 256).byte()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(50, 40), (33, 77), (32, 32), (400, 35)])
def test_preprocessing_is_torchvisions(
    interpolation: str, antialias: bool, size: tuple[int, int]
) -> None:
    ours = Preprocessing(resize=32, crop=28, interpolation=interpolation, antialias=antialias)
    theirs = v2.Compose(
        [v2.Resize(32, InterpolationMode(interpolation), antialias=antialias), v2.CenterCrop(28)]
    )
    image = smooth(*size)
    assert ours(image).dtype == torch.uint8
    assert torch.equal(ours(image), theirs(image))


def test_without_resize_a_small_image_gets_a_border() -> None:
    image = torch.full((3, 10, 20), 255, dtype=torch.uint8)
    got = Preprocessing(resize=None, crop=16)(image)
    assert got.shape == (3, 16, 16)
    assert got.sum() == 255 * 3 * 10 * 16


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_is_torchvisions(
    device: str, memory_format: torch.memory_format, channels: int
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    batch = torch.randint(0, 256, (4, channels, 9, 7), dtype=torch.uint8, device=device)
    batch = batch.contiguous(memory_format=memory_format)
    mean, std = [0.485, 0.456, 0.406][:channels], [0.229, 0.224, 0.225][:channels]
    got = Preprocessing(channels=channels, mean=mean, std=std).normalize(batch)
    theirs = torchvision.transforms.functional.normalize(batch.float().div(255), mean, std)
    assert torch.equal(got, theirs)  # .float().div(255) is what their ToTensor does
    assert got.is_contiguous(memory_format=memory_format)
    exact = (batch.double() / 255 - torch.tensor(mean, device=device)[:, None, None]) / (
        torch.tensor(std, device=device)[:, None, None]
    )
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("interpreter", marks=pytest.mark.interpreted),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("asked", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalize_into_a_format_gives_the_same_bits(
    device: str, given: torch.memory_format, asked: torch.memory_format, channels: int
) -> None:
    """Of every value of a byte, on a GPU in one pass; images may stand in larger ones."""
    whole = torch.arange(channels * 2 * 257 * 6).remainder(256).to(torch.uint8)
    batch = whole.view(2, channels, 257, 6).contiguous(memory_format=given)[:, :, 1:, :5]
    mean, std = (0.485, 0.456, 0.406, 0.5)[:channels], (0.229,)
    preprocessing = Preprocessing(channels=channels, mean=mean, std=std)
    expected = preprocessing.normalize(batch)
    if device == "interpreter":
        from densekit.data import on_gpu  # imports Triton

        vectors = torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, 1, 1, 1)
        found = on_gpu.normalize(batch, *vectors, asked)
    else:
        found = preprocessing.normalize(batch.to(device), asked)
    assert torch.equal(found.cpu(), expected)
    assert found.is_contiguous(memory_format=asked)


def test_one_mean_serves_all_channels_in_and_out_of_inference_mode() -> None:
    batch = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    preprocessing = Preprocessing(mean=(0.25,), std=(0.0625,))
    with torch.inference_mode():
        first = preprocessing.normalize(batch).clone()
    again = preprocessing.normalize(batch)
    assert torch.equal(first, again)
    assert not again.is_inference()
    torch.testing.assert_close(again, (batch / 255 - 0.25) * 16)


def test_preprocessing_follows_the_config() -> None:
    data = DataConfig(
        channels=1, image_size=28, interpolation="bicubic", antialias=False,
        mean=(0.5,), std=(0.25,), evaluate=EvaluateConfig(resize=30, rounding="paddle"),
    )  # fmt: skip
    assert Preprocessing.from_config(data) == Preprocessing(
        channels=1, resize=30, crop=28, interpolation="bicubic", antialias=False,
        rounding="paddle", mean=(0.5,), std=(0.25,),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": 200}, "resize=200 is smaller than the image size 224.* set resize to 256"),
        ({"mean": (0.5, 0.5)}, "mean has 2 values for 3 channels; give 1 or 3"),
        ({"channels": 1, "mean": (0.5,)}, "std has 3 values for 1 channels; give 1"),
        ({"std": (0.1, 0.0, 0.1)}, "std must be greater than 0"),
        ({"interpolation": "lanczos"}, "interpolation"),
        ({"resize": 0}, "resize"),
    ],
)
@pytest.mark.parametrize("section", [Preprocessing, DataConfig])
def test_values_that_do_not_go_together_are_refused(
    section: type, fields: dict, message: str
) -> None:
    if section is DataConfig and "resize" in fields:
        fields = {"evaluate": fields}
    with pytest.raises(ValueError, match=message):
        section(**fields)


# Training -----------------------------------------------------------------------------------


def small(image_size: int = 28, resize: int | None = 32, **augment: object) -> DataConfig:
    """A data section with these options of augment."""
    return DataConfig(
        image_size=image_size,
        augment=AugmentConfig.model_validate(augment),
        evaluate=EvaluateConfig(resize=resize),
    )


@settings(max_examples=80, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    crop=st.sampled_from(["random_resized", "pad", "none"]),
    resize=st.sampled_from([None, 28, 40]),
    padding=st.integers(0, 5),
    channels=st.sampled_from([1, 3]),
    affine=st.booleans(),
)
def test_any_image_gives_a_uint8_square(
    width: int, height: int, crop: str, resize: int | None, padding: int, channels: int,
    affine: bool,
) -> None:  # fmt: skip
    data = DataConfig.model_validate({
        "image_size": 28, "channels": channels, "mean": (0.5,), "std": (0.5,),
        "evaluate": {"resize": resize},
        "augment": {
            "crop": crop, "crop_padding": padding, "affine_degrees": 10 * affine,
            "affine_scale": 0.1 * affine,
        },
    })  # fmt: skip
    image = torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)
    got = train_transform(data)(ImageFile(image))
    assert got.dtype == torch.uint8
    assert got.shape == (channels, 28, 28)


def test_random_resized_is_torchvisions() -> None:
    augment = AugmentConfig(flip=0.5, crop_scale=(0.25, 0.5), crop_ratio=(0.5, 2.0))
    data = DataConfig(
        image_size=28, interpolation="bicubic", antialias=False, augment=augment,
        evaluate=EvaluateConfig(resize=32),
    )  # fmt: skip
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(
                28, (0.25, 0.5), (0.5, 2.0), InterpolationMode.BICUBIC, antialias=False
            ),
            v2.RandomHorizontalFlip(0.5),
        ]
    )
    image = smooth(120, 90)
    for seed in range(8):
        torch.manual_seed(seed)
        ours = train_transform(data)(ImageFile(image))
        torch.manual_seed(seed)
        assert torch.equal(ours, theirs(image))


def test_pad_takes_every_window_of_the_image_in_its_border() -> None:
    data = small(3, None, crop="pad", crop_padding=1, flip=0.0)
    image = torch.arange(1, 28, dtype=torch.uint8).view(3, 3, 3)
    framed = torch.nn.functional.pad(image, (1, 1, 1, 1))
    windows = [framed[:, y : y + 3, x : x + 3] for y in range(3) for x in range(3)]
    seen = set()
    transform = train_transform(data)
    torch.manual_seed(0)
    for _ in range(200):
        got = transform(ImageFile(image))
        (at,) = [i for i, window in enumerate(windows) if torch.equal(got, window)]
        seen.add(at)
    assert seen == set(range(9))


def test_none_is_the_evaluations_own() -> None:
    data = small(crop="none", flip=0.0)
    image = smooth(60, 45)
    assert torch.equal(
        train_transform(data)(ImageFile(image)), Preprocessing.from_config(data)(image)
    )


def test_flip_mirrors_with_its_probability() -> None:
    image = smooth(28, 28)
    plain = {"resize": None, "crop": "none"}
    assert torch.equal(train_transform(small(**plain, flip=1.0))(ImageFile(image)), image.flip(2))
    assert torch.equal(train_transform(small(**plain, flip=0.0))(ImageFile(image)), image)
    torch.manual_seed(0)
    half = train_transform(small(**plain, flip=0.5))
    assert 60 < sum(torch.equal(half(ImageFile(image)), image) for _ in range(200)) < 140


def centre(image: Tensor) -> tuple[float, float]:
    """Of mass, (y, x)."""
    mass = image[0].double()
    y, x = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in mass.shape), indexing="ij"
    )
    return float((mass * y).sum() / mass.sum()), float((mass * x).sum() / mass.sum())


def test_affine_moves_zooms_and_turns_within_its_limits() -> None:
    plain = {"image_size": 41, "resize": None, "crop": "none", "flip": 0.0}
    blob = torch.zeros(3, 41, 41, dtype=torch.uint8)
    blob[:, 16:25, 16:25] = 200
    torch.manual_seed(0)
    shift = train_transform(small(**plain, affine_translate=0.1))
    moved = np.array([centre(shift(ImageFile(blob))) for _ in range(100)]) - 20
    assert 3 < np.abs(moved).max() <= 4.1
    zoom = train_transform(small(**plain, affine_scale=0.2))
    areas = np.array([float(zoom(ImageFile(blob))[0].sum()) / 200 for _ in range(100)]) / 81
    assert 0.6 < areas.min() < 0.75
    assert 1.3 < areas.max() < 1.5
    bar = torch.zeros(3, 41, 41, dtype=torch.uint8)
    bar[:, 19:22, 36:39] = 200  # 17 to the right of the middle
    turn = train_transform(small(**plain, affine_degrees=20))
    angles = [
        np.degrees(np.arctan2(y - 20, x - 20))
        for y, x in (centre(turn(ImageFile(bar))) for _ in range(100))
    ]
    assert 15 < np.abs(angles).max() < 21
    shear = train_transform(small(**plain, affine_shear=20))
    tops = torch.zeros(3, 41, 41, dtype=torch.uint8)
    tops[:, 5:8, 19:22] = 200  # 14 above the middle: shear along x moves it sideways only
    sheared = np.array([centre(shear(ImageFile(tops))) for _ in range(100)]) - (6, 20)
    assert np.abs(sheared[:, 0]).max() < 1
    assert 3 < np.abs(sheared[:, 1]).max() < 14 * np.tan(np.radians(20)) + 1
