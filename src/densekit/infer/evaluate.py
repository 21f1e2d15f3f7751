"""Evaluation: metrics over all images, the same for every engine.

The task decides the metrics: `metrics` or `multilabel_metrics`. n images, K classes. Whole batches
are split over N ranks: rank b mod N computes batch b, and the batches' float64 sums are added in
batch order, so no number depends on N.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densekit import distributed
from densekit.config import ConfigSource, Tree, UserError, build, rename
from densekit.data.bit_depth import SAMPLE, dark_files
from densekit.data.checks import check_examples, spread_sources
from densekit.data.classes import Numbering
from densekit.data.config import DataConfig, Task
from densekit.data.groups import numbered, with_groups
from densekit.data.holdout import read_sides
from densekit.data.listing import Examples
from densekit.data.loader import Batch, eval_batches, resolve_workers
from densekit.data.multilabel import Labelling, widen
from densekit.data.splits import is_there, match_labels, open_examples, open_val
from densekit.infer import metrics, multilabel_metrics
from densekit.infer.bootstrap import Resampling
from densekit.infer.engines import Logits, logits_of, open_engine, resolve_engine
from densekit.infer.model import Opened
from densekit.infer.tta import averaged, squares_for
from densekit.precision import Precision, in_bounded_memory
from densekit.progress import bar, say
from densekit.remote import is_url

__all__ = ["Evaluation", "evaluate", "evaluate_source", "logits_of"]

BATCH_SIZE = 64  # if neither the user nor the training chose one
DEFAULT_THRESHOLD = 0.5  # if the training chose none
ReportOf = Callable[[Tensor, Tensor], dict[str, Any]]
"""All images' logits [n, K] and labels -> the report."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics, on every rank."""

    summary: dict[str, Any]
    """count and loss, and top1 and top5 if single-label: see the task's summary."""
    report: dict[str, Any]
    """The report, if one was requested; else {}."""
    ips: float
    """Images per second on all ranks, from the first file read to the last logit."""


@dataclass(frozen=True)
class Judged:
    """All evaluated images and their logits."""

    examples: Examples
    """Labelled with the network's classes."""
    logits: Tensor
    """[n, K], in the order of the examples."""


@dataclass(frozen=True)
class Answers:
    """Of one batch."""

    batch: int
    sums: Tensor
    logits: Tensor | None
    labels: Tensor | None


def evaluate(
    logits: Logits,
    batches: Iterable[tuple[int, Batch]],
    task: Task = "multiclass",
    report: ReportOf | None = None,
) -> Evaluation:
    """Evaluates this rank's `batches`, (number, images and labels), and combines all ranks' sums.

    For a `report`, rank 0 holds all logits. Raises UserError on all ranks for an unreadable image.
    """
    counts = metrics if task == "multiclass" else multilabel_metrics
    began, full = time.perf_counter(), report is not None

    def answer(number: int, batch: Batch) -> Answers:
        found = logits(batch.images)
        sums = counts.batch_sums(found, batch.labels)
        return Answers(number, sums, *((found, batch.labels) if full else (None, None)))

    mine = distributed.on_every_rank(
        lambda: [answer(*batch) for batch in in_bounded_memory(batches)]
    )
    shares = distributed.gather_objects(mine)
    seconds = time.perf_counter() - began
    whole = None
    if shares is not None:
        answers = sorted((a for share in shares for a in share), key=lambda a: a.batch)
        summary = counts.summary(torch.stack([a.sums for a in answers]))
        of_all = {} if report is None else report(*_together(answers))
        whole = Evaluation(summary, of_all, ips=summary["count"] / seconds)
    whole = distributed.broadcast_object(whole)
    assert whole is not None
    return whole


def _together(answers: list[Answers]) -> tuple[Tensor, Tensor]:
    logits = torch.cat([a.logits for a in answers if a.logits is not None])
    labels = torch.cat([a.labels for a in answers if a.labels is not None])
    return logits, labels


def report_of(
    opened: Opened,
    specificity: float,
    resampling: Resampling | None,
    groups: np.ndarray | None = None,
) -> ReportOf:
    """The full report for logits and labels; with `groups`, int64 [n], whole groups are
    resampled."""
    outputs = len(opened.classes)
    if opened.task == "multiclass":
        return partial(metrics.report, num_classes=outputs, resampling=resampling, groups=groups)
    thresholds = opened.thresholds or [DEFAULT_THRESHOLD] * outputs
    return partial(
        multilabel_metrics.report,
        thresholds=thresholds,
        specificity=specificity,
        resampling=resampling,
        groups=groups,
    )


# `densekit evaluate` ------------------------------------------------------------------------


