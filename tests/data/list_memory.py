"""Reads a list of images in two loader processes; what that took, in MiB, by Linux.

Prints the images, what the list added to the main process (at the end, and at its most), and what
each loader process has of its own.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from densekit.config import UserError
from densekit.data.checks import file_keys
from densekit.data.config import DataConfig
from densekit.data.dataset import BadImage, ImageDataset, Key, Sample, epoch_order
from densekit.data.loader import train_transform
from densekit.data.splits import open_examples
from densekit.data.workers import read_batches

BATCH, READ = 2562, 128  # images in a batch; of as many one is read
BLANK = Sample(torch.zeros(3, 4, 4, dtype=torch.uint8), 0)


class Looking(ImageDataset):
    """Looks at every path, and decodes only some files, since that takes minutes."""

    def __getitems__(self, keys: Sequence[Key]) -> list[Sample | UserError | BadImage]:
        assert all(self.examples.paths[index].endswith(".JPEG") for _, index in keys)
        few = [key for key in keys if key[1] % READ == 0]
        return [*super().__getitems__(few), *[BLANK] * (len(keys) - len(few))]


def of_process(what: str, pid: int | str = "self") -> float:
    """MiB."""
    file = "status" if what.startswith("Vm") else "smaps_rollup"
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


def main() -> None:
    root = sys.argv[1]
    before = of_process("Rss")
    examples = open_examples(root, split="train")
    file_keys(examples.paths)
    examples.digest()
    data = DataConfig(image_size=4)
    dataset = Looking(examples, train_transform(data), 3, 4)
    order = epoch_order(0, 0, len(examples))
    keys = ([(0, i) for i in order[n : n + BATCH].tolist()] for n in range(0, len(order), BATCH))
    seen, of_workers = 0, []
    for batch in read_batches(dataset, keys, BATCH, workers=2):
        seen += len(batch.labels)
        if seen == len(examples) - BATCH:
            children = multiprocessing.active_children()
            of_workers = [of_process("Private_Dirty", child.pid or "") for child in children]
    print(seen, of_process("Rss") - before, of_process("VmHWM") - before, *of_workers)


main()
