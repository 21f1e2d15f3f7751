from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densekit import distributed
from densekit.config import UserError
from densekit.data import workers as worker_processes
from densekit.data.augment_config import AugmentConfig
from densekit.data.config import DataConfig, EvaluateConfig
from densekit.data.decode import UnreadableImage, decode
from densekit.data.folders import read_folder
from densekit.data.listing import Examples
from densekit.data.loader import (
    BadImage,
    Batch,
    Step,
    TrainStream,
    eval_batches,
    micro_batches,
    resolve_reading,
    resolve_workers,
    steps_per_epoch,
)
from densekit.data.transforms import Preprocessing

DATA = DataConfig(image_size=12, batch_size=6, workers=0, evaluate=EvaluateConfig(resize=14))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, write_folder) -> Examples:
    root = write_folder(tmp_path_factory.mktemp("own"), {"a": 5, "b": 4, "c": 5}, size=(20, 16))
    return read_folder(root)


def stream(examples: Examples, workers: int = 0, **how: int) -> TrainStream:
    data = DATA.model_copy(update={"workers": workers})
    return TrainStream(examples, data, seed=3, epochs=3, **how)


def alike(one: Iterable[Step], other: Iterable[Step]) -> bool:
    return all(
        a.images == b.images
        and len(a.batches) == len(b.batches)
        and all(
            torch.equal(x, y)
            for left, right in zip(a.batches, b.batches, strict=True)
            for x, y in zip(left[:3], right[:3], strict=True)
        )
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_the_limit_on_pixels_reaches_those_who_read(examples: Examples, workers: int) -> None:
    data = DATA.model_copy(update={"workers": workers, "max_pixels": 319})
    with pytest.raises(UserError, match=r"more than 319 pixels; .*raise data\.max_pixels"):
        next(iter(TrainStream(examples, data, seed=3, epochs=1)))
    batches = eval_batches(
        examples, Preprocessing.from_config(data), 4, workers, max_pixels=data.max_pixels
    )
    with pytest.raises(UnreadableImage, match="more than 319 pixels"):
        next(batches)


# Cutting ------------------------------------------------------------------------------------


@given(
    size=st.integers(1, 20), accumulation=st.integers(1, 5), world=st.integers(1, 6), data=st.data()
)
def test_ranks_share_the_micro_batches_of_one(
    size: int, accumulation: int, world: int, data: st.DataObject
) -> None:
    batch_size = size * accumulation
    count = data.draw(st.integers(1, batch_size))
    images = np.arange(count)
    alone = [images[s] for s in micro_batches(count, batch_size, accumulation)]
    assert np.array_equal(np.concatenate(alone), images)  # a partition, order kept
    assert all(len(part) == size for part in alone[:-1])
    assert 0 < len(alone[-1]) <= size
    ranks = [micro_batches(count, batch_size, accumulation, r, world) for r in range(world)]
    for part, shares in zip(alone, zip(*ranks, strict=True), strict=True):
        got = [images[share] for share in shares]
        want = np.array_split(part, world)
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
        assert len(got[0]) > 0


def test_65_images_in_batches_of_32_for_3_ranks() -> None:
    assert steps_per_epoch(65, 32, drop_last=False) == 3
    shares = [micro_batches(1, 32, 1, rank, 3) for rank in range(3)]
    assert shares == [[slice(0, 1)], [slice(1, 1)], [slice(1, 1)]]


@pytest.mark.parametrize(
    ("n", "batch_size", "drop_last", "steps"),
    [(12, 6, False, 2), (13, 6, False, 3), (13, 6, True, 2), (5, 6, False, 1), (6, 6, True, 1)],
)
def test_steps_per_epoch(n: int, batch_size: int, drop_last: bool, steps: int) -> None:
    assert steps_per_epoch(n, batch_size, drop_last) == steps


def test_drop_last_may_not_drop_all() -> None:
    with pytest.raises(UserError, match=r"5 images are fewer than data\.batch_size=6; lower"):
        steps_per_epoch(5, 6, drop_last=True)


# Training -----------------------------------------------------------------------------------


def test_every_epoch_has_every_image_once_in_an_order_of_its_own(examples: Examples) -> None:
    steps = list(stream(examples))
    assert [step.images for step in steps] == [6, 6, 2] * 3
    orders = []
    for epoch in range(3):
        batches = [b for step in steps[3 * epoch : 3 * epoch + 3] for b in step.batches]
        order = torch.cat([batch.indices for batch in batches]).tolist()
        assert sorted(order) == list(range(14))
        labels = torch.cat([batch.labels for batch in batches]).tolist()
        assert labels == examples.labels[order].tolist()
        orders.append(tuple(order))
    assert len(set(orders)) == 3
    assert steps[0].batches[0].images.shape == (6, 3, 12, 12)
    assert steps[0].batches[0].images.dtype == torch.uint8


def test_an_image_is_drawn_anew_each_epoch(examples: Examples) -> None:
    one, two, _ = (
        {
            int(i): image
            for s in part
            for b in s.batches
            for i, image in zip(b.indices, b.images, strict=True)
        }
        for part in (lambda s: (s[:3], s[3:6], s[6:]))(list(stream(examples)))
    )
    assert not any(torch.equal(one[i], two[i]) for i in one)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(examples: Examples, workers: int) -> None:
    how = {"accumulation": 2, "rank": 3, "world": 4}
    alone = list(stream(examples, 0, **how))
    torch.manual_seed(workers)
    before = torch.get_rng_state()
    assert alike(stream(examples, workers, **how), alone)
    assert torch.equal(torch.get_rng_state(), before)
    assert any(len(batch.images) == 0 for step in alone for batch in step.batches)


@pytest.mark.slow
def test_spawned_workers_change_nothing(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_processes, "START_METHOD", "spawn")
    assert alike(stream(examples, 2), stream(examples, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_start_in_the_middle_is_the_tail(examples: Examples, workers: int) -> None:
    whole = list(stream(examples, 0, accumulation=3))
    assert len(whole) == 9
    for start in (1, 3, 5, 8, 9):
        assert alike(stream(examples, workers, accumulation=3).from_step(start), whole[start:])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_ranks_read_what_one_would(examples: Examples, accumulation: int) -> None:
    alone = stream(examples, accumulation=accumulation)
    ranks = [stream(examples, accumulation=accumulation, rank=r, world=4) for r in range(4)]
    for step, *shares in zip(alone, *ranks, strict=True):
        joined = [
            Batch(*(torch.cat(t) for t in zip(*(part[:3] for part in parts), strict=True)))
            for parts in zip(*(share.batches for share in shares), strict=True)
        ]
        assert alike([Step(joined, shares[-1].images)], [step])


def test_seeds_give_other_runs(examples: Examples) -> None:
    one = TrainStream(examples, DATA, seed=0, epochs=1)
    two = TrainStream(examples, DATA, seed=1, epochs=1)
    assert (
        next(iter(one)).batches[0].indices.tolist() != next(iter(two)).batches[0].indices.tolist()
    )


def test_drop_last_leaves_the_short_batch_out(examples: Examples) -> None:
    data = DATA.model_copy(update={"drop_last": True})
    dropping = TrainStream(examples, data, seed=3, epochs=2)
    assert dropping.steps == 4
    assert [step.images for step in dropping] == [6, 6] * 2


# Evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 14, 50])
def test_evaluation_reads_each_image_once(
    examples: Examples, world: int, batch_size: int, workers: int
) -> None:
    preprocessing = Preprocessing.from_config(DATA)
    alone = dict(eval_batches(examples, preprocessing, batch_size, 0))
    assert list(alone) == list(range(-(-14 // batch_size)))
    assert torch.cat([b.indices for b in alone.values()]).tolist() == list(range(14))
    assert torch.cat([b.labels for b in alone.values()]).tolist() == examples.labels.tolist()
    numbers = []
    for rank in range(world):
        for b, batch in eval_batches(examples, preprocessing, batch_size, workers, rank, world):
            assert b % world == rank
            assert all(torch.equal(x, y) for x, y in zip(batch[:3], alone[b][:3], strict=True))
            numbers.append(b)
    assert sorted(numbers) == list(alone)


def test_evaluation_is_the_preprocessing(examples: Examples) -> None:
    preprocessing = Preprocessing.from_config(DATA)
    (_, batch), *_ = eval_batches(examples, preprocessing, 3, 0)
    for path, image in zip(examples.paths, batch.images, strict=False):
        assert torch.equal(image, preprocessing(decode(path, 3)))


# Workers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "device", "local_world", "workers"),
    [
        (1, "cpu", 1, 0), (2, "cpu", 1, 1), (2, "cpu", 2, 0), (8, "cpu", 1, 1), (64, "cpu", 1, 8),
        (256, "cpu", 1, 8), (1, "cuda", 1, 1), (8, "cuda", 1, 8), (8, "cuda", 4, 2),
        (64, "cuda", 2, 8), (4, "cuda", 8, 1), (8, "mps", 1, 8),
    ],
)  # fmt: skip
def test_auto_workers_are_a_table(
    monkeypatch: pytest.MonkeyPatch, cores: int, device: str, local_world: int, workers: int
) -> None:
    monkeypatch.setattr(distributed, "cores", lambda: cores)
    assert resolve_workers("auto", device, local_world) == workers
    assert resolve_workers(5, device, local_world) == 5
    copying = 0 if device == "cpu" else workers
    assert resolve_workers("auto", device, local_world, copies=True) == copying
    assert resolve_workers(5, device, local_world, copies=True) == 5


@pytest.mark.parametrize(
    ("change", "workers"),
    [
        ({}, 0), ({"cache": "off"}, 1), ({"workers": 2}, 2),
        ({"evaluate": EvaluateConfig(resize=14)}, 1),
        ({"augment": AugmentConfig(crop="pad", rand_augment=2)}, 1),
    ],
)  # fmt: skip
def test_images_that_are_only_copied_need_no_workers(
    examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any], workers: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(distributed, "cores", lambda: 2)
    small = {"cache": "disk", "cache_dir": str(tmp_path), "workers": "auto"}
    crops = {"augment": AugmentConfig(crop="pad"), "evaluate": EvaluateConfig(resize=None)}
    data = DATA.model_copy(update={**small, **crops, **change})
    assert resolve_reading(data, examples, examples, "cpu", 2)[0].workers == workers


@pytest.mark.parametrize("workers", [-1, "many", 1.5])
def test_workers_are_a_number_or_auto(workers: object) -> None:
    with pytest.raises(ValueError, match="workers"):
        DataConfig(workers=workers)


def test_leaving_a_stream_early_ends_its_workers(examples: Examples) -> None:
    steps = stream(examples, 2).from_step(0)
    assert len(list(islice(steps, 2))) == 2
    steps.close()
    assert multiprocessing.active_children() == []


# Images that cannot be read -----------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path, write_folder) -> Examples:
    """14 images, of which the third and the eleventh are cut short."""
    found = read_folder(write_folder(tmp_path, {"a": 5, "b": 4, "c": 5}, size=(20, 16)))
    for index in (2, 10):
        file = Path(found.paths[index])
        file.write_bytes(file.read_bytes()[:90])
    return found


def skipping(examples: Examples, workers: int = 0, most: int = 2, **how: Any) -> TrainStream:
    data = DATA.model_copy(
        update={"workers": workers, "on_bad_image": "skip", "max_bad_images": most}
    )
    return TrainStream(examples, data, seed=3, epochs=3, **how)


def test_a_bad_image_stops_a_run_that_is_told_how_to_go_on(damaged: Examples) -> None:
    with pytest.raises(UserError, match=r"00\d\.png: cannot be read .* -o data\.on_bad_image=skip"):
        list(stream(damaged))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_left_out_of_its_batch_and_the_count(
    damaged: Examples, examples: Examples, workers: int
) -> None:
    said: list[BadImage] = []
    whole = list(skipping(damaged, workers, on_bad=said.extend))
    for step, sound in zip(whole, stream(examples), strict=True):
        (batch,), (full,) = step.batches, sound.batches
        kept = [row for row, index in enumerate(full.indices.tolist()) if index not in (2, 10)]
        assert step.images == len(kept)
        assert batch.indices.tolist() == full.indices[kept].tolist()
        assert torch.equal(batch.images, full.images[kept])
    assert sorted(image.position for image in said) == [2, 10]  # each once, not once an epoch
    assert "c/001.png" in max(said).reason
    for start in (1, 4, 8):
        assert alike(skipping(damaged, workers).from_step(start), whole[start:])


def test_too_many_bad_images_stop_the_run(damaged: Examples) -> None:
    with pytest.raises(UserError, match=r"2 images cannot be read, .*max_bad_images=1") as error:
        list(skipping(damaged, most=1))
    assert error.value.shared
    known = dict.fromkeys(range(2), "known")
    with pytest.raises(UserError, match="3 images cannot be read"):  # a resumed run's count goes on
        list(skipping(damaged, most=2, bad=known))
    assert len(known) == 3


def test_a_micro_batch_without_images_is_left_out(damaged: Examples) -> None:
    """Of two images one is bad: BatchNorm cannot do with the other alone."""
    steps = list(skipping(damaged, accumulation=3))
    assert all(len(batch.labels) == 2 for step in steps for batch in step.batches)
    assert sum(step.images for step in steps) == 3 * 14 - 3 * 2 * 2
    assert [step.images for step in steps] == [2 * len(step.batches) for step in steps]


def test_ranks_agree_on_what_is_left_out(
    damaged: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, meet = dict[str, Any](), threading.Barrier(2)
    read: dict[str, list[Step]] = {}

    def exchange(mine: Any) -> list[Any]:
        both[threading.current_thread().name] = mine
        meet.wait(30)
        found = [both["0"], both["1"]]
        meet.wait(30)
        return found

    def follow(rank: int) -> None:
        read[str(rank)] = list(skipping(damaged, rank=rank, world=2))

    monkeypatch.setattr(distributed, "gather_objects", exchange)
    ranks = [threading.Thread(target=follow, args=(r,), name=str(r)) for r in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(60)
    seen = []
    for one, other in zip(read["0"], read["1"], strict=True):
        assert one.images == other.images < 7
        batches = [*one.batches, *other.batches]
        assert one.images == sum(len(batch.labels) for batch in batches)
        seen += [index for batch in batches for index in batch.indices.tolist()]
    assert not {2, 10} & set(seen)
    assert set(seen) == set(range(14)) - {2, 10}
