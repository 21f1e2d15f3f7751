"""Options that name a file or folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from densekit.config import ConfigSource, PathText, Section, UserError, build, override


class Place(Section):
    folder: PathText | None = None


def place(value: str) -> str | None:
    return build(Place, override(ConfigSource({}), [f"folder={value}"])).folder


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("~/data/train") == str(tmp_path / "data/train")
    assert place('"~"') == str(tmp_path)
    assert build(Place, ConfigSource({"folder": "~/x"})).folder == str(tmp_path / "x")
    for other in ("a/~/b", "builtin:mnist5k", "https://x.org/~me/w.pth", "./~x", "runs/x/"):
        assert place(other) == other
    assert place("~") is None  # YAML's null
    with pytest.raises(UserError, match="there is no home folder for '~nobody-here/x'"):
        place("~nobody-here/x")


@pytest.mark.parametrize("value", ['"a\\0b"', "x" * 300, "a/" + "x" * 300, "x/" * 3000])
def test_what_no_disk_takes_is_a_sentence(value: str) -> None:
    with pytest.raises(UserError, match=r"^-o folder=.*: a path (cannot|too long)") as caught:
        place(value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_address_may_be_longer_than_a_name() -> None:
    assert place("https://x.org/" + "x" * 300)
