from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from densekit.config import UserError
from densekit.data.augment import train_transform
from densekit.data.config import DataConfig
from densekit.data.dataset import OPENED_AT_ONCE, ImageDataset, Sample, epoch_order, sample_seeds
from densekit.data.decode import UnreadableImage
from densekit.data.folders import read_folder
from densekit.data.listing import Examples


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, write_folder) -> Examples:
    return read_folder(write_folder(tmp_path_factory.mktemp("own"), {"a": 3, "b": 2}))


def augmented(examples: Examples, seed: int = 0) -> ImageDataset:
    return ImageDataset(examples, train_transform(DataConfig(image_size=16)), 3, 16, seed)


def test_the_order_is_this_one() -> None:
    """The contract itself: these numbers must not change, or every run changes."""
    assert epoch_order(0, 0, 8).tolist() == [5, 0, 1, 4, 2, 6, 3, 7]
    assert epoch_order(0, 1, 8).tolist() == [6, 1, 4, 0, 3, 2, 5, 7]
    assert sample_seeds(0, [(0, 0)]) == [2834126987]
    assert sample_seeds(2**40 + 3, [(5, 7)]) == [2916914205]


def test_the_order_is_a_permutation_of_its_own() -> None:
    orders = [epoch_order(seed, epoch, 50) for seed in range(4) for epoch in range(4)]
    assert all(np.array_equal(np.sort(order), np.arange(50)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 16
    assert orders[0].dtype == np.int64


def test_no_two_samples_share_a_seed() -> None:
    grid = [(e, i) for e in range(30) for i in range(30)]
    seeds = [seed for run in (0, 1, 2**33) for seed in sample_seeds(run, grid)]
    assert len(set(seeds)) == len(seeds) == 3 * len(grid)


def test_a_samples_draws_depend_on_its_position_alone(examples: Examples) -> None:
    dataset = augmented(examples)
    first = dataset[3, 1]
    assert isinstance(first, Sample)
    for disturbance in (1, 2):  # no generator that others use decides anything
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)
        random.seed(disturbance)
        dataset[0, disturbance]
        again = augmented(examples)[3, 1]
        assert isinstance(again, Sample)
        assert torch.equal(again.image, first.image)
    for other in (dataset[4, 1], dataset[3, 2], augmented(examples, seed=1)[3, 1]):
        assert isinstance(other, Sample)
        assert not torch.equal(other.image, first.image)


def test_torchs_generator_is_as_it_was(examples: Examples) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    augmented(examples)[0, 0]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_has_its_position(examples: Examples) -> None:
    sample = augmented(examples)[0, 4]
    assert isinstance(sample, Sample)
    assert (sample.image.shape, sample.image.dtype) == ((3, 16, 16), torch.uint8)
    assert sample.position == 4


def test_a_batch_is_its_images_one_by_one(examples: Examples) -> None:
    """However many files are opened at a time; torch's own generator does not move."""
    dataset = augmented(examples)
    keys = [(epoch, index) for epoch in range(4) for index in range(len(examples))]
    assert len(keys) > 2 * OPENED_AT_ONCE
    before = torch.random.get_rng_state()
    for key, found in zip(keys, dataset.__getitems__(keys), strict=True):
        alone = dataset[key]
        assert isinstance(found, Sample)
        assert isinstance(alone, Sample)
        assert found.position == alone.position == key[1]
        assert torch.equal(found.image, alone.image)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_batch_may_be_empty(examples: Examples) -> None:
    collated = augmented(examples).collate([])
    assert not isinstance(collated, UserError)
    batch = collated.batch()
    assert batch.images.shape == (0, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.shape == batch.indices.shape == (0,)
    assert batch.labels.dtype == batch.indices.dtype == torch.int64


def test_collate_stacks_in_order(examples: Examples) -> None:
    dataset = augmented(examples)
    samples = [dataset[0, i] for i in (4, 0, 2)]
    collated = dataset.collate(samples)
    assert not isinstance(collated, UserError)
    batch = collated.batch()
    assert batch.labels.tolist() == [1, 0, 0]
    assert batch.indices.tolist() == [4, 0, 2]
    assert batch.images.is_contiguous()
    for row, sample in zip(batch.images, samples, strict=True):
        assert isinstance(sample, Sample)
        assert torch.equal(row, sample.image)


def test_an_unreadable_file_is_a_value_that_names_it(tmp_path: Path) -> None:
    labels = np.zeros(2, np.int64)
    examples = Examples([str(tmp_path / "gone.png")] * 2, labels, {}, "", "list.txt", [3, 8])
    dataset = augmented(examples)
    failed = dataset.collate([dataset[0, 1], dataset[0, 0]])
    assert isinstance(failed, UnreadableImage)
    assert str(failed).startswith(f"list.txt:8: {tmp_path}/gone.png: there is no such file")
