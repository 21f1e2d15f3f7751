"""What a list, or index, of a million images costs: in the main process, and in each loader."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densekit.data.listing import read_list
from densekit.data.paths import Paths
from densekit.data.shards.index import MEMBER, Shard, ShardIndex
from densekit.data.shards.tar import read_samples, write_samples

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what a process has of its own"),
]
FOLDERS, FILES = 1000, 1281
MAIN, WORKER = 400, 20  # MiB


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of ImageNet's length and names; its folders are links to a single one."""
    root = tmp_path_factory.mktemp("imagenet")
    Image.new("RGB", (4, 4)).save(root / "one.png")
    (root / "all").mkdir()
    names = [f"n01440764_{10000 + 7 * i}.JPEG" for i in range(FILES)]
    for name in names:
        (root / "all" / name).hardlink_to(root / "one.png")
    (root / "train").mkdir()
    with (root / "train_list.txt").open("w") as lines:
        for label in range(FOLDERS):
            folder = f"train/n{label:08d}"
            (root / folder).symlink_to(root / "all")
            lines.writelines(f"{folder}/{name} {label}\n" for name in names)
    return root


@pytest.fixture(scope="module")
def packed_imagenet(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of as many images, 24 bytes each; its shards are links to a single one."""
    root = tmp_path_factory.mktemp("shards")
    content = (imagenet / "one.png").read_bytes()
    with (root / "one.tar").open("wb") as file:
        write_samples(file, [("one", ".png", content, 0)])
    with (root / "one.tar").open("rb") as file:
        (sample,) = read_samples(file, "one.tar")
    size = (root / "one.tar").stat().st_size
    listed = read_list(imagenet / "train_list.txt", imagenet)
    members = np.empty(len(listed), MEMBER)
    members["offset"], members["size"] = sample.offset, sample.size
    members["shard"], members["crc32"] = np.arange(len(listed)) % FOLDERS, zlib.crc32(content)
    shards = tuple(Shard(f"train-{number:06d}.tar", size) for number in range(FOLDERS))
    for shard in shards:
        (root / shard.name).hardlink_to(root / "one.tar")
    names = Paths.of(listed.relative(i) for i in range(len(listed)))
    index = ShardIndex(shards, members, listed.labels, names, {})
    (root / "train-index.npz").write_bytes(index.to_bytes())
    return root


@pytest.mark.parametrize("place", ["imagenet", "packed_imagenet"])
def test_a_million_paths_are_shared(place: str, request: pytest.FixtureRequest) -> None:
    """The loader processes look at every path, in an epoch's order, and read some images."""
    script = Path(__file__).with_name("list_memory.py")
    root = request.getfixturevalue(place)
    done = subprocess.run(
        [sys.executable, str(script), str(root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    count, main, peak, *workers = map(float, done.stdout.split())
    assert count == FOLDERS * FILES
    assert len(workers) == 2
    assert main < MAIN
    assert peak < MAIN
    assert max(workers) < WORKER
    assert multiprocessing.active_children() == []
