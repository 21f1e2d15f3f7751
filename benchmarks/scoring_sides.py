"""`densekit predict --out`: sides in one process, and whole commands, with processes or with Ray.

In one process a step is the next IMAGES of files that go round and round, in parts as large as the
command's own. Commands are timed from outside, by their part files, without their start.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, count, cycle, islice, repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import densekit
import file_steps
from densekit.bench.rounds import Candidate, StepFunction
from densekit.infer.classifier import Classifier, in_batches
from densekit.precision import Format, resolve
from densekit.score.folder import Request, opened_folder
from densekit.score.parts import ScoreJob, score_part
from densekit.score.run import PART_SIZE
from densekit_steps import Workload, written
from inference_sides import Sides
from startup import DENSEKIT, Commands

BATCH_SIZE = file_steps.BATCH_SIZE
IMAGES = 3 * BATCH_SIZE  # of a step
WORKERS = 2
PART, PARTS = 32, 12  # images in a part of a timed command, and its parts
FIRST_PARTS = 2 * WORKERS  # of a command: their time is its start's
NO_IMAGES = 64 * PART
QUICK_PARTS = FIRST_PARTS + 2 * WORKERS


def scoring(work: Workload, paths: Sequence[str], precisions: Sequence[Format]) -> dict[str, Sides]:
    """A step of either side is as many of `paths`, which go round and round."""
    images = min(IMAGES, len(paths))
    counted = work.model_copy(update={"batch_size": images})
    found: dict[str, Sides] = {}
    for precision in precisions:

        def side(make: Callable[..., StepFunction], name: str, precision: str) -> Candidate:
            return Candidate(
                f"{name}, {precision}", partial(make, paths, work, precision, images), True
            )

        ours = side(FilesToRows, "densekit predict --out", precision)
        alone = side(network_alone, "its network alone, on tensors", precision)
        in_turn = side(files_then_network, "its reading, then its network", precision)
        found[f"score/network-{precision}"] = ours, alone, counted
        found[f"score/in-turn-{precision}"] = ours, in_turn, counted
    return found


# Steps --------------------------------------------------------------------------------------


class FilesToRows:
    """What the command does with a part: names from its folder, rows to a Parquet file."""

    def __init__(self, paths: Sequence[str], work: Workload, precision: str, images: int) -> None:
        """Each call goes on by `images`; a part that is done is done again."""
        self.images, self.place = images, TemporaryDirectory()
        opened = file_steps.opened_network(work)
        request = Request(
            network="", inputs=(), lists={}, started_in=None, part_size=PART_SIZE, topk=5,
            batch_size=BATCH_SIZE, max_pixels=opened.max_pixels, device=work.device,
            precision=precision, engine="torch", tta="none",
        )  # fmt: skip
        names, folder = islice(cycle(paths), PART_SIZE), Path(self.place.name)
        with opened_folder(folder, request, names, densekit.__version__) as results:
            job = ScoreJob(opened, results, torch.get_num_threads())
        rows = job.rows(job.classifier(), repeat(0))
        self.done = chain.from_iterable(score_part(job, rows, 0) for _ in count())

    def __call__(self) -> None:
        left = self.images
        while left > 0:
            left -= next(self.done)


def network_alone(
    paths: Sequence[str], work: Workload, precision: str, images: int
) -> StepFunction:
    """The same batches, read before the first step."""
    classifier = _classifier(work, precision)
    batches = cycle(_read(classifier, paths))
    return lambda: [classifier.logits(next(batches)) for _ in range(0, images, BATCH_SIZE)]


def files_then_network(
    paths: Sequence[str], work: Workload, precision: str, images: int
) -> StepFunction:
    """Every core reads, and then every core computes the network: nothing is in another's way."""
    classifier, names = _classifier(work, precision), cycle(paths)

    def step() -> list[torch.Tensor]:
        batches = _read(classifier, [*islice(names, images)])
        return [classifier.logits(batch) for batch in batches]

    return step


def _classifier(work: Workload, precision: str) -> Classifier:
    return Classifier(file_steps.opened_network(work), resolve(work.device, precision))


def _read(classifier: Classifier, paths: Sequence[str]) -> list[torch.Tensor]:
    """Squares in batches; a last one that is not whole only where there is no other."""
    read = [squares for _, squares in classifier.read_batches(in_batches(paths, BATCH_SIZE))]
    whole = [squares for squares in read if len(squares) == BATCH_SIZE]
    return [torch.stack(squares) for squares in whole or read]  # type: ignore[arg-type]


# Commands -----------------------------------------------------------------------------------


def commands(
    work: Workload, paths: Sequence[str], precision: Format, quick: bool = False
) -> dict[str, Commands]:
    """What processes and Ray's workers are worth; and what Ray costs, where the part function has
    no image to read and no network to compute."""
    counts = [QUICK_PARTS * PART] * 2 if quick else [PARTS * PART, NO_IMAGES]
    images = [*map(os.path.abspath, islice(cycle(paths), counts[0]))]
    no_images = [f"/nowhere/{number}.jpg" for number in range(counts[1])]

    def sides(names: Sequence[str], said: str, *options: tuple[str, ...]) -> Commands:
        return Commands(
            "images/s",
            {
                f"densekit predict --out {' '.join(each)}, {said}": partial(
                    rate, work, precision, names, each
                )
                for each in options
            },
            {"model": work.model, "image_size": work.image_size, "parts": len(names) // PART},
        )

    one, processes = ("--workers", "1"), ("--workers", str(WORKERS))
    ray = ("--on", "ray", *processes)
    return {
        f"score/workers-{precision}": sides(images, precision, processes, one),
        f"score/ray-{precision}": sides(images, precision, ray, processes),
        "score/ray-alone": sides(no_images, "no images", ray, processes),
    }


def rate(
    work: Workload, precision: str, names: Sequence[str], options: Sequence[str], folder: Path
) -> float:
    """Images a second, by the times of the part files: those of the first parts, and of the last
    that a process does while another has none, are left out."""
    network, listed = written(work, None, folder), folder / "list.txt"
    listed.write_text("\n".join(names))
    with TemporaryDirectory(dir=folder) as place:
        out = Path(place, "results")
        sizes = ["--part-size", str(PART), "--precision", precision, "--device", work.device]
        words = [
            DENSEKIT,
            "predict",
            *map(str, (network, listed)),
            "--out",
            str(out),
            *sizes,
            *options,
        ]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode not in (0, 1):  # 1: rows with an error
            raise RuntimeError(f"{' '.join(words)}: {done.returncode}\n{done.stderr}")
        ended = sorted(file.stat().st_mtime_ns for file in out.glob("part-*"))
    steady = ended[FIRST_PARTS - 1 : len(ended) - WORKERS + 1]
    return PART * (len(steady) - 1) / (steady[-1] - steady[0]) * 1e9
