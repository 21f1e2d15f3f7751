"""timm, MONAI, TorchXRayVision and torchvision: random weights made there, logits computed there.

    python peer_torch.py make LIBRARY DEPTH FOLDER
    python peer_torch.py check LIBRARY DEPTH FILE FOLDER

`make` leaves weights files, images.npy and logits.npy; `check` loads FILE strictly and leaves
again.npy, its logits of the same images.
"""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

CLASSES = 10
CHANNELS = {"monai": 1, "torchxrayvision": 1, "timm": 3, "torchvision": 3}
OLD = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])")  # torchvision's names of 2017


def build(library: str, depth: int) -> nn.Module:
    if library == "timm":
        import timm

        return timm.create_model(f"densenet{depth}", num_classes=CLASSES)
    if library == "monai":
        from monai.networks import nets

        return getattr(nets, f"DenseNet{depth}")(2, CHANNELS[library], CLASSES)
    if library == "torchxrayvision":
        from torchxrayvision.models import DenseNet

        return DenseNet(num_classes=CLASSES)
    from torchvision.models import get_model

    return get_model(f"densenet{depth}", num_classes=CLASSES)


def randomise(model: nn.Module) -> nn.Module:
    """Statistics and scales as after training: fresh ones hide a mixed-up tensor."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.05)
            nn.init.normal_(module.bias, 0, 0.5)
    return model.eval()


def make(library: str, depth: int, folder: Path) -> None:
    model = randomise(build(library, depth))
    state = model.state_dict()
    if library == "torchxrayvision":
        torch.save(model, folder / "module.pt")
        torch.save(model, folder / "module_2019.pt", _use_new_zipfile_serialization=False)
    elif library == "timm":
        from safetensors.torch import save_file

        save_file(state, folder / "model.safetensors")
    elif library == "torchvision":
        old = {OLD.sub(r"\1.\2", name): tensor for name, tensor in state.items()}
        torch.save(old, folder / "weights_2017.pth", _use_new_zipfile_serialization=False)
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"state_dict": wrapped, "epoch": 90}, folder / "checkpoint.pth.tar")
    if library in ("timm", "torchvision", "monai"):
        torch.save(state, folder / "weights.pth")
    images = np.random.default_rng(0).standard_normal((2, CHANNELS[library], 64, 64), np.float32)
    np.save(folder / "images.npy", images)
    np.save(folder / "logits.npy", logits(model, images))


def check(library: str, depth: int, file: Path, folder: Path) -> None:
    model = build(library, depth)
    if library == "timm":
        from timm.models import load_checkpoint

        load_checkpoint(model, str(file), strict=True)
    else:
        model.load_state_dict(torch.load(file, weights_only=True))
    np.save(folder / "again.npy", logits(model.eval(), np.load(folder / "images.npy")))


def logits(model: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()


if __name__ == "__main__":
    action, library, depth, *rest = sys.argv[1:]
    print(importlib.import_module(library).__version__)
    {"make": make, "check": check}[action](library, int(depth), *map(Path, rest))
