"""Keys that were renamed: the old name is read wherever a user wrote it, and said."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from densekit.config import ConfigSource, Section, UserError, build, override, read_yaml, rename


class Inner(Section):
    renamed: ClassVar[dict[str, str]] = {"speed": "rate"}
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2, 3)


class Outer(Section):
    renamed: ClassVar[dict[str, str]] = {"sizes": "inner.sizes"}
    name: str = "x"
    inner: Inner = Inner()


def yaml(text: str) -> ConfigSource:
    return read_yaml(Path("r.yaml"), text)


def test_a_file_with_old_names() -> None:
    source = rename(Outer, yaml("sizes: [4]\ninner: {speed: 0.5}\n"))
    assert source.tree == {"inner": {"sizes": [4], "rate": 0.5}}
    assert source.notes == (
        "r.yaml:1: sizes is now inner.sizes; the old name works for this version",
        "r.yaml:2: inner.speed is now inner.rate; the old name works for this version",
    )
    assert rename(Outer, source).notes == source.notes, "said once"
    assert build(Outer, yaml("sizes: [4]")).inner.sizes == (4,)
    with pytest.raises(UserError, match=r"r\.yaml:1: inner\.sizes\.0: expected a valid integer"):
        build(Outer, yaml("sizes: [x]"))


def test_an_option_with_an_old_name_wins_as_the_new_one_does() -> None:
    defaults = ConfigSource(Outer().model_dump())
    for option in ("sizes.1=9", "inner.sizes.1=9"):
        assert build(Outer, override(defaults, [option], Outer)).inner.sizes == (1, 9, 3)
    said = override(defaults, ["sizes=[5]"], Outer).notes
    assert said == ("-o sizes=[5]: sizes is now inner.sizes; the old name works for this version",)
    whole = override(defaults, ["inner={speed: 3}"], Outer)
    assert build(Outer, whole).inner.rate == 3
    assert len(whole.notes) == 1
    assert build(
        Outer, override(ConfigSource({}), ["sizes=[1]", "sizes=[2]"], Outer)
    ).inner.sizes == (2,)
    with pytest.raises(UserError, match=r"^-o sizes=\[x\]: expected a valid integer"):
        build(Outer, override(defaults, ["sizes=[x]"], Outer))


def test_both_names_with_two_values_are_refused() -> None:
    with pytest.raises(UserError, match=r"r\.yaml:1: sizes is now inner\.sizes, .*r\.yaml:2"):
        rename(Outer, yaml("sizes: [4]\ninner: {sizes: [5]}\n"))
    assert rename(Outer, yaml("sizes: [4]\ninner: {sizes: [4]}\n")).tree["inner"] == {"sizes": [4]}
    with pytest.raises(UserError, match=r"-o sizes=\[4\] and -o inner\.sizes=\[5\] set one option"):
        override(ConfigSource({}), ["sizes=[4]", "inner.sizes=[5]"], Outer)
    override(ConfigSource({}), ["sizes=[4]", "inner.sizes=[4]"], Outer)


def test_a_section_that_is_no_map_is_said_as_ever() -> None:
    with pytest.raises(UserError, match=r"r\.yaml:1: inner: expected"):
        build(Outer, yaml("inner: 3"))
    with pytest.raises(UserError, match=r'"sizes" stands below a plain value, 3'):
        build(Outer, yaml("sizes: [4]\ninner: 3\n"))