def evaluate_source(
    opened: Opened,
    precision: Precision,
    data: str | Examples | None = None,
    batch_size: int | None = None,
    workers: int | str = "auto",
    max_pixels: int | None = None,
    engine: str = "auto",
    tta: str = "none",
    specificity: float = multilabel_metrics.SPECIFICITY,
    resampling: Resampling | None = None,
    keep: Callable[[Judged], None] | None = None,
    group: str | None = None,
) -> dict[str, Any]:
    """The output of `densekit evaluate --json`: summary, report, and how they were computed.

    `data` is a list file, a folder, builtin:NAME, or examples with the network's labels; None: the
    training's validation images. `batch_size` is per rank, `max_pixels` per image; None: as in
    training. `tta` is one of VIEWS. `resampling` sets the intervals; whole groups are resampled if
    `group`, or else the training's data.group, defines them. `keep` gets all images and logits, on
    rank 0. Raises UserError, on all ranks.
    """

    def find() -> tuple[Examples, str | None, list[str]]:
        examples, notes = validation_examples(opened, data)
        examples, by, more = _grouped(examples, group, opened.data.get("group"))
        return examples, by, [*notes, *more]

    examples, grouped_by, notes = distributed.on_every_rank(find)
    for note in notes:
        say(note)
    batch_size = batch_size or _stored_batch_size(opened.data) or BATCH_SIZE
    device, world = precision.device.type, distributed.world_size()
    workers = resolve_workers(workers, device, distributed.local_world_size())
    reads = squares_for(tta, opened.preprocessing)
    batches = eval_batches(
        examples, reads, batch_size, workers, distributed.rank(), world,
        pin_memory=device == "cuda", max_pixels=max_pixels or opened.max_pixels,
    )  # fmt: skip
    own = len(range(distributed.rank(), -(-len(examples) // batch_size), world))
    shown = bar(batches, own, "evaluating")
    of_one = distributed.on_every_rank(lambda: open_engine(opened, precision, engine))
    logits = averaged(of_one, tta, opened.task, opened.preprocessing.crop)
    groups = None if examples.groups is None else numbered(examples.groups)
    of_logits = report_of(opened, specificity, resampling, groups)

    def report(found: Tensor, labels: Tensor) -> dict[str, Any]:
        if keep is not None:
            keep(Judged(examples, found))
        return of_logits(found, labels)

    found = evaluate(logits, shown, opened.task, report)
    per_class = [
        {"class": label, "label": name, **row}
        for label, (name, row) in enumerate(
            zip(opened.classes, found.report["per_class"], strict=True)
        )
    ]
    return {
        **found.summary,
        **found.report,
        "per_class": per_class,
        "group": grouped_by,
        "groups": None if groups is None else int(groups.max()) + 1,
        "ips": found.ips,
        "task": opened.task,
        "preprocessing": opened.preprocessing.model_dump(mode="json"),
        "precision": precision.name,
        "engine": resolve_engine(opened, engine),
        "tta": tta,
    }


def _grouped(
    examples: Examples, asked: str | None, trained: str | None
) -> tuple[Examples, str | None, list[str]]:
    """The examples with groups by `asked`, else by `trained` (the training's data.group) if the
    images have them; which of the two; and a note if they have none. Raises UserError."""
    if asked is not None:
        return with_groups(examples, asked, "--group"), asked, []
    if trained is None or examples.groups is not None:
        return examples, trained, []
    try:
        return with_groups(examples, trained), trained, []
    except UserError:
        return examples, None, [
            f"{examples.origin}: does not say data.group={trained}, by which it was trained, of "
            f"all images, so intervals take each image for itself; --group COLUMN|REGEX says what "
            f"belongs together"
        ]  # fmt: skip


def _check_there(data: DataConfig, option: str) -> None:
    """Raises UserError if the images that an artifact names are not on this machine."""
    for path in (data.root, data.val or data.train):
        if not path or path.startswith("builtin:") or is_url(path) or is_url(data.root or ""):
            continue
        if not is_there(Path(path).expanduser()):
            under = Path(data.root or "").expanduser() / path
            if not is_there(under):
                raise UserError(
                    f"the images that it was trained with are not there: {path} does not exist "
                    f"(from {Path.cwd()}); say where validation images are: {option} LIST|FOLDER"
                )


def _positive(opened: Opened) -> tuple[str, ...] | None:
    """A binary network's positive class, to recognise its folder by."""
    return tuple(opened.classes) if opened.task == "binary" and opened.named else None


def _stored_batch_size(data: Tree) -> int | None:
    """From an artifact's data section, which may use an earlier version's names."""
    return rename(DataConfig, ConfigSource(data)).tree.get("evaluate", {}).get("batch_size")


def validation_examples(
    opened: Opened, data: str | Examples | None, option: str = "--data"
) -> tuple[Examples, list[str]]:
    """The images to evaluate, with the network's labels; and notes for the user.

    `data` is the value of `option`, or examples; None: the training's validation images. Raises
    UserError.
    """
    outputs = Numbering.of_network(opened.classes, opened.named)
    if isinstance(data, Examples):
        examples = data
    elif data is not None:
        labelling = Labelling(opened.task, classes=_positive(opened))
        examples = open_examples(data, labelling=labelling, numbering=outputs)
    elif opened.data:
        section = build(DataConfig, ConfigSource(opened.data))
        if section.root is section.train is section.val is None:
            raise UserError(
                f"its training took its images from a program, so say which to evaluate on: "
                f"{option} LIST|FOLDER|builtin:NAME"
            )
        _check_there(section, option)
        known = None if opened.split is None else read_sides(opened.split)
        examples = match_labels(open_val(section, opened.task, known), outputs)
    else:
        raise UserError(f"say which images to evaluate on: {option} LIST|FOLDER|builtin:NAME")
    examples = widen(examples, len(opened.classes))
    scaling = opened.preprocessing.scaling
    _, notes = check_examples(
        examples, len(opened.classes), 0, opened.preprocessing.channels, intensity=scaling
    )
    return examples, [*notes, *dark_files(list(spread_sources(examples, SAMPLE).values()), scaling)]
