"""Files to normalised training batches: what others use, on densekit's crops and flips.

torchvision's own two loaders are `densekit.bench.reading`'s, which `densekit data bench` runs too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from densekit.bench import reading
from densekit.bench.rounds import Candidate, StepFunction
from densekit.data.config import DataConfig
from densekit.data.listing import Examples
from densekit.data.splits import open_examples
from densekit_steps import Workload

Make = Callable[[str, Workload], StepFunction]
Pair = tuple[Candidate, Candidate]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS, PIL = "densekit, 1 worker", "torchvision, PIL, 1 worker"


def sides(list_file: str, work: Workload) -> dict[str, Pair]:
    """By the comparison's name; densekit first, one worker each."""
    ours = candidate(OURS, list_file, work, densekit, keep_memory=True)
    two = partial(densekit, workers=2)
    more = candidate("densekit, 2 workers", list_file, work, two, keep_memory=True)
    peers: dict[str, tuple[str, Make]] = {
        "as-it-comes": (PIL, partial(torchvision, decode=reading.pil)),
        "pil-tensors": (
            "torchvision, PIL to tensors, 1 worker",
            partial(torchvision, decode=pil_tensors),
        ),
        "tuned": (
            "torchvision, torchvision.io, 1 worker",
            partial(torchvision, decode=reading.fast),
        ),
        "torchcodec": (
            "torchvision, torchcodec, 1 worker",
            partial(torchvision, decode=torchcodec),
        ),
        "paddleclas": ("cv2 and numpy as PaddleClas, 1 worker", paddleclas),
    }
    if not has_torchcodec():
        del peers["torchcodec"]
    found = {
        f"input/{name}": (ours, candidate(said, list_file, work, make))
        for name, (said, make) in peers.items()
    }
    return {**found, "input/two-workers": (more, ours)}


def candidate(
    name: str, list_file: str, work: Workload, make: Make, keep_memory: bool = False
) -> Candidate:
    """`keep_memory`: freed memory stays in the process, as `densekit train` has it."""
    return Candidate(name, partial(make, list_file, work), keep_memory)


def densekit(
    list_file: str,
    work: Workload,
    workers: int = 1,
    decode: Literal["exact", "scaled"] = "exact",
) -> StepFunction:
    config = DataConfig(image_size=work.image_size, decode=decode)
    return reading.densekit_loader(open_examples(list_file), config, workers, work.batch_size)


def torchvision(list_file: str, work: Workload, decode: reading.Decode) -> StepFunction:
    return reading.torchvision_loader(
        open_examples(list_file),
        DataConfig(image_size=work.image_size),
        decode,
        batch_size=work.batch_size,
    )


def pil_tensors(path: str, mode: str) -> Tensor:
    """What PIL decodes, resized by torch, which is faster than PIL."""
    return v2.functional.pil_to_tensor(reading.pil(path, mode))


def torchcodec(path: str, mode: str) -> Tensor:
    """torchvision.io's successor."""
    from torchcodec.decoders import decode_image

    return decode_image(path, mode="GRAY" if mode == "L" else "RGB")


def has_torchcodec() -> bool:
    """Whether there is one that decodes images, as from 0.16 on, and fits this torch."""
    try:
        from torchcodec.decoders import decode_image  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def paddleclas(list_file: str, work: Workload) -> StepFunction:
    """What ppcls/data/preprocess does by DecodeImage, RandCropImage, RandFlipImage and
    NormalizeImage with backend cv2: no antialias. torch's loader stands in for paddle's."""
    cv2.setNumThreads(1)  # of the worker, which is forked: one core each
    images = PaddleClasImages(open_examples(list_file), work.image_size)
    sampler = RandomSampler(images, replacement=True, num_samples=10**9)
    return reading.last_of(DataLoader(images, work.batch_size, sampler=sampler, num_workers=1))


class PaddleClasImages(Dataset):
    """A list file, read by cv2 and numpy."""

    def __init__(self, examples: Examples, side: int) -> None:
        self.examples, self.side = examples, side
        self.mean = np.array(MEAN, np.float32).reshape(1, 1, 3)
        self.std = np.array(STD, np.float32).reshape(1, 1, 3)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        content = np.frombuffer(Path(self.examples.paths[index]).read_bytes(), np.uint8)
        decoded = cv2.imdecode(content, cv2.IMREAD_COLOR)
        assert decoded is not None
        image = cv2.resize(_random_part(decoded[:, :, ::-1]), (self.side, self.side))
        if torch.rand(1) < 0.5:
            image = cv2.flip(image, 1)
        floats = (image.astype(np.float32) * np.float32(1 / 255) - self.mean) / self.std
        return floats.transpose(2, 0, 1), int(self.examples.labels[index])


def _random_part(image: np.ndarray) -> np.ndarray:
    """A uniform area and aspect ratio, the area bounded so that it fits."""
    height, width = image.shape[:2]
    aspect = float(torch.empty(1).uniform_(3 / 4, 4 / 3).sqrt())
    wide, high = aspect, 1 / aspect
    bound = min(width / height / wide**2, height / width / high**2)
    area = height * width * float(torch.empty(1).uniform_(min(0.08, bound), min(1.0, bound)))
    w, h = int(area**0.5 * wide), int(area**0.5 * high)
    left, top = (int(torch.randint(most + 1, (1,))) for most in (width - w, height - h))
    return image[top : top + h, left : left + w]
