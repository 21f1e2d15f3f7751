"""`densekit data`: what its commands print, and how they exit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runs import densekit


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(8):
            pixels = draw.integers(0, 256, (80, 100, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.jpg")
    return tmp_path


def test_check_says_what_is_there_and_exits_by_what_is_wrong(pets: Path) -> None:
    good = densekit("data", "check", str(pets))
    assert good.returncode == 0
    assert "16 training and 0 validation images" in good.stdout
    assert good.stdout.splitlines()[-1] == "no errors found"
    (pets / "dog/none.jpg").write_bytes(b"none")
    (pets / "dog/cat.jpg").write_bytes((pets / "cat/3.jpg").read_bytes())
    bad = densekit("data", "check", str(pets))
    assert bad.returncode == 1
    assert f"{pets}/dog/none.jpg (train, dog): is not an image that PIL can read" in bad.stdout
    assert "1 images have different labels" in bad.stdout
    assert "fix these before training" in bad.stdout


def test_check_as_json_has_all(pets: Path) -> None:
    for i in range(12):
        (pets / f"dog/copy{i}.jpg").write_bytes((pets / "dog/3.jpg").read_bytes())
    result = densekit("data", "check", str(pets), "--json")
    assert result.returncode == 0
    said = json.loads(result.stdout)
    assert said["ok"] is True
    assert len(said["repeated"][0]["images"]) == 13
    assert said["classes"][1] == {"label": 1, "name": "dog", "train": 20, "val": 0}


def test_check_says_all_lines_that_are_none(pets: Path) -> None:
    (pets / "list.txt").write_text("cat/0.jpg 0\ncat/1.jpg\ndog/1.jpg one\n")
    result = densekit("data", "check", str(pets / "list.txt"))
    assert result.returncode == 1
    assert f"{pets}/list.txt:2: expected a path" in result.stdout
    assert f"{pets}/list.txt:3: expected a path" in result.stdout
    result = densekit("data", "check", str(pets / "list.txt"), "--json")
    assert result.returncode == 1
    said = json.loads(result.stdout)
    assert said["ok"] is False
    assert len(said["malformed"]) == 2


def test_check_of_shards_is_that_of_their_files(pets: Path, tmp_path_factory) -> None:
    (pets / "dog/cat.jpg").write_bytes((pets / "cat/3.jpg").read_bytes())
    shards = tmp_path_factory.mktemp("shards")
    packed = densekit("data", "pack", pets, shards, "--shard-images", "5")
    assert packed.returncode == 0, packed.stderr
    said = []
    for place in (pets, shards / "train-index.npz"):
        result = densekit("data", "check", place, "--json")
        assert result.returncode == 1, result.stderr
        found = json.loads(result.stdout)
        (copies,) = found["contradictory"]
        assert {image["label"] for image in copies["images"]} == {"cat", "dog"}
        for key in ("contradictory", "seconds", "notes"):
            del found[key]
        said.append(found)
    assert said[0] == said[1]
    shard = shards / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    bad = json.loads(densekit("data", "check", shards / "train-index.npz", "--json").stdout)
    (fault,) = bad["unreadable"]
    assert fault["image"]["place"] == str(shard)
    assert "its CRC-32 is not the one in the index" in fault["reason"]


def test_check_of_what_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    result = densekit("data", "check", str(tmp_path / "none"))
    assert result.returncode == 2
    assert "there is no file or folder" in " ".join(result.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize("as_shards", [False, True])
def test_bench_measures_every_loader_of_ones_own_images(
    pets: Path, as_shards: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if as_shards:
        shards = tmp_path_factory.mktemp("shards")
        assert densekit("data", "pack", pets, shards, "--shard-images", "5").returncode == 0
        pets = shards / "train-index.npz"
    words = ("--images", "16", "--rounds", "1", "--rate", "100000", "--json")
    result = densekit("data", "bench", str(pets), *words)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["images"] == 16
    stages = {one["name"]: one["seconds"] for one in said["stages"]}
    assert {"read (cached)", "decode, crop", "augment", "collate", "normalise"} <= set(stages)
    assert min(stages.values()) > 0
    speeds = [one["images_per_second"]["median"] for one in said["loaders"]]
    assert said["speedup_vs_tvio"] == pytest.approx(speeds[0] / speeds[-1])
    assert said["speedup_vs_pil"] == pytest.approx(speeds[0] / speeds[-2])
    core = said["images_per_second_and_core"]
    assert said["cores_for_rate"] == pytest.approx(100000 / core, abs=1)
