"""A part of the images, from names to a Parquet file: what every process of every machine runs."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from densekit import distributed
from densekit.data.listing import readable
from densekit.files import replacing
from densekit.infer.classifier import Classifier, in_batches
from densekit.infer.model import Opened
from densekit.infer.rows import Row
from densekit.precision import FLAG, keep_freed_memory, resolve
from densekit.score.folder import ResultFolder

LOOK_EVERY = 0.2  # seconds between looks at those who score parts
SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("topk", pa.list_(pa.struct({
            "class": pa.int32(), "label": pa.string(), "prob": pa.float64(), "positive": pa.bool_()
        }))),
        ("error", pa.string()),
    ]
)  # fmt: skip
"""A prediction's row, as in JSON: `infer/rows.py`."""


@dataclass(frozen=True)
class ScoreJob:
    """All that a process needs to score parts."""

    opened: Opened
    folder: ResultFolder
    threads: int | None
    """Of the network, in each process; None: as OMP_NUM_THREADS says."""

    def classifier(self, worker: int = 0) -> Classifier:
        """In the process that is to use it, of `worker` processes before it on this machine."""
        request = self.folder.manifest.request
        keep_freed_memory()
        distributed.set_threads(self.threads)
        gpus = torch.cuda.device_count() if request.device == "cuda" else 0
        formats = resolve(
            request.device, request.precision, local_rank=worker % max(1, gpus), typed=FLAG
        )
        return Classifier(self.opened, formats, request.max_pixels, request.engine, request.tta)

    def rows(self, classifier: Classifier, parts: Iterable[int]) -> Iterator[Row]:
        """Those of all images of `parts`: at a part's end the next one's first are being read.

        Batches are cut from a part's first image on, so rows do not depend on who scores which.
        """
        size, topk = self.folder.manifest.request.batch_size, self.folder.manifest.request.topk
        names = map(self.folder.names, parts)
        return classifier.rows_of(chain.from_iterable(in_batches(n, size) for n in names), topk)


def score_part(job: ScoreJob, rows: Iterator[Row], part: int) -> Generator[int, None, None]:
    """Writes a part's file of the next `rows`; yields how many more are done, batch by batch.

    The file is there, whole, once this has ended; if it is closed before, nothing is.
    """
    folder, request = job.folder, job.folder.manifest.request
    # Rows stay Python's until the end: tables of Arrow's made batch by batch would each lie in a
    # place that a batch's memory has left, so that the next batch takes new memory.
    done: list[Row] = []
    while left := folder.images_in(part) - len(done):
        batch = [_utf8(next(rows)) for _ in range(min(left, request.batch_size))]
        done += batch
        yield len(batch)
    table = pa.Table.from_pylist(done, SCHEMA.with_metadata({"network": request.network}))
    with replacing(folder.file(part)) as out:
        pq.write_table(table, out, compression="zstd")


def _utf8(row: Row) -> Row:
    """The row with a name that every reader of Parquet can take."""
    return {**row, "file": None if row["file"] is None else readable(row["file"])}
