"""The shipped file on the disk, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from shipped import DENSENET121


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DenseNet121.yaml").write_text(DENSENET121)
    return "DenseNet121.yaml"
