"""TorchXRayVision's own reading, scaling, network and operating points, with random weights.

    python peer_xray.py FOLDER

leaves weights.pth, and in theirs.npz, of the images in FOLDER in order of their names, logits and
the outputs that are rescaled by op_threshs.
"""

import sys
from pathlib import Path

import numpy as np
import skimage.io
import torch
import torchxrayvision
from peer_torch import randomise
from torchxrayvision.models import DenseNet, op_norm
from torchxrayvision.utils import normalize, read_xray_dcm


def main(folder: Path) -> None:
    model = randomise(DenseNet())
    model.classifier.weight.data *= 0.05  # of images that are in -1024..1024
    model.op_threshs = torch.linspace(0.2, 0.8, len(model.targets))
    model.op_threshs[-1] = torch.nan
    model.input_resolution = 224
    torch.save(model.state_dict(), folder / "weights.pth")
    files = sorted(file for file in folder.iterdir() if file.suffix in (".png", ".dcm"))
    with torch.inference_mode():
        features = [model.features2(read(file)[None]) for file in files]
        logits = model.classifier(torch.cat(features))
        rescaled = op_norm(logits.sigmoid(), model.op_threshs)
    np.savez(folder / "theirs.npz", logits=logits.numpy(), rescaled=rescaled.numpy())


def read(file: Path) -> torch.Tensor:
    """float32 [1, H, W] in -1024..1024."""
    if file.suffix == ".dcm":
        return torch.from_numpy(read_xray_dcm(file)[None])
    pixels = skimage.io.imread(file)
    return torch.from_numpy(normalize(pixels, np.iinfo(pixels.dtype).max, reshape=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    print(torchxrayvision.__version__)
