"""Keras on its torch backend: random weights made there, logits computed there.

python peer_keras.py make keras DEPTH FOLDER
"""

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np


def make(depth: int, folder: Path) -> None:
    build = getattr(keras.applications, f"DenseNet{depth}")
    model = build(weights=None, classes=10, classifier_activation=None, input_shape=(64, 64, 3))
    random = np.random.default_rng(0)
    for layer in model.layers:
        layer.set_weights([_values(random, w.path, w.shape) for w in layer.weights])
    model.save_weights(folder / "model.weights.h5")
    model.save(folder / "model.h5")
    images = random.standard_normal((2, 3, 64, 64)).astype(np.float32)
    np.save(folder / "images.npy", images)
    found = model(images.transpose(0, 2, 3, 1), training=False)
    np.save(folder / "logits.npy", keras.ops.convert_to_numpy(found))


def _values(random: np.random.Generator, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Statistics and scales as after training: fresh ones hide a mixed-up tensor."""
    name = path.rsplit("/", 1)[-1]
    if name in ("gamma", "moving_variance"):
        values = random.uniform(0.5, 1.5, shape)
    elif name in ("beta", "moving_mean", "bias"):
        values = random.normal(0, 0.2, shape)
    else:
        values = random.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
    return values.astype(np.float32)


if __name__ == "__main__":
    action, _, depth, folder = sys.argv[1:]
    assert action == "make"
    print(keras.__version__)
    make(int(depth), Path(folder))
