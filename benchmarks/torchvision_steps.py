"""torchvision's sides of the comparisons: the plainest code of its users for the same work.

They get a batch that is normalised already, where densekit's sides start from uint8 images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from densekit.bench.rounds import StepFunction
from densekit.models.variants import variant
from densekit.precision import DTYPES, MEMORY_FORMATS, Format, MemoryLayout, resolve_device
from densekit_steps import NUM_CLASSES, Workload


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


def normalised_batch(work: Workload) -> torch.Tensor:
    """float32 [n, 3, S, S], as normalised images are."""
    return torch.randn(work.batch_size, 3, work.image_size, work.image_size)
