"""The training transforms that are off by default: what they change, and that off draws nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from densekit.config import ConfigSource, UserError, build
from densekit.data.augment import PadCrop, RandomResizedCrop, train_transform
from densekit.data.augment_config import AugmentConfig
from densekit.data.config import DataConfig, EvaluateConfig
from densekit.data.dataset import ImageDataset
from densekit.data.decode import ImageFile
from densekit.data.listing import Examples

ON = {
    "rand_augment": {"rand_augment": 2},
    "auto_augment": {"auto_augment": "imagenet"},
    "color_jitter": {"color_jitter": [0.4, 0.4, 0.4, 0.1]},
    "erase": {"erase": 1.0},
    "affine": {"affine_degrees": 30},
}


def config(augment: dict, **data: object) -> DataConfig:
    """Of 32 x 32 pixels, with nothing at random but `augment`."""
    plain = {"image_size": 32, "evaluate": {"resize": None}}
    augment = {"crop": "none", "flip": 0.0, **augment}
    return DataConfig.model_validate({**plain, "augment": augment, **data})


@pytest.fixture
def image() -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (3, 32, 32), np.uint8))


@pytest.mark.parametrize("name", ON)
def test_each_changes_the_image_and_obeys_the_seed(name: str, image: Tensor) -> None:
    transform = train_transform(config(ON[name]))

    def under(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return transform(ImageFile(image.clone()))

    drawn = [under(seed) for seed in range(8)]
    assert all(d.dtype == torch.uint8 and d.shape == (3, 32, 32) for d in drawn)
    assert sum(not torch.equal(d, image) for d in drawn) >= 4
    assert len({d.numpy().tobytes() for d in drawn}) >= 4
    assert torch.equal(under(3), drawn[3])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ON)
def test_each_takes_grey_and_colour(name: str, channels: int, image: Tensor) -> None:
    mean, std = ([0.5], [0.25]) if channels == 1 else ([0.5] * 3, [0.25] * 3)
    data = config(ON[name], channels=channels, mean=mean, std=std)
    assert train_transform(data)(ImageFile(image[:channels])).shape == (channels, 32, 32)


def test_what_is_off_draws_nothing(image: Tensor) -> None:
    """A recipe from before these options computes what it computed."""
    torch.manual_seed(5)
    train_transform(DataConfig(image_size=16, evaluate=EvaluateConfig(resize=16)))(ImageFile(image))
    after = torch.rand(())
    torch.manual_seed(5)
    from torchvision.transforms import v2

    v2.Compose([v2.RandomResizedCrop(16, antialias=True), v2.RandomHorizontalFlip(0.5)])(image)
    assert torch.rand(()) == after


@pytest.mark.parametrize(
    ("prob", "options"),
    [
        ("affine_prob", ON["affine"]),
        ("policy_prob", {"rand_augment": 3, "rand_augment_magnitude": 30}),
        ("color_jitter_prob", ON["color_jitter"]),
    ],
)
def test_a_share_of_the_images(prob: str, options: dict, image: Tensor) -> None:
    torch.manual_seed(0)
    transform = train_transform(config({**options, prob: 0.25}))
    changed = sum(not torch.equal(transform(ImageFile(image.clone())), image) for _ in range(400))
    assert 60 <= changed <= 140
    never = train_transform(config({**options, prob: 0.0}))
    assert torch.equal(never(ImageFile(image.clone())), image)


def test_erasing_fills_with_the_mean_which_normalises_to_zero(image: Tensor) -> None:
    data = config({"erase": 1.0, "erase_scale": [0.1, 0.3]})
    torch.manual_seed(0)
    erased = train_transform(data)(ImageFile(image.clone()))
    fill = torch.tensor([round(255 * m) for m in data.mean], dtype=torch.uint8)
    where = (erased != image).any(0)
    assert torch.equal(erased[:, where], fill[:, None].expand(3, int(where.sum())))
    assert 0.05 <= where.float().mean() <= 0.35


def test_erasing_with_noise_has_the_datas_mean_and_deviation() -> None:
    erase = {"erase": 1.0, "erase_scale": [0.9, 0.9], "erase_ratio": [0.95, 1.05]}
    data = config({**erase, "erase_with": "noise"}, mean=[0.5], std=[0.1])
    torch.manual_seed(0)
    erased = train_transform(data)(ImageFile(torch.zeros(3, 32, 32, dtype=torch.uint8))).float()
    inside = erased[:, 8:24, 8:24]
    assert abs(inside.mean() - 127.5) < 3
    assert abs(inside.std() - 25.5) < 3


def test_draws_do_not_depend_on_who_reads(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A sample is a function of seed, epoch and index, whatever was drawn before it."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    examples = Examples(paths, np.zeros(3, np.int64), {}, str(tmp_path), "list")
    options = {k: v for each in ON.values() for k, v in each.items()}
    data = config({**options, "mixup": 0.5})
    dataset = ImageDataset(examples, train_transform(data), 3, 32, seed=4)
    forwards = [dataset[(1, i)].image for i in range(3)]
    torch.rand(17)
    backwards = [dataset[(1, i)].image for i in (2, 1, 0)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"mixup": 0.7, "cutmix": 0.6}, "their sum must be at most 1"),
        ({"erase_scale": [0.4, 0.1]}, r"erase_scale: expected the smaller number first"),
        ({"crop_ratio": [0, 1]}, r"crop_ratio.*expected greater than 0, got 0"),
        ({"crop_scale": [2, 3]}, r"crop_scale.*expected less than or equal to 1, got 2"),
    ],
)
def test_options_that_do_not_go_together(tree: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build(DataConfig, ConfigSource({"augment": tree}))


@pytest.mark.parametrize("size", [(37, 61), (500, 375), (3, 400), (400, 3), (1, 1)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.5)])
def test_crop_and_flip_are_torchvisions_with_its_own_draws(
    size: tuple[int, int], scale: tuple[float, float]
) -> None:
    height, width = size
    image = torch.arange(height * width).remainder(251).to(torch.uint8)
    image = image.reshape(height, width).expand(3, height, width)
    ours = RandomResizedCrop(AugmentConfig(crop_scale=scale))
    theirs = v2.RandomResizedCrop(8, scale)
    transform = train_transform(
        config({"crop": "random_resized", "flip": 0.3, "crop_scale": scale})
    )
    whole = v2.Compose([v2.RandomResizedCrop(32, scale), v2.RandomHorizontalFlip(0.3)])
    for seed in range(60):
        torch.manual_seed(seed)
        box, after = ours.draw(height, width), torch.rand(1)
        torch.manual_seed(seed)
        assert box._asdict() == theirs.make_params([image])
        assert torch.equal(after, torch.rand(1))
        torch.manual_seed(seed)
        changed = transform(ImageFile(image))
        torch.manual_seed(seed)
        assert torch.equal(changed, whole(image))


@pytest.mark.parametrize("size", [(32, 32), (40, 36), (20, 50), (7, 5), (33, 31), (60, 20)])
@pytest.mark.parametrize("padding", [0, 4, 9, 40])
def test_padded_crops_are_torchvisions_with_its_own_draws(
    size: tuple[int, int], padding: int
) -> None:
    """Also where the padding is wider than the crop, which may then hold nothing of the image."""
    height, width = size
    image = torch.arange(height * width * 3).remainder(251).to(torch.uint8)
    image = image.reshape(height, width, 3).permute(2, 0, 1)
    crop, before = PadCrop(32, padding), image.clone()
    theirs = v2.RandomCrop(32, padding or None, pad_if_needed=True)
    for seed in range(30):
        torch.manual_seed(seed)
        ours, after = crop(image), torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(ours, theirs(image))
        assert torch.equal(after, torch.rand(1))
    assert torch.equal(image, before)
