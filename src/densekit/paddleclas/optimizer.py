"""Optimizer -> optim.*"""

from __future__ import annotations

import math
from collections.abc import Iterator

from densekit.models.variants import VARIANTS
from densekit.paddleclas.translation import Translation
from densekit.weights.keymaps import OURS, PADDLE

OPTIMIZERS = {
    "Momentum": "sgd",
    "SGD": "sgd",
    "Adam": "adam",
    "AdamW": "adamw",
    "RMSProp": "rmsprop",
}
SCHEDULES = {
    "Piecewise": "step",
    "Step": "step",
    "MultiStepDecay": "step",
    "Cosine": "cosine",
    "Linear": "linear",
    "Constant": "constant",
    "ConstLR": "constant",
}
PARTS = ("norm", "bias", "classifier", "conv", "denselayer", "transition", "norm0", "conv0")
LR = "Optimizer.lr"
LONGEST = 1000  # milestones that a step_size may come to


def translate_optimizer(t: Translation) -> None:
    t.attempt(_update, _weight_decay, _clipping, _schedule)


def _update(t: Translation) -> None:
    name = t.text("Optimizer.name")
    if name not in OPTIMIZERS:
        t.fail("Optimizer.name", f"{name!r}: densekit has {', '.join(OPTIMIZERS)}")
    t.set("optim.name", OPTIMIZERS[name], "Optimizer.name")
    if name in ("Momentum", "RMSProp"):
        default = 0.9 if name == "Momentum" else 0.0
        momentum = t.number("Optimizer.momentum", default)
        t.set("optim.momentum", momentum, "Optimizer.momentum")
    elif name == "SGD":
        t.set("optim.momentum", 0.0, "Optimizer.name")
    if name == "Momentum" and t.is_on("Optimizer.use_nesterov"):
        t.set("optim.nesterov", True, "Optimizer.use_nesterov")
    if name in ("Adam", "AdamW"):
        betas = [t.number("Optimizer.beta1", 0.9), t.number("Optimizer.beta2", 0.999)]
        t.set("optim.betas", betas)
        t.set("optim.eps", t.number("Optimizer.epsilon", 1e-8), "Optimizer.epsilon")
    if name == "RMSProp":
        t.set("optim.alpha", t.number("Optimizer.rho", 0.95), "Optimizer.rho")
        t.set("optim.eps", t.number("Optimizer.epsilon", 1e-6), "Optimizer.epsilon",
              "torch adds it to the root, Paddle below the root")  # fmt: skip


def _clipping(t: Translation) -> None:
    if t.value("Optimizer.clip_norm") is not None:
        t.set("optim.clip_norm", t.number("Optimizer.clip_norm", 0), "Optimizer.clip_norm",
              "of all gradients together; theirs bounds each tensor's by itself")  # fmt: skip


def _weight_decay(t: Translation) -> None:
    decay, path = t.number("Optimizer.weight_decay", 0.0), "Optimizer.weight_decay"
    if t.value("Optimizer.regularizer") is not None:
        if t.text("Optimizer.regularizer.name", "L2") != "L2":
            t.fail("Optimizer.regularizer.name", "densekit's weight decay is L2's")
        path = "Optimizer.regularizer.coeff"
        decay = t.number(path, 0.0)
        if t.value("Optimizer.weight_decay") is not None:
            t.note("optim.weight_decay", "the regularizer's, as theirs takes it where both are set")
    t.set("optim.weight_decay", decay, path)
    _without_decay(t)


def _without_decay(t: Translation) -> None:
    """no_weight_decay_name, words of their parameters' names -> words of ours."""
    words = t.text("Optimizer.no_weight_decay_name").split()
    one_dim = t.is_on("Optimizer.one_dim_param_no_weight_decay")
    if not words and not one_dim:
        return
    names = list(_parameters(t.text("Arch.name").lower()))
    theirs = {name: str(PADDLE.theirs(name)) for name in names}
    spared = {name for name in names if any(word in theirs[name] for word in words)}
    if one_dim:
        spared |= {name for name in names if "norm" in name or name.endswith("bias")}
    for word in words:
        if not any(word in name for name in theirs.values()):
            t.note("optim.weight_decay", f"no parameter of a DenseNet is named {word}, there "
                   f"neither")  # fmt: skip
    if not spared:
        return
    t.set("optim.no_weight_decay", _described(names, spared), "Optimizer.no_weight_decay_name")
    if t.text("Optimizer.name") != "AdamW":
        t.note("optim.no_weight_decay", "as the file says; theirs heeds it with AdamW, and with "
               "other optimizers in some versions and in part")  # fmt: skip


