"""The gate: an exported network beside torch's, on real images, before anybody relies on it.

Both get the same squares. A float export may differ by rounding alone; int8 differs in every
logit, so there it is answers that count. n images, K classes.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from densekit.export.images import RealImages
from densekit.infer.engines import Logits
from densekit.infer.evaluate import DEFAULT_THRESHOLD, evaluate, report_of
from densekit.infer.model import Opened
from densekit.infer.multilabel_metrics import SPECIFICITY

MAX_DIFFERENCE = 1e-4
"""Of a float export's logits, as a share of the largest logit, or of 1 where that is less. Rounding
alone was seen to make 1e-6 of it."""
MAX_DROP = 0.5
"""Points of top-1, or of AUROC, that int8 may lose."""
SCORES = {"top1": "top-1", "auroc": "AUROC"}
"""What int8 may lose points of, by its name in a summary: of one class an image; of several."""
MIN_AGREEMENT, MAX_NORM = 0.95, 0.25
"""Of int8: the share of images with the same answer, and the norm of the logits' difference over
the logits' norm. A network that loses no accuracy was seen to have 0.045."""
LATENCY_BATCHES, LATENCY_ROUNDS = (1, 16), 7
WORST = 5  # images that are named


@dataclass(frozen=True)
class Counted:
    """What a network answers to the gate's images."""

    logits: Tensor
    """float32 [n, K]."""
    summary: dict[str, Any]
    """`densekit evaluate`'s own counts: count and loss, and of one class an image top1 and top5, of
    several auroc, null without an image of each kind; {} for images without labels."""

    @property
    def score(self) -> str | None:
        """Which of SCORES was counted."""
        return next((name for name in SCORES if self.summary.get(name) is not None), None)


@dataclass(frozen=True)
class Difference:
    """Of an export's logits from torch's."""

    max: float
    mean: float
    largest_logit: float
    """Of torch's, by magnitude."""
    relative_norm: float
    """|difference| / |torch's logits|, both Euclidean, over all images."""
    agreement: float
    """The share of images with the same top-1; of classes that are there or not, of their outputs
    on the same side of the class' threshold."""
    worst: tuple[int, ...]
    """The images that differ most, by number."""


@dataclass(frozen=True)
class Bounds:
    """What is let through."""

    max_difference: float = MAX_DIFFERENCE
    max_drop: float = MAX_DROP


def count(logits: Logits, images: RealImages, what: str) -> Counted:
    """The network's answers, by `densekit evaluate`'s own loop. Raises UserError."""
    kept: list[Tensor] = []

    def keep(batch: Tensor) -> Tensor:
        kept.append(logits(batch))
        return kept[-1]

    opened = images.opened
    if not images.labelled:
        evaluate(keep, images.batches(what))
        return Counted(torch.cat(kept), {})
    several = opened.task != "multiclass"
    report = report_of(opened, SPECIFICITY, None) if several else None
    found = evaluate(keep, images.batches(what), opened.task, report)
    area = {"auroc": found.report["auroc"]} if several else {}
    return Counted(torch.cat(kept), {**found.summary, **area})


def compare(reference: Counted, exported: Counted, opened: Opened) -> Difference:
    """How far the export's answers are from torch's."""
    ours, theirs = reference.logits.double(), exported.logits.double()
    difference = (theirs - ours).abs()
    same = _answers(ours, opened) == _answers(theirs, opened)
    by_image = difference.amax(1).nan_to_num(nan=torch.inf)
    return Difference(
        max=difference.max().item(),
        mean=difference.mean().item(),
        largest_logit=ours.abs().max().item(),
        relative_norm=(difference.norm() / ours.norm()).item(),
        agreement=same.double().mean().item(),
        worst=tuple(by_image.argsort(descending=True)[:WORST].tolist()),
    )


def _answers(logits: Tensor, opened: Opened) -> Tensor:
    """The class, [n]; or whether each class is there, [n, K]."""
    if opened.task == "multiclass":
        return logits.argmax(1)
    chosen = opened.thresholds or [None] * logits.shape[1]
    thresholds = [DEFAULT_THRESHOLD if value is None else value for value in chosen]
    return logits.sigmoid() >= logits.new_tensor(thresholds)


def float_faults(difference: Difference, bounds: Bounds) -> list[str]:
    """Why a float export does not pass; empty where it does."""
    allowed = bounds.max_difference * max(1.0, difference.largest_logit)
    if difference.max <= allowed:  # no NaN is
        return []
    return [
        f"its logits differ from torch's by up to {difference.max:.2g}, more than {allowed:.2g} "
        f"(--max-difference {bounds.max_difference:g} of the largest logit, "
        f"{difference.largest_logit:.3g})"
    ]


def drop(reference: Counted, exported: Counted) -> float:
    """Points of the score that the export loses; 0 where there is none."""
    if reference.score is None or exported.score is None:
        return 0.0
    return 100 * (reference.summary[reference.score] - exported.summary[exported.score])


def int8_faults(
    reference: Counted, exported: Counted, difference: Difference, bounds: Bounds
) -> list[str]:
    """Why an int8 export does not pass; empty where it does."""
    faults = []
    lost, name = drop(reference, exported), reference.score
    if name is not None and lost > bounds.max_drop:
        faults.append(
            f"it loses {lost:.2f} points of {SCORES[name]} ({reference.summary[name]:.4f} to "
            f"{exported.summary[name]:.4f}), more than --max-drop {bounds.max_drop:g}"
        )
    if not difference.agreement >= MIN_AGREEMENT:
        faults.append(
            f"{difference.agreement:.1%} of the answers are torch's, less than {MIN_AGREEMENT:.0%}"
        )
    if not difference.relative_norm <= MAX_NORM:
        faults.append(
            f"the norm of its logits' difference is {difference.relative_norm:.2f} of the logits' "
            f"norm, more than {MAX_NORM}"
        )
    return faults


def latency(reference: Logits, exported: Logits, images: RealImages) -> list[dict[str, float]]:
    """Milliseconds a call takes, medians of rounds in which both take turns, at each batch size.

    The call before it is not timed: threads of the other engine still spin, and take a core each.
    """
    squares = next(iter(images.batches("reading")))[1].images
    rows = []
    for batch in LATENCY_BATCHES:
        given = squares[torch.arange(batch) % len(squares)]
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(LATENCY_ROUNDS):
            for network, taken in zip((reference, exported), seconds, strict=True):
                network(given)
                began = time.perf_counter()
                network(given)
                taken.append(time.perf_counter() - began)
        torch_ms, exported_ms = (1000 * statistics.median(taken) for taken in seconds)
        rows.append({"batch": batch, "torch_ms": torch_ms, "exported_ms": exported_ms})
    return rows


def bounds_of(bounds: Bounds, int8: bool) -> dict[str, float]:
    """Those that apply, for gate.json."""
    if not int8:
        return {"max_difference": bounds.max_difference}
    return {
        "max_drop": bounds.max_drop, "min_agreement": MIN_AGREEMENT, "max_norm": MAX_NORM,
    }  # fmt: skip


def as_tree(difference: Difference, images: RealImages) -> dict[str, Any]:
    """For gate.json: the worst images by their names."""
    tree = asdict(difference)
    return {**tree, "worst": [images.examples.relative(i) for i in difference.worst]}
