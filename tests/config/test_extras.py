"""A library that is not there is named with the extra that installs it, everywhere in one way."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import densekit
from densekit.config import UserError, needs_extra
from densekit.training.tracking import TRACKERS

ROOT = Path(densekit.__file__).parent
PYPROJECT = ROOT.parent.parent / "pyproject.toml"


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError) as raised, needs_extra("weights", "reading Keras' files"):
        import h5py  # noqa: F401
    assert str(raised.value) == 'reading Keras\' files needs h5py: pip install "densekit[weights]"'
    with pytest.raises(UserError, match=r"^this needs xml: pip"), needs_extra("weights", "this"):
        import xml.nothing.deeper  # type: ignore[import-not-found]  # noqa: F401


def test_a_library_that_cannot_be_imported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "halfinstalled.py").write_text("raise ImportError('libGL.so.1: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    says = r"libGL.so.1: cannot open.*densekit\[tiff\]"
    with pytest.raises(UserError, match=says), needs_extra("tiff", "this"):
        import halfinstalled  # type: ignore[import-not-found]  # noqa: F401


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(KeyError), needs_extra("weights", "this"):
        raise KeyError("x")


def test_every_extra_that_is_asked_for_is_declared_and_worded_here() -> None:
    text = PYPROJECT.read_text(encoding="utf-8")
    declared = text.partition("[project.optional-dependencies]")[2].partition("[project.scripts]")[
        0
    ]
    known, asked = set(re.findall(r"^(\w+) = ", declared, re.M)), set()
    for file in ROOT.rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        if file.name not in ("extras.py", "card.py"):  # the card's reader has no densekit yet
            assert "pip install" not in source, file
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "needs_extra":
                if file.name == "tracking.py":  # an extra by the name of each tracker
                    asked |= set(TRACKERS)
                else:
                    assert isinstance(node.args[0], ast.Constant)
                    asked.add(node.args[0].value)
    assert {"hub", "export", "ray"} <= asked <= known
