"""Twenty batches by PaddleClas' recipe in Paddle: Momentum, L2Decay and PiecewiseDecay, in float64.

python peer_recipe.py FOLDER     leaves before.pdparams, after.pdparams and recipe.npz there
"""

import sys
from pathlib import Path

import numpy as np
import paddle
from peer_paddle import CLASSES, build, randomise

FIRST, STEPS = 20, 20  # an epoch is one batch here, so the rate falls at the tenth, epoch 30


def main(folder: Path) -> None:
    paddle.set_default_dtype("float64")
    model, random = build(121), np.random.default_rng(0)
    model.to(dtype="float64")
    randomise(model, random)
    model.train()
    paddle.save(model.state_dict(), str(folder / "before.pdparams"))
    images = random.standard_normal((STEPS, 4, 3, 64, 64))
    labels = random.integers(0, CLASSES, (STEPS, 4))
    values = [0.1 * 0.1**i for i in range(4)]  # what learning_rate: 0.1 makes of Piecewise
    rate = paddle.optimizer.lr.PiecewiseDecay(boundaries=[30, 60, 90], values=values)
    rate.step(FIRST)
    optimizer = paddle.optimizer.Momentum(
        rate, 0.9, parameters=model.parameters(), weight_decay=paddle.regularizer.L2Decay(1e-4)
    )
    rates, losses = [], []
    for step in range(STEPS):
        output = model(paddle.to_tensor(images[step]))
        loss = paddle.nn.functional.cross_entropy(output, paddle.to_tensor(labels[step]))
        loss.backward()
        rates.append(optimizer.get_lr())
        losses.append(float(loss))
        optimizer.step()
        optimizer.clear_grad()
        rate.step()
    paddle.save(model.state_dict(), str(folder / "after.pdparams"))
    np.savez(folder / "recipe.npz", images=images, labels=labels, rates=rates, losses=losses)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
