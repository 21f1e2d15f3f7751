"""What a list of a million images costs: in the main process, and in each loader process."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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


def test_a_million_paths_are_shared(imagenet: Path) -> None:
    """The loader processes look at every path, in an epoch's order, and read some images."""
    script = Path(__file__).with_name("list_memory.py")
    done = subprocess.run(
        [sys.executable, str(script), str(imagenet)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    count, main, peak, *workers = map(float, done.stdout.split())
    assert count == FOLDERS * FILES
    assert len(workers) == 2
    assert main < MAIN
    assert peak < MAIN
    assert max(workers) < WORKER
    assert multiprocessing.active_children() == []
