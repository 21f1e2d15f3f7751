"""Options typed with -o that have no effect in the file they are typed for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from densekit.paddleclas.translation import Translation


@dataclass(frozen=True)
class Beside:
    """A key that has an effect only beside certain values of another."""

    path: str
    other: str
    values: tuple[Any, ...]
    default: Any = None
    """Of the other, where the file does not give it."""

    def has_effect(self, translation: Translation) -> bool:
        return translation.value(self.other, self.default) in self.values


RULES = (
    Beside("Optimizer.momentum", "Optimizer.name", ("Momentum", "RMSProp")),
    Beside("Optimizer.use_nesterov", "Optimizer.name", ("Momentum",)),
    Beside("Optimizer.rho", "Optimizer.name", ("RMSProp",)),
    Beside("Optimizer.epsilon", "Optimizer.name", ("RMSProp", "Adam", "AdamW")),
    Beside("Optimizer.beta1", "Optimizer.name", ("Adam", "AdamW")),
    Beside("Optimizer.beta2", "Optimizer.name", ("Adam", "AdamW")),
    Beside("Optimizer.weight_decay", "Optimizer.regularizer", (None,)),
    Beside("Optimizer.lr.decay_epochs", "Optimizer.lr.name", ("Piecewise",)),
    Beside("Optimizer.lr.values", "Optimizer.lr.name", ("Piecewise",)),
    Beside("Optimizer.lr.milestones", "Optimizer.lr.name", ("MultiStepDecay",)),
    Beside("Optimizer.lr.step_size", "Optimizer.lr.name", ("Step",)),
    Beside("Optimizer.lr.gamma", "Optimizer.lr.name", ("Step", "MultiStepDecay")),
    Beside("Optimizer.lr.eta_min", "Optimizer.lr.name", ("Cosine",)),
    Beside("Optimizer.lr.end_lr", "Optimizer.lr.name", ("Linear",)),
    Beside("AMP.level", "AMP.use_amp", (True,), True),
    Beside("AMP.scale_loss", "AMP.use_amp", (True,), True),
    Beside("AMP.use_dynamic_loss_scaling", "AMP.use_amp", (True,), True),
    Beside("AMP.use_fp16_test", "AMP.use_amp", (True,), True),
    Beside("Global.eval_interval", "Global.eval_during_train", (True,), True),
    Beside("Global.start_eval_epoch", "Global.eval_during_train", (True,), True),
    Beside("Global.class_num", "Arch.class_num", (None,)),
)


def check_typed(translation: Translation) -> None:
    """Refuses each of RULES' keys that an option sets in vain; a file may hold it."""
    for rule in RULES:
        given = translation.value(rule.path) is not None and translation.typed(rule.path)
        if given and not rule.has_effect(translation):
            other = translation.value(rule.other, rule.default)
            shown = "" if isinstance(other, dict) else f"={other}"
            wanted = " or ".join(map(str, rule.values))
            translation.refuse(
                rule.path, f"has no effect with {rule.other}{shown}; it needs {rule.other}={wanted}"
            )
