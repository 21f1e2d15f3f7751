from __future__ import annotations

import io

import pytest
from rich.console import Console

from densekit import progress as display


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(
        display, "Console", lambda stderr: Console(file=screen, force_terminal=True)
    )
    return screen


@pytest.mark.parametrize(("patience", "shown"), [(0.0, True), (1e9, False)])
def test_the_bar_waits(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch, patience: float, shown: bool
) -> None:
    monkeypatch.setattr(display, "BAR_AFTER", patience)
    assert list(display.bar("abc", 3, "reading")) == ["a", "b", "c"]
    assert ("reading" in terminal.getvalue()) == shown


def test_a_bar_joins_those_on_the_terminal(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two displays at a time would write over one another."""
    monkeypatch.setattr(display, "BAR_AFTER", 0.0)
    outer = display.Progress(console=display.Console(stderr=True))
    monkeypatch.setattr(display, "LIVE", [outer])
    with outer:
        outer.add_task("epoch")
        for _ in display.bar(range(3), 3, "evaluating"):
            assert [task.description for task in outer.tasks] == ["epoch", "evaluating"]
        assert [task.description for task in outer.tasks] == ["epoch"]


def test_other_ranks_show_nothing(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "BAR_AFTER", 0.0)
    monkeypatch.setenv("RANK", "1")
    assert list(display.bar("abc", 3, "reading")) == ["a", "b", "c"]
    assert terminal.getvalue() == ""


def test_without_a_terminal_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "BAR_AFTER", 0.0)
    assert list(display.bar("abc", 3, "reading")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_waiting_is_shown_on_a_terminal_and_elsewhere_only_if_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with display.waiting("counting"):
        pass
    assert capsys.readouterr() == ("", "")
    with display.waiting("compiling", line=True):
        assert capsys.readouterr() == ("", "compiling ...\n")