def _parameters(variant: str) -> Iterator[str]:
    """The names of the network's weights and biases."""
    blocks = VARIANTS.get(variant, VARIANTS["densenet121"]).block_config
    for module in OURS:
        kinds = ("weight", "bias") if "norm" in module or module == "classifier" else ("weight",)
        within = range(1, len(blocks) + ("transition" not in module))
        places = {
            module.format(b=b, l=layer, n=n)
            for b in within
            for layer in range(1, blocks[b - 1] + 1)
            for n in (1, 2)
        }
        yield from (f"{place}.{kind}" for place in sorted(places) for kind in kinds)


def _described(names: list[str], wanted: set[str]) -> list[str]:
    """Parts of names that hold for `wanted` and no other of `names`; whole names for the rest."""
    parts, left = [], set(wanted)
    for part in PARTS:
        meant = {name for name in names if part in name}
        if meant <= wanted and meant & left:
            parts.append(part)
            left -= meant
    return [*parts, *sorted(left)]


def _schedule(t: Translation) -> None:
    if not isinstance(t.value(LR), dict):
        t.set("optim.schedule", "constant", LR)
        t.set("optim.lr", t.number(LR, 0.001), LR)
        return
    name = t.text(f"{LR}.name")
    if name not in SCHEDULES:
        t.fail(f"{LR}.name", f"{name!r}: densekit has {', '.join(SCHEDULES)}")
    t.set("optim.schedule", SCHEDULES[name], f"{LR}.name")
    values = _values(t) if name == "Piecewise" else []
    peak = values[0] if values else t.number(f"{LR}.learning_rate", math.nan)
    if not peak > 0:
        t.fail(LR, f"{name} needs a learning_rate greater than 0")
    typed = t.typed(f"{LR}.learning_rate")
    said = f"{LR}.values.0" if values and not typed else f"{LR}.learning_rate"
    t.set("optim.lr", peak, said)
    if name == "Piecewise":
        _piecewise(t, values)
    elif name == "Step":
        epochs, size = t.whole("Global.epochs", 1), t.number(f"{LR}.step_size", math.nan)
        if not size > 0:
            t.fail(f"{LR}.step_size", "Step needs a step_size of epochs greater than 0")
        if epochs / size > LONGEST:
            t.fail(f"{LR}.step_size", f"{epochs} epochs would have {epochs / size:.0f} such steps; "
                   f"densekit takes up to {LONGEST}")  # fmt: skip
        _milestones(t, [size * i for i in range(1, math.ceil(epochs / size))], f"{LR}.step_size")
        t.set("optim.gamma", t.number(f"{LR}.gamma", 0.1), f"{LR}.gamma")
    elif name == "MultiStepDecay":
        _milestones(t, t.numbers(f"{LR}.milestones"), f"{LR}.milestones")
        t.set("optim.gamma", t.number(f"{LR}.gamma", 0.1), f"{LR}.gamma")
    elif name in ("Cosine", "Linear"):
        last = "eta_min" if name == "Cosine" else "end_lr"
        t.set("optim.min_lr_ratio", t.number(f"{LR}.{last}", 0.0) / peak, f"{LR}.{last}")
    _warm_up(t, peak)


def _warm_up(t: Translation, peak: float) -> None:
    if not t.number(f"{LR}.warmup_epoch", 0):
        return
    if t.text(f"{LR}.name") == "Constant":
        t.note("optim.warmup_epochs", "the file says so; theirs warms up with ConstLR, and with "
               "Constant is at the full rate from the first step")  # fmt: skip
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


def _values(t: Translation) -> list[float]:
    """The rates; a learning_rate that was typed is the first, and the file's follow in proportion.

    There learning_rate wins over values, so a user who types it means it.
    """
    values, path = t.numbers(f"{LR}.values"), f"{LR}.learning_rate"
    rate = t.number(path, 0.0)
    if not values or not values[0] > 0 or not t.typed(path) or rate in (0.0, values[0]):
        return values
    if any(place[:3] == ("Optimizer", "lr", "values") and at.startswith("-o")
           for place, at in t.source.places.items()):  # fmt: skip
        t.fail(path, f"{LR}.values begins with {values[0]:g}: give one of them, or both alike")
    values = [rate, *(value * (rate / values[0]) for value in values[1:])]
    shown = ", ".join(f"{value:.4g}" for value in values)
    t.note("optim.lr", f"{LR}.learning_rate as typed; the file's values follow it: {shown}")
    return values


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
    total = min(t.whole("Global.epochs", 1), 30 * LONGEST)
    steps = [(0, values[0]), *zip(epochs, values[1:], strict=True)]
    ours = [step for step in steps if step[0] < total]
    theirs = [(epoch, rate * 0.1 ** (epoch // 30)) for epoch in range(0, total, 30)]
    if len(ours) != len(theirs) or not all(map(_alike, ours, theirs)):
        t.note("optim.milestones",
               f"by decay_epochs and values; theirs ignores them where learning_rate is set and "
               f"takes a tenth every 30 epochs: {', '.join(f'{e}: {v:.4g}' for e, v in theirs[:6])}"
               )  # fmt: skip


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] == other[0] and math.isclose(one[1], other[1])
