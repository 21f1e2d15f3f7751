"""Real servers on loopback, and small things to send them."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

from densekit.data.transforms import Preprocessing
from densekit.models import artifact
from densekit.models.artifact import ArtifactConfig, Described, Provenance
from densekit.models.densenet import DenseNet, DenseNetConfig
from runs import FORKS, _command, _rank, free_port

WAIT = 400.0  # seconds before a test gives up, on a machine that others load too
NAME = "tiny"
CLASSES = ("ant", "bee", "cat", "dog", "égret", "fox", "gnu")
ARCHITECTURE = DenseNetConfig(
    growth_rate=4, block_config=(1, 2), num_init_features=8, stem="cifar", num_classes=7,
    image_size=24,
)  # fmt: skip


def write_network(folder: Path) -> Path:
    """An artifact whose answers differ from image to image."""
    torch.manual_seed(3)
    model = DenseNet(ARCHITECTURE)
    model.classifier.weight.data *= 20
    model(torch.randn(8, 3, 24, 24))
    config = ArtifactConfig(
        model=Described(name=NAME, architecture=ARCHITECTURE),
        preprocessing=Preprocessing(resize=28, crop=24),
        classes=CLASSES,
        metrics={"count": 100, "top1": 0.9},
        provenance=Provenance(recipe={"data": {"root": "/home/somebody/secret"}}),
    )
    artifact.write_artifact(folder, config, model.eval().state_dict())
    return folder


def picture(seed: int, kind: str = "png", size: tuple[int, int] = (40, 30)) -> bytes:
    """An image file of noise around a colour."""
    generator = np.random.default_rng(seed)
    colour = generator.integers(0, 200, 3)
    pixels = (colour + generator.integers(0, 56, (size[1], size[0], 3))).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@dataclass
class Served:
    """A server that runs."""

    url: str
    process: BaseProcess
    output: Path
    """What it wrote, both streams."""

    def end(self) -> int | None:
        """By SIGTERM; its exit code."""
        self.send(signal.SIGTERM)
        self.process.join(WAIT)
        return self.process.exitcode

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def metric(self, name: str) -> float:
        """The sum over its labels; 0 where there is none yet."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(x.split()[-1]) for x in lines if x.split("{")[0].split(" ")[0] == name)


@contextlib.contextmanager
def serving(network: Path, folder: Path, *options: str) -> Iterator[Served]:
    """`densekit serve` in a process of its own, once it answers; killed at the end."""
    port, output = free_port(), folder / f"served-{time.monotonic_ns()}.txt"
    output.touch()
    words = ["serve", str(network), "--port", str(port), "--drain-seconds", "0", *options]
    work = partial(_command, words, None, None)
    process = FORKS.Process(target=_rank, args=(work, {}, (output, output)))
    process.start()
    served = Served(f"http://127.0.0.1:{port}", process, output)
    try:
        deadline = time.monotonic() + WAIT
        while not answers(served.url):
            assert process.is_alive(), output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.02)
        yield served
    finally:
        process.kill()
        process.join()


def until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Of a server that was started in another way."""
    deadline = time.monotonic() + WAIT
    while not answers(url):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=WAIT).status_code == 200
    except httpx.TransportError:
        return False
