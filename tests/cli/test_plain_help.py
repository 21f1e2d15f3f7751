"""Each --help says what an option takes in words, on a terminal of 80 columns."""

from __future__ import annotations

import re

import pytest
from typer.core import TyperArgument
from typer.main import get_command
from typer.testing import CliRunner

from densekit.cli.main import app

GROUP = get_command(app)
NAMES = [[name] for name in GROUP.commands if name != "data"]  # type: ignore[attr-defined]
NAMES += [[], ["data"], *(["data", name] for name in ("check", "bench", "pack"))]


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_help_names_no_type(names: list[str]) -> None:
    found = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert found.exit_code == 0, found.exception
    assert "--help" in found.output
    if hasattr(TyperArgument, "display_type_rich"):  # an older typer types its arguments
        assert not re.search(r"<[a-z\[\] ]+>|\b(BOOLEAN|INTEGER|TEXT|FLOAT)\b", found.output)
