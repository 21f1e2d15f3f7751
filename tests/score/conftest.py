"""The images and the network that the tests of this room score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scene import Scene, write_network

from densekit.export.steps import ExportOptions, export_network
from densekit.infer.model import open_path
from runs import Runs, densekit


@pytest.fixture(scope="session")
def scene(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    digits = sorted(runs.data.glob("*.png"))
    (folder / "cut.png").write_bytes(digits[0].read_bytes()[:60])
    names = [*map(str, digits[:100]), "gone.png", "cut.png", *map(str, digits[100:]), str(folder)]
    (folder / "list.txt").write_text("\n".join(names))
    return Scene(write_network(folder / "network"), folder / "list.txt")


@pytest.fixture(scope="session")
def whole(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole") / "results"
    done = densekit(*scene.command(out))
    assert done.returncode == 1, done
    return out


@pytest.fixture(scope="session")
def exported(scene: Scene, runs: Runs) -> Callable[..., Scene]:
    """`exported("onnx", with_preprocessing=True)`: the same images, and such an export."""
    made: dict[str, Scene] = {}

    def make(to: str, with_preprocessing: bool = False) -> Scene:
        folder = scene.network.parent / f"{to}-{with_preprocessing}"
        if folder.name not in made:
            options = ExportOptions(to, with_preprocessing, images=str(runs.data))
            export_network(open_path(str(scene.network)), folder, options)
            made[folder.name] = Scene(folder, scene.images)
        return made[folder.name]

    return make
