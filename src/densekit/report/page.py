"""A report as files: index.html, its figures as PNG, the metrics and all predictions."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import densekit
from densekit.explain.folder import PAGE_NAME, PREDICTIONS, claim, write_manifest
from densekit.explain.overlay import legend
from densekit.files import write_atomically
from densekit.infer.classifier import Classifier
from densekit.models.artifact import locate_artifact
from densekit.precision import Precision
from densekit.report import figures
from densekit.report.answers import Judgement
from densekit.report.mistakes import find_mistakes, most_confident, show_mistakes, why_no_maps
from densekit.report.predictions import pack_answers
from densekit.report.theme import as_png, as_svg, styled
from densekit.training.curves import figure_of
from densekit.training.log_file import LogFile

PAIRS = 8  # of confused classes, listed at most
TILES_OF_ONE = {
    "Top-1": "top1", "Balanced accuracy": "balanced_accuracy", "F1": "f1", "AUROC": "auroc",
    "Average precision": "average_precision", "Calibration error": "ece",
}  # fmt: skip
TILES_OF_SEVERAL = {
    "AUROC": "auroc", "Average precision": "average_precision",
    "Balanced accuracy": "balanced_accuracy", "F1": "f1",
    "Sensitivity at {specificity:g} specificity": "sensitivity_at_specificity",
    "Calibration error": "ece",
}  # fmt: skip
COLUMNS_OF_ONE = {"Recall": "recall", "Precision": "precision", "F1": "f1", "AUROC": "auroc"}
COLUMNS_OF_SEVERAL = {
    "AUROC": "auroc", "Average precision": "average_precision", "Sensitivity": "sensitivity",
    "Specificity": "specificity", "F1": "f1",
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A number from 0 to 1 and its interval, if defined."""

    name: str
    value: float | None
    interval: list[float] | None


@dataclass(frozen=True)
class ReportSource:
    """What was evaluated, as typed."""

    name: str
    data: str | None
    """The images; None: the training's validation images."""


def write_report(
    folder: Path, answered: Judgement, precision: Precision, source: ReportSource
) -> dict[str, Any]:
    """Writes the report to `folder`, which must be claimed, and returns report.json's content.

    Raises UserError for a full or read-only disk.
    """
    drawn = _drawn(answered, source)
    with styled():
        pngs = {name: as_png(figure) for name, figure in drawn.items()}
        svgs = {name: as_svg(figure, _alternative(name)) for name, figure in drawn.items()}
    for name, png in pngs.items():
        write_atomically(folder / f"{name}.png", png)
    write_atomically(folder / PREDICTIONS, pack_answers(answered.predictions(source.name)))
    classifier = Classifier(answered.opened, precision)
    why_none = why_no_maps(classifier)
    mistakes = find_mistakes(answered)
    page = _template().render(
        answered=answered, source=source, found=answered.found, svgs=svgs,
        tiles=_tiles(answered), classes=_classes(answered), pairs=_pairs(answered),
        columns=list(COLUMNS_OF_SEVERAL if answered.several else COLUMNS_OF_ONE),
        shown=show_mistakes(answered, classifier, most_confident(mistakes), why_none is None),
        wrong=len(mistakes),
        why_no_maps=why_none, legend=", ".join(legend()), version=densekit.__version__,
    )  # fmt: skip
    write_atomically(folder / PAGE_NAME, page.encode())
    said = {"network": source.name, "images": answered.examples.origin, "page": PAGE_NAME}
    return write_manifest(folder, "report", {**said, "figures": sorted(pngs), **answered.found})


def claim_report(folder: Path) -> None:
    """Creates `folder`, or clears it of an earlier report; call it before computing anything.

    Raises UserError if it holds anything else, which is not touched.
    """
    claim(folder, "report")


def run_lines(source: str) -> list[dict[str, Any]]:
    """The log of the run whose folder or artifact `source` is; [] without one."""
    place = locate_artifact(Path(source).expanduser())
    if place.name not in ("best", "last"):
        return []
    return list(LogFile(place.parent / "log.jsonl").lines())


def _drawn(answered: Judgement, source: ReportSource) -> dict[str, Figure]:
    with styled():
        drawn = {
            "roc": figures.draw_roc(answered),
            "precision-recall": figures.draw_precision_recall(answered),
            "calibration": figures.draw_calibration(answered),
            "confusion": figures.draw_confusion(answered),
            "balance": figures.draw_balance(answered),
        }
        lines = run_lines(source.name)
        if any(line["kind"] == "train" for line in lines):
            drawn["curves"] = figure_of(lines, "")
    return drawn


def _alternative(name: str) -> str:
    return {
        "roc": "ROC curve of each class",
        "precision-recall": "precision over recall of each class",
        "calibration": "how often answers of each probability were right",
        "confusion": "labels against answers",
        "balance": "images of each class",
        "curves": "loss, error and learning rate over the run's epochs",
    }[name]


def _tiles(answered: Judgement) -> list[Measured]:
    found, ends = answered.found, answered.found.get("intervals", {})
    return [
        Measured(name.format(**found), found[key], ends.get(key))
        for name, key in (TILES_OF_SEVERAL if answered.several else TILES_OF_ONE).items()
    ]


def _classes(answered: Judgement) -> list[dict[str, Any]]:
    """A row of the table for each class."""
    columns = COLUMNS_OF_SEVERAL if answered.several else COLUMNS_OF_ONE
    rows = []
    for row in answered.found["per_class"]:
        ends = row.get("intervals", {})
        numbers = [Measured(name, row[key], ends.get(key)) for name, key in columns.items()]
        rows.append({**row, "numbers": numbers})
    return rows


def _pairs(answered: Judgement) -> list[tuple[str, str, int, float]]:
    """Label, prediction, images, and their share of the label's images; most frequent first."""
    names = answered.opened.classes
    if answered.several or len(names) < 3:
        return []
    confusion = np.array(answered.found["confusion"])
    apart = np.where(np.eye(len(names), dtype=bool), 0, confusion)
    most = np.argsort(-apart, axis=None, kind="stable")[:PAIRS]
    places = zip(*np.unravel_index(most, apart.shape), strict=True)
    return [
        (names[a], names[b], int(apart[a, b]), apart[a, b] / confusion[a].sum())
        for a, b in places
        if apart[a, b]
    ]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["picture"] = _as_url
    text = package_files("densekit.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(text)


def _as_url(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
