"""`densekit predict --out`: its options, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from densekit.cli.output import show, show_json, show_notes

if TYPE_CHECKING:
    from densekit.infer.model import Opened
    from densekit.score.run import Scored, ScoreOptions

Out = Annotated[
    Optional[str],  # noqa: UP045 (typer on Python 3.10 reads it at run time)
    typer.Option("--out", metavar="FOLDER", help="Rows go to Parquet files there; resumes."),
]
Processes = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--workers", metavar="N", min=1, help="With --out: processes; default 1."),
]
On = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--on", metavar="ray", help="With --out: on the cluster that RAY_ADDRESS names."),
]
PartSize = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--part-size", metavar="N", min=1, help="With --out: images in a file; default 4096."
    ),
]


def score_to(
    out: str, opened: Opened, inputs: Sequence[str], options: ScoreOptions, json: bool
) -> int:
    """Scores, prints a summary, returns the exit code. Raises UserError."""
    from densekit.score.run import score_all

    outcome = score_all(opened, inputs, Path(out).expanduser(), options)
    if json:
        show_json(_summary(outcome))
    else:
        show(_sentence(out, outcome))
    if outcome.stopped is None:
        return 1 if outcome.done.failed else 0
    show_notes([f"stopped: {outcome.stopped}; run the same command to resume"])
    return 75


def _sentence(out: str, outcome: Scored) -> str:
    done, files = outcome.done, f"{outcome.done.parts:,} files"
    rate = outcome.scored / outcome.seconds if outcome.seconds else 0.0
    return (
        f"{out}: {done.images:,} of {outcome.images:,} images in {files}, {done.failed:,} with an "
        f"error; {outcome.scored:,} in {outcome.seconds:.0f} s, {rate:.1f} a second"
    )


def _summary(outcome: Scored) -> dict[str, object]:
    return {
        "images": outcome.images,
        "done": outcome.done.model_dump(),
        "scored": outcome.scored,
        "seconds": round(outcome.seconds, 3),
        "stopped": outcome.stopped,
    }
