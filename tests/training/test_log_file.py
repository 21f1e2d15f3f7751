"""log.jsonl, line by line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from densekit.training.log_file import LogFile


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    log = LogFile(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.append({"kind": "train", "step": step})
    return log


def steps(log: LogFile) -> list[int]:
    return [line["step"] for line in log.lines()]


def test_the_log_is_cut_back_and_a_torn_line_dropped(log: LogFile) -> None:
    log.path.write_text(log.path.read_text() + '{"kind": "tra')
    assert steps(log) == [1, 2, 3]
    log.cut(2)
    assert steps(log) == [1, 2]
    assert log.path.read_text().endswith("\n")
    log.append({"kind": "train", "step": 3})
    assert steps(log) == [1, 2, 3]
    log.close()


def test_a_torn_line_within_what_is_kept_stays_a_line(log: LogFile) -> None:
    """A state counts lines, whatever is in them."""
    log.path.write_text(log.path.read_text() + '{"kind": "tra')
    log.cut(4)
    log.append({"kind": "train", "step": 5})
    assert steps(log) == [1, 2, 3, 5]
    assert len(log.path.read_text().splitlines()) == 5
    log.close()


def test_a_line_can_be_read_at_once_and_is_strict_json(log: LogFile) -> None:
    log.append({"kind": "eval", "step": 4, "loss": math.nan, "top1": math.inf, "top5": 0.5})
    last = log.path.read_text().splitlines()[-1]
    refuses = {"parse_constant": lambda name: pytest.fail(f"{name} is no JSON")}
    found = json.loads(last, **refuses)
    assert found == {"kind": "eval", "step": 4, "loss": None, "top1": None, "top5": 0.5}
    log.sync()
    log.close()


def test_a_log_that_is_not_there_has_no_lines_and_can_be_cut(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log.jsonl")
    assert not list(log.lines())
    log.cut(3)
    assert log.path.read_bytes() == b""
