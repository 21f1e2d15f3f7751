"""Optimizer -> optim.*"""

from __future__ import annotations

import math

from densekit.paddleclas.translation import Translation

NAMES = {"Momentum": "sgd", "SGD": "sgd", "AdamW": "adamw", "RMSProp": "rmsprop"}
SCHEDULES = {
    "Piecewise": "step",
    "Step": "step",
    "MultiStepDecay": "step",
    "Cosine": "cosine",
    "Linear": "linear",
    "Constant": "constant",
    "Const": "constant",
}
# Words that are parts of parameters' names there -> of the same parameters' names here.
WORDS = {
    "norm": ["norm"],
    "batch_norm": ["norm"],
    "bn": ["norm1", "norm2"],
    "bias": ["bias"],
    "out": ["classifier"],
}
LR = "Optimizer.lr"


def translate_optimizer(t: Translation) -> None:
    name = t.text("Optimizer.name")
    if name not in NAMES:
        t.fail("Optimizer.name", f"{name!r}: densekit has {', '.join(NAMES)}")
    t.set("optim.name", NAMES[name], "Optimizer.name")
    t.set("optim.momentum", 0.0 if name == "SGD" else t.number(
        "Optimizer.momentum", 0.0 if name == "RMSProp" else 0.9), "Optimizer.momentum")  # fmt: skip
    if name == "AdamW":
        betas = [t.number("Optimizer.beta1", 0.9), t.number("Optimizer.beta2", 0.999)]
        t.set("optim.betas", betas)
        t.set("optim.eps", t.number("Optimizer.epsilon", 1e-8), "Optimizer.epsilon")
    if name == "RMSProp":
        t.set("optim.alpha", t.number("Optimizer.rho", 0.95), "Optimizer.rho")
        t.set("optim.eps", t.number("Optimizer.epsilon", 1e-6), "Optimizer.epsilon",
              "torch adds it to the root, Paddle below the root")  # fmt: skip
    _weight_decay(t, name)
    if t.value("Optimizer.clip_norm") is not None:
        t.set("optim.clip_norm", t.number("Optimizer.clip_norm", 0), "Optimizer.clip_norm",
              "of all gradients together; theirs bounds each tensor's by itself")  # fmt: skip
    _schedule(t)


def _weight_decay(t: Translation, name: str) -> None:
    decay, path = t.number("Optimizer.weight_decay", 0.0), "Optimizer.weight_decay"
    if t.value("Optimizer.regularizer") is not None:
        if t.text("Optimizer.regularizer.name", "L2") != "L2":
            t.fail("Optimizer.regularizer.name", "densekit's weight decay is L2's")
        path = "Optimizer.regularizer.coeff"
        decay = t.number(path, 0.0)
    t.set("optim.weight_decay", decay, path)
    parts: list[str] = []
    for word in t.text("Optimizer.no_weight_decay_name").split():
        if word not in WORDS:
            t.fail("Optimizer.no_weight_decay_name",
                   f"{word!r}: densekit knows {', '.join(WORDS)}; or set optim.no_weight_decay to "
                   f"parts of its own parameters' names")  # fmt: skip
        parts += WORDS[word]
    if t.is_on("Optimizer.one_dim_param_no_weight_decay"):
        parts += ["norm", "bias"]
    if parts:
        t.set("optim.no_weight_decay", list(dict.fromkeys(parts)))


def _schedule(t: Translation) -> None:
    if not isinstance(t.value(LR), dict):
        t.set("optim.schedule", "constant", LR)
        t.set("optim.lr", t.number(LR, 0.001), LR)
        return
    name = t.text(f"{LR}.name")
    if name not in SCHEDULES:
        t.fail(f"{LR}.name", f"{name!r}: densekit has {', '.join(SCHEDULES)}")
    t.set("optim.schedule", SCHEDULES[name], f"{LR}.name")
    values = t.numbers(f"{LR}.values") if name == "Piecewise" else []
    peak = values[0] if values else t.number(f"{LR}.learning_rate", math.nan)
    if not peak > 0:
        t.fail(LR, f"{name} needs a learning_rate greater than 0")
    t.set("optim.lr", peak, f"{LR}.values.0" if values else f"{LR}.learning_rate")
    if name == "Piecewise":
        _piecewise(t, values)
    elif name == "Step":
        epochs, size = t.whole("Global.epochs", 1), t.number(f"{LR}.step_size", math.nan)
        if not size > 0:
            t.fail(f"{LR}.step_size", "Step needs a step_size of epochs greater than 0")
        _milestones(t, [size * i for i in range(1, math.ceil(epochs / size))], f"{LR}.step_size")
        t.set("optim.gamma", t.number(f"{LR}.gamma", 0.1), f"{LR}.gamma")
    elif name == "MultiStepDecay":
        _milestones(t, t.numbers(f"{LR}.milestones"), f"{LR}.milestones")
        t.set("optim.gamma", t.number(f"{LR}.gamma", 0.1), f"{LR}.gamma")
    else:
        last = "eta_min" if name == "Cosine" else "end_lr"
        t.set("optim.min_lr_ratio", t.number(f"{LR}.{last}", 0.0) / peak, f"{LR}.{last}")
    _warm_up(t, peak)


def _warm_up(t: Translation, peak: float) -> None:
    if not t.number(f"{LR}.warmup_epoch", 0):
        return
    start = t.number(f"{LR}.warmup_start_lr", 0.0) / peak
    t.set("optim.warmup_start", start, f"{LR}.warmup_start_lr")
    t.note("optim.warmup_epochs", "the first step is already one step up from warmup_start_lr, "
           "theirs is at it, at 0 a step without effect")  # fmt: skip


def _plain(number: float) -> float | int:
    return int(number) if number.is_integer() else number


def _milestones(t: Translation, epochs: list[float], path: str) -> None:
    warmup = t.number(f"{LR}.warmup_epoch", 0)
    t.set("optim.milestones", [_plain(epoch + warmup) for epoch in epochs], path)
    if warmup and epochs:
        t.note("optim.milestones", "counted from the end of the warm-up, as theirs are")


def _piecewise(t: Translation, values: list[float]) -> None:
    """What the file says; where learning_rate is set, theirs ignores it and says so in its log."""
    epochs = t.numbers(f"{LR}.decay_epochs")
    if len(values) != len(epochs) + 1:
        t.fail(f"{LR}.values", f"{len(epochs)} decay_epochs part {len(epochs) + 1} values")
    _milestones(t, epochs, f"{LR}.decay_epochs")
    rate = t.number(f"{LR}.learning_rate", 0.0)
    tenths = [rate * 0.1**i for i in range(len(values))]  # as theirs computes them, to the bit
    if all(map(math.isclose, values, tenths)):
        t.set("optim.gamma", 0.1)
    else:
        t.set("optim.values", values, f"{LR}.values")
    if not rate:
        return
    total = t.whole("Global.epochs", 1)
    steps = [(0, values[0]), *zip(epochs, values[1:], strict=True)]
    ours = [step for step in steps if step[0] < total]
    theirs = [(epoch, rate * 0.1 ** (epoch // 30)) for epoch in range(0, total, 30)]
    if len(ours) != len(theirs) or not all(map(_alike, ours, theirs)):
        t.note("optim.milestones",
               f"by decay_epochs and values; theirs ignores them where learning_rate is set and "
               f"takes a tenth every 30 epochs: {', '.join(f'{e}: {v:.4g}' for e, v in theirs)}"
               )  # fmt: skip


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] == other[0] and math.isclose(one[1], other[1])
