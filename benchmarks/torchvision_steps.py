"""torchvision's sides of the comparisons: the plainest code of its users for the same work.

They get a batch that is normalised already, where densekit's sides start from uint8 images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from densekit.bench.rounds import StepFunction
from densekit.data.listing import Examples
from densekit.data.splits import open_examples
from densekit.models.variants import variant
from densekit.precision import DTYPES, MEMORY_FORMATS, Format, MemoryLayout, resolve_device
from densekit_steps import BATCHES_READ, NUM_CLASSES, Workload

Decode = Callable[[str], Image.Image | torch.Tensor]


def training(
    work: Workload,
    precision: Format = "fp32",
    memory_format: MemoryLayout = "contiguous",
    compiled: bool = False,
    memory_efficient: bool = False,
    graph: bool = False,
) -> StepFunction:
    """One step of a plain loop; fp32 and contiguous is torchvision as it comes. On a GPU the
    optimizer is fused, and `graph` replays all of the step.
    """
    device, layout = resolve_device(work.device), MEMORY_FORMATS[memory_format]
    model = network(work.model, memory_efficient)
    model = model.to(device).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4,
                                fused=device.type == "cuda")  # fmt: skip
    forward = torch.compile(model) if compiled else model
    images = normalised_batch(work).to(device, memory_format=layout)
    labels = torch.randint(NUM_CLASSES, (work.batch_size,)).to(device)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast(
            device.type, DTYPES[precision], enabled=precision != "fp32", cache_enabled=not graph
        ):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    replay = graphed(step) if graph else step
    return lambda: replay().item()


def inference(
    work: Workload,
    precision: Format = "fp32",
    memory_format: MemoryLayout = "contiguous",
    compiled: bool = False,
    graph: bool = False,
) -> StepFunction:
    """The logits of one batch; fp32 and contiguous is torchvision as it comes."""
    device, layout = resolve_device(work.device), MEMORY_FORMATS[memory_format]
    model = network(work.model)
    model = model.to(device).to(memory_format=layout).eval()
    forward = torch.compile(model) if compiled else model
    images = normalised_batch(work).to(device, memory_format=layout)

    @torch.no_grad()
    def step() -> torch.Tensor:
        with torch.autocast(
            device.type, DTYPES[precision], enabled=precision != "fp32", cache_enabled=not graph
        ):
            return forward(images).float()

    replay = graphed(step) if graph else step
    return lambda: replay().cpu()


def graphed(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """As torch's notes on CUDA graphs have it: three steps on a side stream, then the capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


def network(name: str, memory_efficient: bool = False) -> nn.Module:
    """torchvision's own, or its class with the sizes of densekit's `name` where it has no such."""
    if name in torchvision.models.list_models():
        return torchvision.models.get_model(
            name, num_classes=NUM_CLASSES, memory_efficient=memory_efficient
        )
    config = variant(name)
    model = torchvision.models.DenseNet(
        config.growth_rate,
        config.block_config,
        config.num_init_features,
        config.bn_size,
        num_classes=NUM_CLASSES,
        memory_efficient=memory_efficient,
    )
    if config.stem == "cifar":
        features = model.features
        features.conv0 = nn.Conv2d(3, config.num_init_features, 3, padding=1, bias=False)
        del features.norm0, features.relu0, features.pool0
    return model


def reading(list_file: str, work: Workload, decode: Decode) -> StepFunction:
    """The next batches of the listed images: torch's loader with one worker, torchvision's v2."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(work.image_size),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images = ListedImages(open_examples(list_file), decode, transform)
    sampler = RandomSampler(images, replacement=True, num_samples=10**9)
    batches = iter(DataLoader(images, work.batch_size, sampler=sampler, num_workers=1))
    return lambda: [next(batches) for _ in range(BATCHES_READ)]


class ListedImages(Dataset):
    """torchvision.datasets.ImageFolder, for a list file."""

    def __init__(self, examples: Examples, decode: Decode, transform: v2.Transform) -> None:
        self.examples, self.decode, self.transform = examples, decode, transform

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.decode(self.examples.paths[index])
        return self.transform(image), int(self.examples.labels[index])


def pil(path: str) -> Image.Image:
    """As ImageFolder opens files unless it is told otherwise; torchvision resizes with PIL then."""
    return Image.open(path).convert("RGB")


def fast(path: str) -> torch.Tensor:
    """torchvision's own decoder."""
    return torchvision.io.decode_image(path, mode="RGB")


def normalised_batch(work: Workload) -> torch.Tensor:
    """float32 [n, 3, S, S], as normalised images are."""
    return torch.randn(work.batch_size, 3, work.image_size, work.image_size)
