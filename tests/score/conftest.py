"""The images and the network that the tests of this room score."""

from __future__ import annotations

import pytest
from scene import Scene, write_network

from runs import Runs


@pytest.fixture(scope="session")
def scene(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    digits = sorted(runs.data.glob("*.png"))
    (folder / "cut.png").write_bytes(digits[0].read_bytes()[:60])
    names = [*map(str, digits[:100]), "gone.png", "cut.png", *map(str, digits[100:]), str(folder)]
    (folder / "list.txt").write_text("\n".join(names))
    return Scene(write_network(folder / "network"), folder / "list.txt")
