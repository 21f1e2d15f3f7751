"""Scores one part, from names to a Parquet file; runs in every process on every machine."""

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

LOOK_EVERY = 0.2  # seconds between polls of the scoring processes
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
    """Everything a process needs to score parts."""

    opened: Opened
    folder: ResultFolder
    threads: int | None
    """The network's threads in each process; None: as OMP_NUM_THREADS says."""

    def classifier(self, worker: int = 0) -> Classifier:
        """Loads it in the process that uses it, the `worker`th (from 0) on this machine."""
        request = self.folder.manifest.request
        keep_freed_memory()
        distributed.set_threads(self.threads)
        gpus = torch.cuda.device_count() if request.device == "cuda" else 0
        formats = resolve(
            request.device, request.precision, local_rank=worker % max(1, gpus), typed=FLAG
        )
        return Classifier(self.opened, formats, request.max_pixels, request.engine, request.tta)

    def rows(self, classifier: Classifier, parts: Iterable[int]) -> Iterator[Row]:
        """The rows of `parts`; the next part's first images are read while this one ends.

        Batches start anew with each part, so rows do not depend on which process scores it.
        """
        size, topk = self.folder.manifest.request.batch_size, self.folder.manifest.request.topk
        names = map(self.folder.names, parts)
        return classifier.rows_of(chain.from_iterable(in_batches(n, size) for n in names), topk)


def score_part(job: ScoreJob, rows: Iterator[Row], part: int) -> Generator[int, None, None]:
    """Writes a part's file from the next `rows`; yields how many more are done, batch by batch.

    The file is written atomically at the end; closing this earlier writes nothing.
    """
    folder, request = job.folder, job.folder.manifest.request
    # Rows stay Python objects until the end: Arrow tables made batch by batch would each occupy
    # memory that a batch has freed, so that the next batch would need new memory.
    done: list[Row] = []
    while left := folder.images_in(part) - len(done):
        batch = [_utf8(next(rows)) for _ in range(min(left, request.batch_size))]
        done += batch
        yield len(batch)
    table = pa.Table.from_pylist(done, SCHEMA.with_metadata({"network": request.network}))
    with replacing(folder.file(part)) as out:
        pq.write_table(table, out, compression="zstd")


def _utf8(row: Row) -> Row:
    """The row with a file name in valid UTF-8, which every Parquet reader accepts."""
    return {**row, "file": None if row["file"] is None else readable(row["file"])}
