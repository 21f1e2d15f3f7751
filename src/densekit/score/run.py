"""`densekit predict --out`: predictions for millions of images, in Parquet files."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import torch

import densekit
from densekit import distributed
from densekit.config import UserError
from densekit.data.bit_depth import dark_files
from densekit.files import digest
from densekit.infer.engines import check_formats, resolve_engine
from densekit.infer.exported import MODEL_FILES, Exported
from densekit.infer.inputs import image_names, is_list
from densekit.infer.model import Opened
from densekit.infer.objects import StoreFailed, is_object
from densekit.infer.tta import squares_for
from densekit.models.densenet import DenseNet
from densekit.precision import FLAG, resolve
from densekit.progress import bar, say
from densekit.score.folder import Done, Request, ResultFolder, opened_folder
from densekit.score.on_ray import on_ray
from densekit.score.parts import ScoreJob
from densekit.score.processes import in_processes, in_this_process
from densekit.stop import StopRequest

PART_SIZE = 4096  # images: some minutes on a CPU, a multiple of usual batch sizes


@dataclass(frozen=True)
class ScoreOptions:
    """Options that decide the rows, besides network and images, and where they are computed."""

    topk: int = 5
    batch_size: int = 32
    part_size: int | None = None
    """Images per file; None: PART_SIZE."""
    max_pixels: int | None = None
    device: str = "auto"
    precision: str = "fp32"
    engine: str = "auto"
    tta: str = "none"
    workers: int | None = None
    """Processes; None: one on this machine, one for each CPU on Ray."""
    on: str | None = None
    """`ray`; None: this machine."""


@dataclass(frozen=True)
class Scored:
    """A command's result."""

    images: int
    """In total."""
    done: Done
    """By this command and earlier ones."""
    scored: int
    """By this command."""
    seconds: float
    stopped: str | None = None
    """Why it ended early."""


def score_all(opened: Opened, inputs: Sequence[str], out: Path, options: ScoreOptions) -> Scored:
    """A row for each image that `inputs` name, in their order, in files below `out`.

    Resumes an earlier command with the same network, inputs and options, however that ended.
    SIGTERM and Ctrl-C end it, keeping the finished parts. Raises UserError.
    """
    if options.on not in (None, "ray"):
        raise UserError(f"--on {options.on}: unknown; leave it out, or --on ray")
    squares_for(options.tta, opened.preprocessing)  # raises, before anything is listed
    request = _request(opened, inputs, options)
    with opened_folder(out, request, image_names(inputs), densekit.__version__) as folder:
        images = folder.manifest.images
        missing, before = folder.look(range(folder.parts))
        if before.parts:
            say(f"{out}: {before.images:,} of {images:,} images are done already")
        files = [name for name in folder.names(0) if not is_object(name)]
        for note in dark_files(files, opened.preprocessing.scaling):
            say(note)
        began, scored, why = time.monotonic(), 0, None
        with StopRequest() as stop, closing(_scoring(opened, folder, missing, options)) as scoring:
            todo = images - before.images
            try:
                for _ in bar(_until_asked(scoring, stop), todo, "scoring", lines=True):
                    scored += 1
            except StoreFailed as error:
                why = str(error)
        seconds = time.monotonic() - began
        still, more = folder.look(missing)
        folder.note(before + more)
    stopped = (why or "asked to stop") if still else None
    return Scored(images, before + more, scored, seconds, stopped)


def _request(opened: Opened, inputs: Sequence[str], options: ScoreOptions) -> Request:
    """Raises UserError for a device or precision that this machine lacks, if it does the work."""
    device, network = options.device, opened.network
    engine = resolve_engine(opened, options.engine)
    if isinstance(network, Exported):
        check_formats(network, resolve(device, options.precision, typed=FLAG), engine)
    if options.on is None or device == "auto":
        device = resolve(device, options.precision, typed=FLAG).device.type
    return Request(
        network=network_digest(opened),
        inputs=tuple(inputs),
        lists={name: digest(Path(name), "sha256") for name in inputs if is_list(name)},
        started_in=None if all(map(_is_absolute, inputs)) else str(Path.cwd()),
        part_size=options.part_size or PART_SIZE,
        topk=options.topk,
        batch_size=options.batch_size,
        max_pixels=options.max_pixels or opened.max_pixels,
        device=device,
        precision=options.precision,
        engine=engine,
        tta=options.tta,
    )


def _is_absolute(name: str) -> bool:
    return is_object(name) or Path(name).is_absolute()


def network_digest(opened: Opened) -> str:
    """sha256 of all that decides an answer: weights, architecture, preprocessing, classes."""
    seen = opened.preprocessing.model_dump(mode="json")
    said: list[object] = [opened.task, opened.classes, opened.thresholds, seen]
    network = opened.network
    if isinstance(network, Exported):
        files = MODEL_FILES[network.config.export.to]
        said += [digest(network.folder / file, "sha256") for file in files]
    hashed = hashlib.sha256(json.dumps(said).encode())
    if isinstance(network, DenseNet):
        for name, tensor in network.state_dict().items():
            hashed.update(f"{name}{list(tensor.shape)}".encode())
            hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()


def _scoring(
    opened: Opened, folder: ResultFolder, parts: Sequence[int], options: ScoreOptions
) -> Generator[int, None, None]:
    """Scores the parts; yields how many more images are done."""
    if not parts:
        return
    if options.on == "ray":
        yield from on_ray(opened, folder, parts, options.workers)
        return
    workers = min(options.workers or 1, len(parts))
    share = max(1, distributed.cores() // workers)
    job = ScoreJob(opened, folder, None if os.environ.get("OMP_NUM_THREADS") else share)
    if workers == 1:
        yield from in_this_process(job, parts)
    else:
        yield from in_processes(job, parts, workers)


def _until_asked(scoring: Iterator[int], stop: StopRequest) -> Iterator[None]:
    """An item per finished image, until the process is asked to stop."""
    for images in scoring:
        yield from repeat(None, images)
        if stop.asked:
            return
