"""loop.report: the page at the end of a training, and a training that does without it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from densekit.report import end_of_run
from densekit.report.page import claim_report
from runs import Runs, assert_same_run, weights

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_training_ends_with_the_report_of_its_best(
    runs: Runs, tmp_path: Path, ranks: int
) -> None:
    folder = runs.train(tmp_path / "run", {"loop.report": "true"}, ranks)
    assert runs.started[-1].output.count(": the report") == 1
    assert_same_run(folder, runs.whole(None, ranks))
    found = json.loads((folder / "report" / "report.json").read_text())
    best = json.loads((folder / "best" / "config.json").read_text())
    for name in ("count", "top1", "top5"):
        assert found[name] == best["metrics"][name]
    assert found["loss"] == pytest.approx(best["metrics"]["loss"], rel=1e-12)
    assert "curves" in found["figures"]
    assert (folder / "report" / "index.html").read_text().startswith("<!")


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_in_the_report_leaves_the_run_whole(runs: Runs, tmp_path: Path, ranks: int) -> None:
    """The process ends at once, as before a job's time is over; the next start makes the page."""
    folder, options = tmp_path / "run", {"loop.report": "true"}
    started = runs.start(folder, options, ranks, stand_still_in_the_report)
    claimed = folder / "report"
    assert started.until((claimed / "report.json").is_file), started.output
    started.send(signal.SIGTERM)
    started.send(signal.SIGCONT)
    assert -signal.SIGTERM in started.wait()
    assert not (claimed / "index.html").exists()
    assert_same_run(folder, runs.whole(None, ranks))
    runs.train(folder, options, ranks)
    assert "is finished: nothing to train" in runs.started[-1].output
    assert (claimed / "index.html").is_file()


def stand_still_in_the_report() -> None:
    """A process's prelude: as after a Ctrl-Z once the report has begun."""

    def stopping(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    end_of_run.evaluate_source = stopping  # type: ignore[assignment]


def test_a_report_that_cannot_be_made_loses_nothing(runs: Runs, tmp_path: Path) -> None:
    folder = runs.train(tmp_path / "run")
    (folder / "report").mkdir()
    (folder / "report" / "mine.txt").write_text("mine")
    runs.train(folder, {"loop.report": "true"})
    said = runs.started[-1].output
    assert "loop.report: no report was made: " in said
    assert "is finished: nothing to train" in said
    assert (folder / "report" / "mine.txt").read_text() == "mine"
    assert weights(folder)


def test_a_report_that_was_cut_off_is_made_by_the_same_command(runs: Runs, tmp_path: Path) -> None:
    folder = runs.train(tmp_path / "run")
    claim_report(folder / "report")  # so far the process came
    runs.train(folder, {"loop.report": "true"})
    page = folder / "report" / "index.html"
    made = page.stat().st_mtime_ns
    runs.train(folder, {"loop.report": "true"})
    assert ": the report" not in runs.started[-1].output
    assert page.stat().st_mtime_ns == made
