"""JPEG files to top-5 answers, decoding included: `densekit predict`, and plain scripts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import v2

import torchvision_steps
from densekit.bench.rounds import StepFunction
from densekit.data.transforms import Preprocessing
from densekit.infer.classifier import Classifier
from densekit.infer.exported import read_exported
from densekit.infer.model import Opened
from densekit.models import variants
from densekit.models.variants import ModelConfig
from densekit.precision import DTYPES, MEMORY_FORMATS, Format, MemoryLayout, resolve
from densekit_steps import NUM_CLASSES, Workload, written

BATCH_SIZE = 32  # of the network
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def opened_network(work: Workload) -> Opened:
    """The network with ImageNet's preprocessing and no more than numbers for classes."""
    return Opened(
        name=work.model,
        network=variants.create(ModelConfig(name=work.model, num_classes=NUM_CLASSES)).eval(),
        preprocessing=Preprocessing(crop=work.image_size),
        classes=[str(label) for label in range(NUM_CLASSES)],
    )


def densekit(files: Sequence[str], work: Workload, precision: str) -> StepFunction:
    """`densekit predict`'s rows."""
    classifier = Classifier(opened_network(work), resolve(work.device, precision))
    return lambda: list(classifier.rows(files, topk=5, batch_size=BATCH_SIZE))


def int8(files: Sequence[str], work: Workload, folder: Path) -> StepFunction:
    """The same of an export to openvino-int8."""
    exported = read_exported(written(work, "openvino-int8", folder))
    classifier = Classifier(replace(opened_network(work), network=exported), resolve("cpu", "fp32"))
    return lambda: list(classifier.rows(files, topk=5, batch_size=BATCH_SIZE))


def torchvision(
    files: Sequence[str], work: Workload, precision: Format, memory_format: MemoryLayout
) -> StepFunction:
    """A loop over batches: PIL, torchvision's transforms, the network, a softmax."""
    layout = MEMORY_FORMATS[memory_format]
    model = torchvision_steps.network(work.model).eval().to(memory_format=layout)
    transform = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(work.image_size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    @torch.inference_mode()
    def step() -> list[torch.Tensor]:
        answers = []
        for start in range(0, len(files), BATCH_SIZE):
            images = [Image.open(f).convert("RGB") for f in files[start : start + BATCH_SIZE]]
            batch = torch.stack([transform(image) for image in images])
            with torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32"):
                logits = model(batch.contiguous(memory_format=layout))
            answers.append(logits.float().softmax(1).topk(5).indices)
        return answers

    return step


def paddle(files: Sequence[str], work: Workload, python: str) -> StepFunction:
    """Paddle's inference library, in `python`, which has paddlepaddle and pillow."""
    script = Path(__file__).parent / "paddle_script.py"
    command = [python, str(script), work.model, str(work.image_size), str(BATCH_SIZE)]
    command += [str(torch.get_num_threads()), *files]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    into, out = process.stdin, process.stdout

    def step() -> None:
        print("go", file=into, flush=True)
        if "done\n" not in out:  # its library says much while it starts
            sys.exit("paddle_script.py ended: its traceback is above")

    return step
