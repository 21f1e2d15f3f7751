"""Reading against the width of photographs and the network's input, exactly and scaled.

The photographs are mosaics of the sample's, each enlarged twice: sharp as a camera's are, and made
when they are first needed.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

import input_sides
from densekit.bench import reading
from densekit.bench.rounds import Candidate, StepFunction
from densekit.data.splits import open_examples
from densekit_steps import Workload
from input_sides import Make

OUTPUTS = (224, 384)
SAMPLE_WIDTH = 500
COUNTS = {1000: (64, 4), 2000: (32, 1), 4000: (16, 1)}
"""By width: how many photographs there are, and how many are a batch: a step of theirs takes about
as long as one of the sample, so that a comparison ends within a minute or two."""
TILE = (1000, 750)


def sides(
    list_file: str, work: Workload, folder: str
) -> dict[str, tuple[Candidate, Candidate, Workload]]:
    """By the comparison's name; against torchvision on PIL images, one worker each."""
    theirs = partial(input_sides.torchvision, decode=reading.pil)
    found = {}
    for width in (SAMPLE_WIDTH, *COUNTS):
        batch = COUNTS[width][1] if width in COUNTS else work.batch_size
        for side in OUTPUTS:
            size = {
                "image_size": min(side, 2 * work.image_size),
                "batch_size": min(batch, work.batch_size),
            }
            each = work.model_copy(update=size)
            decodes: tuple[Literal["exact", "scaled"], ...] = ("exact", "scaled")
            for decode in decodes[: 1 if width == SAMPLE_WIDTH else 2]:
                ours = partial(input_sides.densekit, decode=decode)
                name = "densekit, 1 worker" + ", scaled" * (decode == "scaled")
                found[f"input-sizes/{width}-to-{side}-{decode}"] = (
                    _candidate(name, list_file, each, ours, folder, width, keep_memory=True),
                    _candidate(input_sides.PIL, list_file, each, theirs, folder, width),
                    each,
                )
    return found


def _candidate(
    name: str,
    list_file: str,
    work: Workload,
    make: Make,
    folder: str,
    width: int,
    keep_memory: bool = False,
) -> Candidate:
    if width in COUNTS:
        make = partial(on_photographs, make=make, folder=folder, width=width)
    return input_sides.candidate(name, list_file, work, make, keep_memory)


def on_photographs(
    list_file: str, work: Workload, make: Make, folder: str, width: int
) -> StepFunction:
    """What `make` makes of photographs of that width."""
    return make(photographs(list_file, Path(folder), width), work)


def photographs(list_file: str, folder: Path, width: int) -> str:
    """The list of those in `folder`, which are made there if they are not."""
    made = folder / f"photographs-{width}"
    if not made.is_dir():
        paths = open_examples(list_file).paths
        draw = np.random.Generator(np.random.PCG64(width))
        scratch = Path(tempfile.mkdtemp(dir=folder))
        count = COUNTS[width][0]
        for i in range(count):
            mosaic(paths, width // TILE[0], draw).save(scratch / f"{i}.jpg", quality=90)
        (scratch / "list.txt").write_text("".join(f"{i}.jpg {i % 2}\n" for i in range(count)))
        with contextlib.suppress(OSError):  # the other side's process was faster
            scratch.rename(made)
        shutil.rmtree(scratch, ignore_errors=True)
    return str(made / "list.txt")


def mosaic(paths: Sequence[str], tiles: int, draw: np.random.Generator) -> Image.Image:
    """`tiles` in a row, and as many rows."""
    whole = Image.new("RGB", (tiles * TILE[0], tiles * TILE[1]))
    for at in range(tiles * tiles):
        with Image.open(paths[int(draw.integers(len(paths)))]) as image:
            tile = image.convert("RGB").resize(TILE, Image.Resampling.BICUBIC)
        whole.paste(tile, (at % tiles * TILE[0], at // tiles * TILE[1]))
    return whole
