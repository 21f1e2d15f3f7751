"""loop.report: the report on a run's best network, written when the run ends."""

from __future__ import annotations

import traceback

from densekit import distributed
from densekit.config import UserError
from densekit.explain.folder import PAGE_NAME
from densekit.infer.bootstrap import Resampling
from densekit.infer.evaluate import Judged, evaluate_source
from densekit.infer.model import open_path
from densekit.progress import say
from densekit.report.answers import Judgement
from densekit.report.page import ReportSource, claim_report, write_report
from densekit.training.loop import Outcome

RESAMPLES = 1000


def report_run(outcome: Outcome) -> None:
    """As `densekit evaluate RUN --report RUN/report`, on every rank, if loop.report is set.

    Errors are printed, not raised, since the training is done and saved; unless it is a UserError,
    with the traceback.
    """
    if not outcome.plan.recipe.loop.report or outcome.stopped:
        return
    folder = outcome.folder / "report"
    whole = distributed.from_main((folder / PAGE_NAME).is_file)  # the page is written last
    if outcome.already_finished and whole:
        return
    run, precision = str(outcome.folder), outcome.plan.eval_precision
    judged: list[Judged] = []
    try:
        distributed.from_main(lambda: claim_report(folder))
        opened = distributed.on_every_rank(lambda: open_path(run))
        resampling = Resampling(RESAMPLES)
        found = evaluate_source(
            opened, precision, outcome.plan.val, resampling=resampling, keep=judged.append
        )
        if judged:  # on rank 0 alone
            write_report(folder, Judgement(opened, judged[0], found), precision,
                         ReportSource(run, None))  # fmt: skip
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        say(f"loop.report: no report was made: {error or type(error).__name__}; the run is kept")
    else:
        say(f"{folder / PAGE_NAME}: the report")
