"""Parts on a Ray cluster, handed out by Ray Data.

Ray only carries part numbers: names are read from the folder and rows written to it, so every
machine must see the folder and the images under the same paths. A worker that dies is replaced and
its parts are computed again; part files are written atomically, so no row is lost or duplicated.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Generator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from densekit.config import UserError, needs_extra
from densekit.infer.exported import Exported
from densekit.infer.model import Opened
from densekit.score.folder import ResultFolder
from densekit.score.parts import LOOK_EVERY, ScoreJob, score_part

BLOCKS = 10_000  # at most, for Ray Data to track; with more parts, several per block


def on_ray(
    opened: Opened, folder: ResultFolder, parts: Sequence[int], workers: int | None
) -> Generator[int, None, None]:
    """Scores parts; yields how many more images are done. Closing it disconnects from the cluster.

    RAY_ADDRESS names the cluster; without it Ray starts one on this machine. `workers` actors
    share its CPUs; None: one per CPU.
    """
    ray = _ray()
    ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        cpus = int(ray.cluster_resources()["CPU"])
        actors = min(workers or cpus, len(parts))
        threads = max(1, cpus // actors)
        results: queue.Queue[int | BaseException] = queue.Queue()
        job = ray.put(_anywhere(ScoreJob(opened, folder, threads)))
        numbers = ray.data.from_items(list(parts), override_num_blocks=min(len(parts), BLOCKS))
        scored = numbers.map_batches(
            PartActor,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=threads,
            num_gpus=int(folder.manifest.request.device == "cuda"),
        )
        threading.Thread(target=_collect, args=(scored, results), daemon=True).start()
        yield from _counted(results, len(parts))
    finally:
        ray.shutdown()


class PartActor:
    """A process of the cluster with its own network."""

    def __init__(self, job: Any) -> None:
        self.job: ScoreJob = _ray().get(job)
        if here := self.job.folder.manifest.request.started_in:
            os.chdir(here)  # Ray's processes start elsewhere
        self.classifier = self.job.classifier()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Part numbers -> their numbers of images."""
        parts = batch["item"].tolist()
        rows = self.job.rows(self.classifier, parts)
        return {"images": np.array([sum(score_part(self.job, rows, part)) for part in parts])}


def _anywhere(job: ScoreJob) -> ScoreJob:
    """The job with absolute paths of results and network."""
    opened, network = job.opened, job.opened.network
    if isinstance(network, Exported):
        opened = replace(opened, network=replace(network, folder=network.folder.absolute()))
    folder = replace(job.folder, path=job.folder.path.absolute())
    return replace(job, opened=opened, folder=folder)


def _collect(scored: Any, results: queue.Queue[int | BaseException]) -> None:
    """Runs in a thread, so that the main thread can react to a stop request."""
    try:
        for row in scored.iter_rows():
            results.put(row["images"])
    except BaseException as error:
        results.put(error)


def _counted(results: queue.Queue[int | BaseException], parts: int) -> Generator[int, None, None]:
    while parts:
        try:
            result = results.get(timeout=LOOK_EVERY)
        except queue.Empty:
            yield 0
            continue
        if isinstance(result, BaseException):
            cause = getattr(result, "cause", None)  # the worker's own error, without Ray's dump
            raise cause if isinstance(cause, UserError) else result
        parts -= 1
        yield result


def _ray() -> ModuleType:
    with needs_extra("ray", "--on ray"):
        import ray.data
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.raise_original_map_exception = True
    return ray
