"""PaddleClas' densenet.py on paddlepaddle: random weights, logits and a training step made there.

python peer_paddle.py make paddle DEPTH FOLDER
python peer_paddle.py check paddle DEPTH FILE FOLDER
python peer_paddle.py train paddle DEPTH FOLDER
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import paddle

CLASSES = 10
STEPS = 3


def build(depth: int) -> paddle.nn.Layer:
    """From the wheel's densenet.py alone: the package around it imports much that is not here."""
    package = Path(importlib.util.find_spec("paddleclas").origin).parent
    file = package / "ppcls/arch/backbone/model_zoo/densenet.py"
    for name in ("ppcls", "ppcls.utils", "ppcls.arch", "ppcls.arch.backbone",
                 "ppcls.arch.backbone.model_zoo", "ppcls.utils.save_load"):  # fmt: skip
        sys.modules.setdefault(name, types.ModuleType(name)).__path__ = []
    sys.modules["ppcls.utils.save_load"].load_dygraph_pretrain = None
    spec = importlib.util.spec_from_file_location("ppcls.arch.backbone.model_zoo.densenet", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, f"DenseNet{depth}")(class_num=CLASSES)


def randomise(model: paddle.nn.Layer, random: np.random.Generator) -> None:
    """Statistics and scales as after training: fresh ones hide a mixed-up tensor."""
    state = model.state_dict()
    for name, tensor in state.items():
        shape, norm = tensor.shape, "batch_norm" in name
        if norm and name.endswith((".weight", "._variance")):
            values = random.uniform(0.5, 1.5, shape)
        elif norm or name.endswith("bias"):
            values = random.normal(0, 0.2, shape)
        elif name == "out.weight":
            values = random.normal(0, 0.05, shape)
        else:
            values = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        tensor.set_value(values.astype(tensor.numpy().dtype))


def make(depth: int, folder: Path) -> None:
    model, random = build(depth), np.random.default_rng(0)
    randomise(model, random)
    paddle.save(model.state_dict(), str(folder / "weights.pdparams"))
    paddle.save(model.state_dict(), str(folder / "protocol2.pdparams"), protocol=2)
    images = random.standard_normal((2, 3, 64, 64)).astype(np.float32)
    np.save(folder / "images.npy", images)
    np.save(folder / "logits.npy", logits(model, images))


def check(depth: int, file: Path, folder: Path) -> None:
    model = build(depth)
    missing, unexpected = model.set_state_dict(paddle.load(str(file)))
    assert not missing, missing
    assert not unexpected, unexpected
    np.save(folder / "again.npy", logits(model, np.load(folder / "images.npy")))


def train(depth: int, folder: Path) -> None:
    """STEPS steps in float64 with the optimizer that PaddleClas' recipes have."""
    paddle.set_default_dtype("float64")  # of the learning rate, too
    model, random = build(depth), np.random.default_rng(0)
    model.to(dtype="float64")
    randomise(model, random)
    model.train()
    paddle.save(model.state_dict(), str(folder / "before.pdparams"))
    images = random.standard_normal((STEPS, 4, 3, 64, 64))
    labels = random.integers(0, CLASSES, (STEPS, 4))
    rate = paddle.optimizer.lr.PiecewiseDecay(boundaries=[2], values=[0.1, 0.01])
    optimizer = paddle.optimizer.Momentum(
        rate, 0.9, parameters=model.parameters(), weight_decay=paddle.regularizer.L2Decay(1e-4)
    )
    losses, gradients = [], {}
    for step in range(STEPS):
        output = model(paddle.to_tensor(images[step]))
        loss = paddle.nn.functional.cross_entropy(output, paddle.to_tensor(labels[step]))
        loss.backward()
        losses.append(float(loss))
        if step == 0:
            gradients = {n: p.grad.numpy() for n, p in model.named_parameters()
                         if p.grad is not None}  # fmt: skip
        optimizer.step()
        rate.step()
        optimizer.clear_grad()
    paddle.save(model.state_dict(), str(folder / "after.pdparams"))
    np.savez(folder / "train.npz", images=images, labels=labels, losses=losses)
    np.savez(folder / "gradients.npz", **gradients)


def logits(model: paddle.nn.Layer, images: np.ndarray) -> np.ndarray:
    model.eval()
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


if __name__ == "__main__":
    action, _, depth, *rest = sys.argv[1:]
    print(paddle.__version__)
    {"make": make, "check": check, "train": train}[action](int(depth), *map(Path, rest))
