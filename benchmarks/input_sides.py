"""Files to normalised training batches: what others use, on densekit's crops and flips.

torchvision's own two loaders are `densekit.bench.reading`'s, which `densekit data bench` runs too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from densekit.bench import reading
from densekit.bench.rounds import Candidate, StepFunction
from densekit.data.config import DataConfig
from densekit.data.listing import Examples
from densekit.data.splits import open_examples
from densekit_steps import Workload

Make = Callable[[str, Workload], StepFunction]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def sides(list_file: str, work: Workload) -> dict[str, tuple[Candidate, Candidate]]:
    """By the comparison's name; densekit first, one worker each."""
    ours = candidate("densekit, 1 worker", list_file, work, densekit)
    peers: dict[str, tuple[str, Make]] = {
        "as-it-comes": ("torchvision, PIL", partial(torchvision, decode=reading.pil)),
        "tuned": ("torchvision, torchvision.io", partial(torchvision, decode=reading.fast)),
        "torchcodec": ("torchvision, torchcodec", partial(torchvision, decode=torchcodec)),
        "paddleclas": ("cv2 and numpy as PaddleClas", paddleclas),
    }
    if not has_torchcodec():
        del peers["torchcodec"]
    found = {
        f"input/{name}": (ours, candidate(f"{said}, 1 worker", list_file, work, make))
        for name, (said, make) in peers.items()
    }
    two = candidate("densekit, 2 workers", list_file, work, partial(densekit, workers=2))
    return {**found, "input/two-workers": (two, ours)}


def candidate(name: str, list_file: str, work: Workload, make: Make) -> Candidate:
    return Candidate(name, partial(make, list_file, work))


def densekit(list_file: str, work: Workload, workers: int = 1) -> StepFunction:
    return reading.densekit_loader(
        open_examples(list_file), config_of(work), workers, work.batch_size
    )


def torchvision(list_file: str, work: Workload, decode: reading.Decode) -> StepFunction:
    return reading.torchvision_loader(
        open_examples(list_file), config_of(work), decode, batch_size=work.batch_size
    )


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


def config_of(work: Workload) -> DataConfig:
    return DataConfig(image_size=work.image_size)


def paddleclas(list_file: str, work: Workload) -> StepFunction:
    """What ppcls/data/preprocess does by DecodeImage, RandCropImage, RandFlipImage and
    NormalizeImage with backend cv2: no antialias. torch's loader stands in for paddle's."""
    cv2.setNumThreads(1)  # of the worker, which is forked: one core each
    images = PaddleClasImages(open_examples(list_file), work.image_size)
    sampler = RandomSampler(images, replacement=True, num_samples=10**9)
    batches = iter(DataLoader(images, work.batch_size, sampler=sampler, num_workers=1))
    return lambda: [next(batches) for _ in range(reading.BATCHES)]


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
