"""Kills a run again and again; what it leaves must be what the untouched run leaves.

    python benchmarks/soak.py --kills 100      about 15 minutes on 2 cores
    python benchmarks/soak.py --kills 6        about 1 minute; --ranks 2 under torchrun

The run trains a small DenseNet on 960 real digits for 3 epochs of 15 steps. It is killed at five
moments, drawn uniformly over its length, by SIGKILL or SIGTERM, started again after each, and
compared when it has ended; then the next one begins. One kill in five waits for a training state
that is being written: its temporary file, seen from outside. Exit 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from densekit.data.builtin import mnist5k

TRAIN, VAL = 96, 20  # images of each digit
SAVE_EVERY = 4
PER_RUN = 5  # kills
COMPARED = ("loss", "top1", "top5", "lr")
IN_A_WRITE = 0.1  # of the kills, at least
OPTIONS = {
    "model.overrides": "{growth_rate: 8, num_init_features: 16, block_config: [3, 3]}",
    "model.drop_rate": 0.1,
    "data.batch_size": 64,
    "loop.epochs": 3,
    "loop.log_every": 1,
    "loop.save_every": SAVE_EVERY,
    "loop.threads": 1,
}
Process = subprocess.Popen[bytes]
Key = tuple[str, int, float]
Moment = tuple[int, float]
"""Lines of the log, and seconds after the last of them."""


@dataclass
class Tally:
    """What happened, and what differs from the untouched run."""

    kills: Counter[str] = field(default_factory=Counter)
    in_a_write: int = 0
    resumes: int = 0
    repeated: list[int] = field(default_factory=list)
    missing: int = 0
    doubled: int = 0
    different: int = 0
    weights: bool = True
    runs: int = 0

    @property
    def passed(self) -> bool:
        kills = self.kills.total()
        return (
            not (self.missing or self.doubled or self.different)
            and self.weights
            and max(self.repeated, default=0) <= SAVE_EVERY
            and self.in_a_write >= IN_A_WRITE * kills
        )

    def report(self) -> str:
        repeated = self.repeated or [0]
        return "\n".join(
            f"{name:<28}{value}"
            for name, value in {
                "kills": f"{self.kills.total()} ({dict(self.kills)}), of {self.runs} runs",
                "inside a state's write": self.in_a_write,
                "resumes": self.resumes,
                "steps repeated": f"mean {sum(repeated) / len(repeated):.2f}, max {max(repeated)} "
                f"(save_every {SAVE_EVERY})",
                "log lines missing": self.missing,
                "log lines doubled": self.doubled,
                "log lines different": self.different,
                "final weights identical": "yes" if self.weights else "no",
            }.items()
        )


@dataclass
class Soak:
    """Where the images and the runs are, and how a run is started."""

    work: Path
    ranks: int
    workers: int

    def start(self, folder: Path) -> Process:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]
        own = {"data.root": self.work / "digits", "data.train": "train.txt", "data.val": "val.txt"}
        where = {"data.workers": self.workers, "loop.output_dir": folder}
        options = [f"-o{key}={value}" for key, value in {**OPTIONS, **own, **where}.items()]
        with (self.work / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *(launcher if self.ranks > 1 else []), "-m", "densekit", "train",
                 "-c", "quickstart", *options],
                env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}, stdout=output, stderr=output,
            )  # fmt: skip

    def until_open(self, process: Process, folder: Path) -> None:
        """Until the run takes its folder, which writes recipe.yaml anew."""
        file, began = folder / "recipe.yaml", time.time()
        while not (file.exists() and file.stat().st_mtime > began) and process.poll() is None:
            time.sleep(0.001)

    def untouched(self, folder: Path) -> list[float]:
        """A run to its end; when its folder was taken and when it wrote each line, in seconds."""
        process = self.start(folder)
        self.until_open(process, folder)
        began, times = time.monotonic(), [0.0]
        while process.poll() is None:
            written = len(list(lines(folder))) + 1 - len(times)
            times += [time.monotonic() - began] * written
            time.sleep(0.001)
        self.expect(process, 0)
        return times

    def expect(self, process: Process, *codes: int) -> int:
        code = process.wait(timeout=300)
        if code not in codes:
            sys.exit(f"exit code {code}:\n{(self.work / 'output.txt').read_text()[-5000:]}")
        return code

    def kill(
        self, folder: Path, moment: Moment, number: signal.Signals, aimed: bool, tally: Tally
    ) -> bool:
        """Starts or resumes the run and ends it at that moment; False if it was over before."""
        tally.resumes += (folder / "state").exists()
        process = self.start(folder)
        self.until_open(process, folder)
        written, seconds = moment
        while process.poll() is None and len(list(lines(folder))) < written:
            time.sleep(0.001)
        time.sleep(seconds)
        while aimed and process.poll() is None and not half_written(folder):
            time.sleep(0.0005)
        send(process, number, self.ranks)
        stopped = 75 if self.ranks == 1 else 1  # torchrun's own code for ranks that stop
        code = self.expect(process, 0, -number, *([stopped] if number == signal.SIGTERM else []))
        if code == 0 or (number == signal.SIGTERM and code == -number):  # it was at its exit
            return False
        tally.kills[number.name] += 1
        tally.in_a_write += half_written(folder)
        tally.repeated.append(max(0, last_logged(folder) - last_saved(folder)))
        return True


def send(process: Process, number: signal.Signals, ranks: int) -> None:
    """SIGKILL to every rank and its launcher; SIGTERM to the one that a scheduler knows."""
    pids = [process.pid]
    if number == signal.SIGKILL and ranks > 1 and process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        pids = [*map(int, children.split()), process.pid]
    for pid in pids:
        if process.poll() is None:
            os.kill(pid, number)


def half_written(folder: Path) -> bool:
    return any((folder / "state").glob(".*.tmp"))


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    file = folder / "log.jsonl"
    texts = file.read_text().split("\n")[:-1] if file.exists() else []
    return (json.loads(text) for text in texts)


def last_logged(folder: Path) -> int:
    return max((line["step"] for line in lines(folder)), default=0)


def last_saved(folder: Path) -> int:
    return max((int(f.name.split("-")[1]) for f in (folder / "state").glob("step-*")), default=0)


def compare(folder: Path, truth: Path, tally: Tally) -> None:
    """Adds what differs between two runs that ended."""
    expected, found = by_key(truth), by_key(folder)
    tally.missing += len(expected.keys() - found.keys())
    tally.doubled += sum(len(same) - 1 for same in found.values())
    tally.doubled += len(found.keys() - expected.keys())
    tally.different += sum(found[k][0] != expected[k][0] for k in found.keys() & expected.keys())
    for which in ("best", "last"):
        a, b = (load_file(run / which / "model.safetensors") for run in (folder, truth))
        tally.weights &= a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    tally.runs += 1


def by_key(folder: Path) -> dict[Key, list[list[Any]]]:
    found: dict[Key, list[list[Any]]] = {}
    for line in lines(folder):
        if line["kind"] == "event":
            continue
        key = (line["kind"], line["step"], line.get("epoch", 0))
        found.setdefault(key, []).append([line.get(name) for name in COMPARED])
    return found


def write_lists(digits: Path) -> None:
    """The first images of each digit, of the builtin's own lists."""
    for split, count in (("train", TRAIN), ("val", VAL)):
        rows = (digits / f"{split}_list.txt").read_text().splitlines()
        seen: Counter[str] = Counter()
        kept = []
        for row in rows:
            seen[row.split()[1]] += 1
            if seen[row.split()[1]] <= count:
                kept.append(row + "\n")
        (digits / f"{split}.txt").write_text("".join(kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw, tally = random.Random(asked.seed), Tally()
    with tempfile.TemporaryDirectory() as temporary:
        soak = Soak(Path(temporary), asked.ranks, asked.workers)
        write_lists(mnist5k(soak.work / "digits"))
        truth = soak.work / "untouched"
        times = soak.untouched(truth)
        print(f"the untouched run takes {times[-1]:.1f} s; {asked.ranks} ranks, "
              f"{asked.workers} workers, torch {torch.__version__}", flush=True)  # fmt: skip
        while (left := asked.kills - tally.kills.total()) > 0:
            folder = soak.work / f"run{tally.runs}"
            for seconds in sorted(draw.uniform(0, times[-1]) for _ in range(min(PER_RUN, left))):
                written = sum(passed <= seconds for passed in times) - 1
                moment = (written, seconds - times[written])
                behind = tally.in_a_write < IN_A_WRITE * (tally.kills.total() + 1)
                aimed = behind or draw.random() < 1 / PER_RUN
                term = not aimed and draw.random() < 0.4
                sent = signal.SIGTERM if term else signal.SIGKILL
                if not soak.kill(folder, moment, sent, aimed, tally):
                    break
                if sys.stderr.isatty():
                    print(f"\r{tally.kills.total()} of {asked.kills}", end="", file=sys.stderr)
            else:
                tally.resumes += 1
                soak.untouched(folder)
            compare(folder, truth, tally)
    print(tally.report())
    print("passed" if tally.passed else "FAILED")
    sys.exit(0 if tally.passed else 1)


if __name__ == "__main__":
    main()
