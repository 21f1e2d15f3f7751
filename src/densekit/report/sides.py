"""The sides of a comparison: runs, artifacts, and reports with their predictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from densekit.config import UserError
from densekit.explain.folder import PREDICTIONS, REPORT
from densekit.files import write_atomically
from densekit.infer.evaluate import Judged, evaluate_source
from densekit.infer.model import open_path
from densekit.models.artifact import locate_artifact, read_artifact
from densekit.precision import Precision
from densekit.report.answers import Judgement
from densekit.report.page import run_lines
from densekit.report.predictions import KeptAnswers, read_answers
from densekit.report.theme import SERIES, as_png, new_figure, styled
from densekit.training.recipe import Recipe, differences, stored_recipe


@dataclass(frozen=True)
class Compared:
    """A run, an artifact or a report, with what is known of it."""

    name: str
    """As typed."""
    task: str
    metrics: dict[str, Any]
    """Of its validation during training; of a report or a new evaluation, of those images."""
    predictions: KeptAnswers | None = None
    lines: tuple[dict[str, Any], ...] = ()
    """The log of its run."""
    recipe: Recipe | None = None


def open_side(name: str) -> Compared:
    """The folder of a run, artifact or report. Raises UserError."""
    folder = Path(name).expanduser()
    if (folder / REPORT).is_file():
        return _report(name, folder)
    if not folder.is_dir():
        raise UserError(f"{name}: give the folder of a run, an artifact or a report")
    place = locate_artifact(folder)
    config = read_artifact(place).config
    return Compared(name, config.task, config.metrics, None, tuple(run_lines(name)), _recipe(place))


def judge(name: str, precision: Precision, data: str | None, **how: Any) -> Compared:
    """`open_side`, evaluated now on `data`, or on its training's validation images.

    `how` goes to `evaluate_source`. Raises UserError.
    """
    side, kept = open_side(name), list[Judged]()
    if side.predictions is not None:
        raise UserError(
            f"{name}: a report, whose images were evaluated already; give the run itself, or leave "
            f"--data and --evaluate out"
        )
    opened = open_path(name)
    found = evaluate_source(opened, precision, data, keep=kept.append, **how)
    predictions = Judgement(opened, kept[0], found).predictions(name)
    return Compared(name, side.task, found, predictions, side.lines, side.recipe)


def changes(first: Compared, other: Compared) -> list[str] | None:
    """How the other's recipe differs; None if either recipe is unknown."""
    if first.recipe is None or other.recipe is None:
        return None
    named = differences(first.recipe, other.recipe)
    return [change for change in named if not change.startswith("name: ")]


def draw_curves(sides: Sequence[Compared], file: Path) -> None:
    """Training loss, validation loss, and top-1 or AUROC, a line for each run; as PNG.

    Raises UserError if no side has a log, or if the file exists.
    """
    if file.exists():
        raise UserError(f"{file}: is there already; choose another name")
    if not any(side.lines for side in sides):
        raise UserError("none of these has a log to draw; give the folders of runs")
    with styled():
        write_atomically(file, as_png(_overlaid([side for side in sides if side.lines])))


def _overlaid(sides: Sequence[Compared]) -> Figure:
    figure = new_figure(11, 4)
    evaluated = [line for side in sides for line in side.lines if line["kind"] == "eval"]
    measure = "top1" if any("top1" in line for line in evaluated) else "auroc"
    panels = (
        ("train", "loss", "Training loss"),
        ("eval", "loss", "Validation loss"),
        ("eval", measure, {"top1": "Validation top-1", "auroc": "Validation AUROC"}[measure]),
    )
    for axes, (kind, key, title) in zip(figure.subplots(1, 3), panels, strict=True):
        for i, side in enumerate(sides):
            lines = [each for each in side.lines if each["kind"] == kind and each.get(key)]
            x, y = [each["epoch"] for each in lines], [each[key] for each in lines]
            axes.plot(x, y, color=SERIES[i % len(SERIES)], linewidth=1.4, label=side.name,
                      linestyle=("-", "--", ":")[i // len(SERIES) % 3],
                      marker="o" if kind == "eval" and len(x) <= 30 else None,
                      markersize=3)  # fmt: skip
        axes.set(title=title, xlabel="epoch")
        if key == "loss":
            axes.set_yscale("log")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(sides), 4))
    return figure


def _report(name: str, folder: Path) -> Compared:
    try:
        found = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / REPORT}: cannot be read: {error}") from error
    if not isinstance(found, dict) or "task" not in found:
        raise UserError(f"{folder}: an unfinished report; make it again")
    return Compared(name, found["task"], found, read_answers(name, folder / PREDICTIONS))


def _recipe(place: Path) -> Recipe | None:
    file = place.parent / "recipe.yaml"
    return stored_recipe(file) if file.is_file() else None
