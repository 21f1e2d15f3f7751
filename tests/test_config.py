from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import (
    ConfigSource,
    Section,
    UserError,
    build,
    merge,
    override,
    parse_override,
    read_yaml,
    to_yaml,
)


class Inner(Section):
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2, 3)
    workers: int | str = 1


class Outer(Section):
    name: str = "x"
    inner: Inner = Inner()


def yaml(text: str) -> ConfigSource:
    return read_yaml(Path("r.yaml"), text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("5E3", 5000.0), (".5", 0.5), ("-.inf", float("-inf")), ("1_000", "1_000"),
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("true", True), ("True", True),
        ("FALSE", False), ("null", None), ("~", None), ("", None),
        ("0o17", 15), ("0x1F", 31), ("017", 17),
        ("12:30", "12:30"), ("2024-01-01", "2024-01-01"), ("'1'", "1"),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
        ("{a: {b: no}}", {"a": {"b": "no"}}), ("a=b=c", "a=b=c"),
    ],
)  # fmt: skip
def test_values_are_the_core_schemas(text: str, value: object) -> None:
    path, got = parse_override(f"a.b={text}")
    assert path == ("a", "b")
    assert got == value
    assert type(got) is type(value)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(min_size=1), inner),
)


@given(st.dictionaries(st.text(min_size=1), values))
def test_what_is_written_is_read_back(tree: dict) -> None:
    assert yaml(to_yaml(tree)).tree == tree


def test_nothing_is_evaluated_or_constructed() -> None:
    assert parse_override("a=__import__('os').getcwd()")[1] == "__import__('os').getcwd()"
    with pytest.raises(UserError, match="could not determine a constructor"):
        yaml("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(UserError, match="not a YAML value"):
        parse_override("a=!!python/name:os.system ")
    assert parse_override("a=${HOME}")[1] == "${HOME}"


@given(st.text())
def test_any_option_is_read_or_refused_in_a_sentence(text: str) -> None:
    with contextlib.suppress(UserError):
        override(ConfigSource(Outer().model_dump()), [text])


def test_an_override_addresses_list_items_and_leaves_its_source_alone() -> None:
    source = ConfigSource(Outer().model_dump())
    changed = build(Outer, override(source, ["inner.sizes.1=9", "name=a=b"]))
    assert changed.inner.sizes == (1, 9, 3)
    assert changed.name == "a=b"
    assert build(Outer, source) == Outer()
    with pytest.raises(UserError, match=r'-o inner.sizes.3=1: "3" must be an index from 0 to 2'):
        override(source, ["inner.sizes.3=1"])
    with pytest.raises(UserError, match=r"stands below a plain value"):
        override(source, ["name.x=1"])


def test_an_unknown_key_names_the_option_and_the_nearest_key() -> None:
    with pytest.raises(UserError) as caught:
        build(Outer, override(ConfigSource({}), ["inner.rat=1"]))
    assert str(caught.value) == '-o inner.rat=1: unknown key "rat"; did you mean "rate"?'


def test_mistakes_in_a_file_name_its_line_all_of_them() -> None:
    text = "name: a\ninner:\n  rate: fast\n  sizzes: [1]\n"
    with pytest.raises(UserError) as caught:
        build(Outer, yaml(text))
    first, second = str(caught.value).splitlines()
    assert first.startswith("r.yaml:3: inner.rate: ")
    assert "'fast'" in first
    assert second == 'r.yaml:4: inner.sizzes: unknown key "sizzes"; did you mean "sizes"?'


def test_a_value_of_no_type_of_a_union_gets_one_sentence() -> None:
    with pytest.raises(UserError) as caught:
        build(Outer, override(ConfigSource({}), ["inner.workers=[1]"]))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith("-o inner.workers=[1]: ")


@pytest.mark.parametrize(
    ("text", "place"),
    [("a: [1", "r.yaml:1"), ("a: 1\na: 2\n", "r.yaml:2"), ("- 1\n", "r.yaml:1"),
     ("a:\n\tb", "r.yaml:2")],
)  # fmt: skip
def test_bad_yaml_names_the_line(text: str, place: str) -> None:
    with pytest.raises(UserError, match=f"^{place}: "):
        yaml(text)


BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
CHAIN = "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [*a]\n", "r.yaml:1: the anchor a refers to itself"),
        ("name: x\na: &a\n  b: {c: *a}\n", "r.yaml:3: the anchor a refers to itself"),
        ("a: " + "[" * 3000, "r.yaml:1: values nested more than 50 deep"),
        ("a: " + "{b: " * 3000, "r.yaml:1: values nested more than 50 deep"),
        (f"a0: &a0 [x]\n{CHAIN}", "r.yaml:50: values nested more than 50 deep"),
        (f"a0: &a0 [x]\n{BOMB}", "r.yaml:6: more than 100,000 values, aliases unfolded"),
        ("a: x\nb: y\0\n", "r.yaml:2: holds the character '\\x00', which text may not"),
        ("a: x\n\nb: " + "9" * 5000, f"r.yaml:3: '{'9' * 37}...' is no whole number"),
        ("a: !!int x", "r.yaml:1: 'x' is no whole number"),
        ("a: !!float x", "r.yaml:1: 'x' is no number"),
        ("a: !!bool maybe", "r.yaml:1: 'maybe' is neither true nor false"),
        ("a: !!timestamp x", "r.yaml:1: could not determine a constructor for the tag "
         "'tag:yaml.org,2002:timestamp'"),
        ("? [1, 2]\n: x\n", "r.yaml:1: a key must be text, not a list or a map"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: expected a single document in the stream, but found "
         "another document"),
        ("a: *b\n", "r.yaml:1: found undefined alias 'b'"),
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_a_document_that_leads_nowhere_is_a_sentence(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        yaml(text)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "value", ["&a [*a]", "[" * 3000, "{b: " * 3000, "9" * 5000, "\0", "!!int x"]
)
def test_so_is_an_option(value: str) -> None:
    with pytest.raises(UserError, match="not a YAML value") as caught:
        parse_override(f"inner.rate={value}")
    assert "-o inner.rate=" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_an_alias_stands_for_its_value() -> None:
    assert yaml("a: &a [1, {b: 2}]\nc: *a\nd: [*a, *a]\n").tree["d"] == [[1, {"b": 2}]] * 2


def test_keys_are_text() -> None:
    assert yaml("1: x\ntrue: y\nnull: z\n").tree == {"1": "x", "true": "y", "null": "z"}


def test_an_option_may_hold_a_path_of_another_encoding() -> None:
    assert parse_override("data.train=/x/caf\udce9")[1] == "/x/caf\udce9"
    assert yaml(to_yaml({"a": "/x/caf\udce9"})).tree == {"a": "/x/caf\udce9"}


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")


def test_an_option_without_a_value_is_refused() -> None:
    for option in ("a", "=1", ".a=1", "a..b=1"):
        with pytest.raises(UserError, match=r"expected key\.key=value"):
            parse_override(option)


def test_merge_goes_into_mappings_and_replaces_lists() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merge(base, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}, "d": 1}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


def test_numbers_are_finite() -> None:
    for value in (".inf", "-.inf", ".nan"):
        with pytest.raises(UserError, match=f"-o inner.rate={value}: expected a finite number"):
            build(Outer, override(ConfigSource({}), [f"inner.rate={value}"]))


def test_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().name = "y"
