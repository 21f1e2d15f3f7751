"""The sides of the service's comparisons: a server in processes of its own, and a load on it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

import load_client
from densekit.data.transforms import Preprocessing
from densekit.models import artifact, variants
from densekit.models.artifact import ArtifactConfig, Described
from densekit.models.variants import ModelConfig
from densekit_steps import NUM_CLASSES, Workload

CLIENTS = 64
START_SECONDS = 180.0  # for a server to be ready
HERE = Path(__file__).parent
LITSERVE = {"batch": 32, "wait": 0.01, "workers": 1}
"""Its fastest here of those that benchmarks/README.md lists."""


class LoadedServer:
    """A server that runs; a call is every file once, asked for by CLIENTS clients at a time.

    It is stopped between calls, so that a server which idles busily takes nothing from others.
    """

    def __init__(
        self, command: Sequence[str], ready: str, predict: str, files: Sequence[str], threads: int
    ) -> None:
        """`ready` and `predict` are paths; the command gets `--port`. Returns once it is ready."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = free.getsockname()[:2]
        self.requests = [load_client.upload(predict, "images", Path(file)) for file in files]
        command = [sys.executable, *command, "--port", str(self.address[1])]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self.close = weakref.finalize(self, _kill, self.process)
        self._wait_for(f"http://{self.address[0]}:{self.address[1]}{ready}", command)

    def _wait_for(self, url: str, command: Sequence[str]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(url, timeout=START_SECONDS):
                    return
            except urllib.error.URLError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"this server did not start: {' '.join(command)}")
                time.sleep(0.1)

    def __call__(self) -> float:
        """Seconds."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            return asyncio.run(load_client.closed_loop(self.address, self.requests, CLIENTS))
        finally:
            os.killpg(self.process.pid, signal.SIGSTOP)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With its children."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def densekit(files: Sequence[str], work: Workload, precision: str) -> LoadedServer:
    """`densekit serve` with its defaults, but for a machine that may be suspended meanwhile."""
    with tempfile.TemporaryDirectory() as folder:  # it is read before the server is ready
        command = ["-m", "densekit", "serve", network(Path(folder), work), "--precision", precision]
        command += ["--deadline", "3600"]
        threads = torch.get_num_threads()
        return LoadedServer(command, "/readyz", "/v1/predict", files, threads)


def litserve(files: Sequence[str], work: Workload, precision: str) -> LoadedServer:
    """LitServe around densekit's own predictor."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(HERE / "litserve_server.py"), network(Path(folder), work)]
        command += ["--precision", precision]
        command += [word for name, value in LITSERVE.items() for word in (f"--{name}", str(value))]
        threads = max(1, torch.get_num_threads() // int(LITSERVE["workers"]))
        return LoadedServer(command, "/health", "/predict", files, threads)


def litserve_name(precision: str) -> str:
    options = ", ".join(f"{name} {value}" for name, value in LITSERVE.items())
    return f"LitServe {version('litserve')}, densekit's network, {options}, {precision}"


def fastapi(files: Sequence[str], work: Workload) -> LoadedServer:
    """A handler as people write it, with torchvision's network in fp32."""
    command = [str(HERE / "fastapi_server.py"), "--model", work.model]
    return LoadedServer(command, "/healthz", "/predict", files, torch.get_num_threads())


def network(folder: Path, work: Workload) -> str:
    """An artifact of random weights."""
    model = variants.create(ModelConfig(name=work.model, num_classes=NUM_CLASSES)).eval()
    config = ArtifactConfig(
        model=Described(name=work.model, architecture=model.config),
        preprocessing=Preprocessing(resize=work.image_size * 8 // 7, crop=work.image_size),
        classes=tuple(str(label) for label in range(NUM_CLASSES)),
    )
    artifact.write_artifact(folder, config, model.state_dict())
    return str(folder)
