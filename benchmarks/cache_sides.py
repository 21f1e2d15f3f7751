"""Training from files, against the same steps on one batch of noise that lies in memory.

What reading costs a run: its loader shares the cores with the step.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from densekit.bench.rounds import Candidate
from densekit.bench.training_step import TrainingStep, training_step
from densekit.data.loader import TrainStream
from densekit.training.loop import make_plan
from densekit.training.recipe import load_recipe
from densekit_steps import Workload

CIFAR = "cifar10"  # .tar.gz in the folder that DENSEKIT_TEST_DATA names
NETWORK = "densenet_bc_40_12"


def sides(folder: str, quick: bool) -> dict[str, tuple[Candidate, Candidate, Workload]]:
    """By the comparison's name; what they need is unpacked to `folder`."""
    images = 2 if quick else 64
    digits = Workload(model="quickstart", image_size=28, batch_size=images)
    found = {
        "cache/quickstart": _pair("auto", "quickstart", (), digits, folder),
        "cache/quickstart-off": _pair("off", "quickstart", (), digits, folder),
    }
    if cifar_archive() is None:
        return found
    work = Workload(model=NETWORK, image_size=32, batch_size=images)
    asked = (f"model.name={NETWORK}", "model.num_classes=10")
    of_cifar = partial(_pair, name="cifar/densenet_40_12", options=asked, work=work, folder=folder)
    return {"cache/cifar10": of_cifar("auto"), "cache/cifar10-off": of_cifar("off"), **found}


def _pair(
    cache: str, name: str, options: Sequence[str], work: Workload, folder: str
) -> tuple[Candidate, Candidate, Workload]:
    own = (*options, f"data.batch_size={work.batch_size}")
    kept = "" if cache == "auto" else f", data.cache={cache}"
    ours = partial(from_files, name, (*own, f"data.cache={cache}"), folder)
    theirs = partial(from_memory, name, own)
    return (
        Candidate(f"densekit train, files{kept}", ours, keep_freed_memory=True),
        Candidate("its step alone, on noise in memory", theirs, keep_freed_memory=True),
        work,
    )


class FilesToStep:
    """A step of `densekit train`, from the loader's next batch to the step's sums."""

    def __init__(self, name: str, options: Sequence[str]) -> None:
        threads = f"loop.threads={torch.get_num_threads()}"
        plan = make_plan(load_recipe(name, [*options, threads]))
        self.data, loop = plan.recipe.data, plan.recipe.loop
        self.step = training_step(plan.recipe)
        self.op = self.step.op
        self.steps = iter(TrainStream(plan.train, self.data, seed=loop.seed, epochs=loop.epochs))

    def __call__(self) -> list[float]:
        ((batch,), _) = next(self.steps)
        self.step.images, self.step.labels = batch.images, batch.labels
        return self.step()


def from_files(name: str, options: Sequence[str], folder: str) -> FilesToStep:
    """Of a recipe that is shipped."""
    root = Path(folder) / CIFAR if name.startswith("cifar/") else Path(folder) / "digits"
    archive = cifar_archive()
    if root.name == CIFAR and not root.exists() and archive is not None:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return FilesToStep(name, [*options, f"data.root={root}"])


def from_memory(name: str, options: Sequence[str]) -> TrainingStep:
    return training_step(load_recipe(name, list(options)))


def cifar_archive() -> Path | None:
    archive = Path(os.environ.get("DENSEKIT_TEST_DATA", "")) / f"{CIFAR}.tar.gz"
    return archive if archive.is_file() else None
