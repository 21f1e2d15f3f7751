"""The gate: compares an exported network with torch's on real images before it is published.

Both get the same inputs. A float export may differ only by rounding; int8 differs in every logit,
so its predictions are compared. n images, K classes.
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
"""For a float export's logits, relative to the largest logit, or to 1 if that is smaller. Rounding
alone was seen to cause 1e-6."""
MAX_DROP = 0.5
"""Points of top-1, or of AUROC, that int8 may lose."""
SCORES = {"top1": "top-1", "auroc": "AUROC"}
"""The score that int8 may lose points of, by its name in a summary: single-label; multilabel."""
MIN_AGREEMENT, MAX_NORM = 0.95, 0.25
"""For int8: the share of images with the same prediction, and the norm of the logits' difference
over the logits' norm. 0.045 was seen for a network that lost no accuracy."""
LATENCY_BATCHES, LATENCY_ROUNDS = (1, 16), 7
WORST = 5  # images named


@dataclass(frozen=True)
class Counted:
    """A network's logits and metrics on the gate's images."""

    logits: Tensor
    """float32 [n, K]."""
    summary: dict[str, Any]
    """As by `densekit evaluate`: count and loss; top1 and top5 if single-label; auroc if multilabel
    or binary, null without both positives and negatives; {} for unlabelled images."""

    @property
    def score(self) -> str | None:
        """Which of SCORES was counted."""
        return next((name for name in SCORES if self.summary.get(name) is not None), None)


@dataclass(frozen=True)
class Difference:
    """How an export's logits differ from torch's."""

    max: float
    mean: float
    largest_logit: float
    """Torch's largest |logit|."""
    relative_norm: float
    """|difference| / |torch's logits|, both Euclidean, over all images."""
    agreement: float
    """The share of images with the same top-1; if multilabel or binary, the share of outputs on the
    same side of the class' threshold."""
    worst: tuple[int, ...]
    """Indices of the images that differ most."""


@dataclass(frozen=True)
class Bounds:
    """The limits for an export to pass."""

    max_difference: float = MAX_DIFFERENCE
    max_drop: float = MAX_DROP


def count(logits: Logits, images: RealImages, what: str) -> Counted:
    """The network's logits and metrics, by `densekit evaluate`'s own loop. Raises UserError."""
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
    """How far the export's logits and predictions are from torch's."""
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
    """The predicted class, [n]; or whether each class is predicted present, [n, K]."""
    if opened.task == "multiclass":
        return logits.argmax(1)
    chosen = opened.thresholds or [None] * logits.shape[1]
    thresholds = [DEFAULT_THRESHOLD if value is None else value for value in chosen]
    return logits.sigmoid() >= logits.new_tensor(thresholds)


def float_faults(difference: Difference, bounds: Bounds) -> list[str]:
    """Why a float export fails; empty if it passes."""
    allowed = bounds.max_difference * max(1.0, difference.largest_logit)
    if difference.max <= allowed:  # False for NaN
        return []
    return [
        f"its logits differ from torch's by up to {difference.max:.2g}, more than {allowed:.2g} "
        f"(--max-difference {bounds.max_difference:g} of the largest logit, "
        f"{difference.largest_logit:.3g})"
    ]


def drop(reference: Counted, exported: Counted) -> float:
    """Points of the score that the export loses; 0 without a score."""
    if reference.score is None or exported.score is None:
        return 0.0
    return 100 * (reference.summary[reference.score] - exported.summary[exported.score])


def int8_faults(
    reference: Counted, exported: Counted, difference: Difference, bounds: Bounds
) -> list[str]:
    """Why an int8 export fails; empty if it passes."""
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
    """Milliseconds per call at each batch size, medians of rounds in which both take turns.

    An untimed call precedes each timed one: the other engine's threads still spin on the cores.
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
    """The bounds that apply, for gate.json."""
    if not int8:
        return {"max_difference": bounds.max_difference}
    return {
        "max_drop": bounds.max_drop, "min_agreement": MIN_AGREEMENT, "max_norm": MAX_NORM,
    }  # fmt: skip


def as_tree(difference: Difference, images: RealImages) -> dict[str, Any]:
    """For gate.json, with the worst images by name."""
    tree = asdict(difference)
    return {**tree, "worst": [images.examples.relative(i) for i in difference.worst]}
