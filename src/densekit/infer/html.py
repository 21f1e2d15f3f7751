"""A classifier in a notebook."""

from __future__ import annotations

from html import escape
from typing import Any

from densekit.infer.model import Opened
from densekit.precision import Precision

NAMES_SHOWN = 30  # classes listed by name
METRICS = {
    "top1": "top-1", "top5": "top-5", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC",
    "average_precision": "average precision", "f1": "F1", "ece": "calibration error",
    "loss": "loss", "count": "images",
}  # fmt: skip
TASK_WORDS = {
    "multiclass": "one class an image",
    "multilabel": "any number of classes an image",
    "binary": "one class that is there or not",
}
HEAD_STYLE = (
    "text-align:left;vertical-align:top;padding:.15em 1.2em .15em 0;font-weight:normal;opacity:.7"
)


def as_html(opened: Opened, engine: str, precision: Precision) -> str:
    """A table in the notebook's own colours, all text escaped."""
    seen, stored = opened.preprocessing, opened.described
    resized = "" if seen.resize is None else f"short side to {seen.resize}, "
    rows = {
        "Network": f"{opened.name}, {engine} on {precision.device.type} in {precision.name}",
        "Task": TASK_WORDS[opened.task],
        f"Classes ({len(opened.classes):,})": _names(opened.classes),
        "Sees": f"{seen.channels} x {seen.crop} x {seen.crop}, {resized}intensity {seen.intensity}",
    }
    metrics = {} if stored is None else stored.metrics
    if said := _measured(metrics):
        rows["On its validation images"] = said
    if opened.thresholds is not None:
        pairs = zip(opened.classes[:NAMES_SHOWN], opened.thresholds, strict=False)
        rows["There from"] = ", ".join(
            f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in pairs
        )
    cells = "".join(
        f'<tr><th scope="row" style="{HEAD_STYLE}">{escape(head)}</th>'
        f'<td style="text-align:left">{escape(text)}</td></tr>'
        for head, text in rows.items()
    )
    title = '<caption style="text-align:left"><b>densekit Classifier</b></caption>'
    return f"<table>{title}{cells}</table>"


def _names(classes: list[str]) -> str:
    more = f", and {len(classes) - NAMES_SHOWN:,} more" if len(classes) > NAMES_SHOWN else ""
    return ", ".join(classes[:NAMES_SHOWN]) + more


def _measured(metrics: dict[str, Any]) -> str:
    """The metrics that were measured."""
    found = {name: metrics.get(key) for key, name in METRICS.items()}
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4f}"
        for name, value in found.items()
        if isinstance(value, (int, float))
    )
