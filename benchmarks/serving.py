"""What `densekit serve` is like under load: how long answers take, and whether its memory grows.

    python benchmarks/serving.py latency    at 50 and 80 % of the most it can do: 4 minutes
    python benchmarks/serving.py memory     over 10 minutes with as much as it can do

Its throughput, against the bare predictor and other servers, is `benchmarks/run.py serving`. The
client is this process, the server another; both share the machine. Rows go to benchmarks/results.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

import load_client
import rows
import run
import serving_steps
from densekit.bench.rounds import Spread
from densekit.config import UserError
from densekit.data.splits import open_examples
from densekit_steps import Workload
from serving_steps import CLIENTS, LoadedServer

PERCENTILES = (50, 95, 99)
SHARES = (50, 80)  # per cent of the throughput
WARM_MINUTES = 1.0  # before memory is looked at: allocators and caches fill


def latency(server: LoadedServer, asked: argparse.Namespace) -> Iterator[rows.Row]:
    """A row for each share and percentile; what is spread is over rounds."""
    images = len(server.requests)
    server()  # the first is not counted
    most = Spread.of([images / server() for _ in range(asked.rounds)])
    found: dict[tuple[int, int], list[float]] = {}
    os.killpg(server.process.pid, signal.SIGCONT)
    for seed in track(range(asked.rounds), "latency", console=Console(stderr=True)):
        for share in SHARES:
            rate = most.median * share / 100
            load = load_client.open_loop(server.address, server.requests, rate, asked.seconds, seed)
            took = sorted(asyncio.run(load))
            for p in PERCENTILES:
                place = min(len(took) - 1, len(took) * p // 100)
                found.setdefault((share, p), []).append(took[place])
    for (share, p), values in found.items():
        name = f"serving-latency/{share}-percent-p{p}-{asked.precision}"
        side = rows.Result(name=f"densekit serve, {asked.precision}", measured=Spread.of(values))
        settings = {
            "rate": f"{most.median * share / 100:.1f} requests/s",
            "throughput": f"{most.median:.1f} images/s",
            "seconds": asked.seconds,
        }
        yield rows.row(name, "s", (side,), None, {**said(asked), **settings})


def memory(server: LoadedServer, asked: argparse.Namespace) -> Iterator[rows.Row]:
    """Resident memory in the first minute after the warm-up and in the last one."""
    began, answered, samples = time.monotonic(), 0, []
    end = began + 60 * asked.minutes
    while (now := time.monotonic()) < end:
        server()
        answered += len(server.requests)
        samples.append((now - began, resident(server.process.pid)))
        if sys.stderr.isatty():
            print(f"\r{(now - began) / 60:.1f} of {asked.minutes} minutes", end="", file=sys.stderr)
    last = samples[-1][0]
    warm = 60 * min(WARM_MINUTES, asked.minutes / 10)
    early = [held for at, held in samples if warm <= at <= warm + 60]
    late = [held for at, held in samples if at >= last - 60]
    sides = (
        rows.Result(name="densekit serve, in its last minute", measured=Spread.of(late)),
        rows.Result(name="in the first one after a warm-up", measured=Spread.of(early)),
    )
    ratio = Spread.of([held / sides[1].measured.median for held in late])
    settings = {**said(asked), "minutes": str(asked.minutes), "images": answered}
    yield rows.row(f"serving-memory/{asked.precision}", "MiB", sides, ratio, settings)


def resident(pid: int) -> float:
    """MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmRSS"].split()[0]) / 1024


def said(asked: argparse.Namespace) -> dict[str, str | int]:
    threads = asked.threads or torch.get_num_threads()
    return {"model": asked.model, "clients": CLIENTS, "rounds": asked.rounds, "threads": threads}


KINDS = {"latency": latency, "memory": memory}


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--model", default="densenet121")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", metavar="LIST", help="of JPEG files")
    parser.add_argument("--files", type=int, default=256, help="of the list (256)")
    parser.add_argument("--rounds", type=int, default=3, help="of latency (3)")
    parser.add_argument("--seconds", type=int, default=30, help="of each share in a round (30)")
    parser.add_argument("--minutes", type=float, default=10, help="of memory (10)")
    parser.add_argument("--threads", type=int, help="of the server (torch's choice)")
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="where rows go")
    return parser.parse_args(words)


def main(asked: argparse.Namespace) -> None:
    if asked.threads:
        torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        list_file = asked.images or run.sample_list(folder)
        if list_file is None:
            raise UserError("--images LIST: which files are to be sent")
        files = open_examples(list_file).paths[: asked.files]
        work = Workload(model=asked.model, image_size=asked.image_size)
        server = serving_steps.densekit(files, work, asked.precision)
        measured = list(KINDS[asked.kind](server, asked))
        server.close()
    for row in measured:
        rows.append(row, asked.results)
    run.show(measured)


if __name__ == "__main__":
    try:
        main(parse_arguments())
    except UserError as mistake:
        sys.exit(f"benchmarks/serving.py: {mistake}")
