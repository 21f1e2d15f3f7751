"""The README's commands, as they stand there, on small images and for one short epoch."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import densekit
from densekit.weights import published

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = "-o loop.epochs=1 -o model.overrides.block_config=[1,1,1] -o data.image_size=32"


def commands() -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    texts = [text for language, text in blocks if not language]
    lines = [line.split("  #")[0].strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if re.match(r"(densekit|torchrun) ", line)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with ~/pets, a photo and more photos."""
    home = tmp_path_factory.mktemp("home")
    draw = np.random.default_rng(0)
    for folder in ("pets/cat", "pets/dog", "more-photos"):
        (home / folder).mkdir(parents=True)
        for i in range(10):
            pixels = draw.integers(0, 128, (40, 40, 3)) + 100 * (folder == "pets/dog")
            Image.fromarray(pixels.astype(np.uint8)).save(home / folder / f"{i}.jpg")
    (home / "more-photos" / "0.jpg").rename(home / "photo.jpg")
    return home


def run(command: str, home: Path) -> subprocess.CompletedProcess[str]:
    """As a shell would, in `home`, the programs being this environment's."""
    programs = Path(sys.executable).parent
    words = [word.replace("~", str(home), 1) for word in shlex.split(command)]
    environment = {**os.environ, "HOME": str(home)}
    for name in ("DENSEKIT_CACHE", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    return subprocess.run(
        [str(programs / words[0]), *words[1:]],
        cwd=home, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def put_in_cache(home: Path, url: str) -> None:
    """Weights where a download of `url` would have left them; there is no network here."""
    folder = home / ".cache" / "densekit" / "weights"
    folder.mkdir(parents=True)
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{url.rsplit('/', 1)[-1]}"
    torch.save(densekit.create_model("densenet121").state_dict(), folder / name)


@pytest.mark.slow
def test_the_tour_from_a_folder_to_predictions(home: Path) -> None:
    tour = [command for command in commands() if "/imagenet" not in command]
    assert len(tour) == 7
    for command in tour:
        shortened = f"{command} {SHORT}" if " train " in command else command
        if "pretrained=torchvision" in command:
            put_in_cache(home, published.find_published("torchvision", "densenet121").url)
            shortened = f"{command} -o loop.epochs=1 -o data.image_size=32"
        result = run(shortened, home)
        assert result.returncode == 0, f"{shortened}\n{result.stdout}{result.stderr}"
        if "--dry-run" in command:
            assert "nothing was trained" in result.stdout
        if "pretrained" in command:
            assert "a new head of 2 classes" in result.stderr
    for run_folder in ("pets", "pets-tuned"):
        assert (home / "runs" / run_folder / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_imagenet_commands_resolve(home: Path) -> None:
    """On a folder with PaddleClas' lists, as a dry run; four processes on this CPU."""
    for split, numbers in (("train", range(8)), ("val", (8, 9))):
        lines = [
            f"pets/{name}/{i}.jpg {label}"
            for label, name in enumerate(("cat", "dog"))
            for i in numbers
        ]
        (home / f"{split}_list.txt").write_text("\n".join(lines) + "\n")
    found = [command for command in commands() if "data.root=/imagenet" in command]
    assert len(found) == 2
    for command in found:
        local = command.replace("data.root=/imagenet", f"data.root={home}") + " --dry-run"
        result = run(local.replace("torchrun ", "torchrun --standalone "), home)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("nothing was trained") == 1
        assert "classes have no images" in result.stdout


@pytest.mark.slow
def test_the_python_example(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(f"densekit train --data ~/pets {SHORT}", home)
    monkeypatch.chdir(home)
    code = re.search(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert code
    values: dict = {
        "images": torch.zeros(1, 3, 64, 64),
        "image_array": np.zeros((50, 60, 3), np.uint8),
    }
    exec(code[1], values)
    assert [m.shape[1] for m in values["maps"]] == [64, 256, 512, 1024, 1024]
    rows = values["classifier"].predict(["photo.jpg", values["image_array"]], topk=3)
    assert [row["error"] for row in rows] == [None, None]
