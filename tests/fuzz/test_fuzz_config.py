"""YAML files and options, densekit's own and PaddleClas', of any content."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shipped import DENSENET121

from densekit.config import (
    ConfigSource,
    Layers,
    Section,
    UserError,
    assemble,
    dotted,
    merge,
    read_yaml,
    to_yaml,
)
from densekit.paddleclas import translate
from densekit.paddleclas.keys import KEYS
from densekit.training.recipe import Recipe, shipped
from densekit.training.recipe_checks import check

PATIENCE = 20.0  # seconds for one example, on a machine that does other things too


def keys(section: type[Section], at: tuple[str, ...] = ()) -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        below = field.annotation
        if isinstance(below, type) and issubclass(below, Section):
            found += keys(below, (*at, name))
        found.append(dotted((*at, name)))
    return found


LINES = [line for file in shipped().values() for line in file.read_text().splitlines()]
PIECES = [
    "&a", "*a", "- ", "[", "]", "{", "}", ": ", "? ", "| ", "> ", "'", '"', "#", "!!int ", "!!set ",
    "!!python/name:os.system ", "<<: ", "---\n", "...\n", "%YAML 1.1\n", "\t", "\n", "\r\n", "  ",
    "~", "null", "9" * 5000, "1e999", ".nan", "-.inf", "\0", "\ufeff", "\u2028",
    "0x", "é", "\udce9",
    "a: &a [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n", "[" * 200, "{a: " * 200,
]  # fmt: skip
texts = st.one_of(
    st.text(),
    st.lists(st.sampled_from(LINES), max_size=30).map("\n".join),
    st.lists(st.sampled_from(PIECES) | st.sampled_from(LINES) | st.text(max_size=5), max_size=30)
    .map("".join),
)  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["~", "~nobody/x", "a\0b", "x" * 300, "../..", "auto", "1e-4", "0", -1, 10**9,
                     10**400, "é\udce9", "builtin:x", "https://x", "[", "*a"]),
)  # fmt: skip
values: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner)
)


def as_written(value: Any) -> str:
    return to_yaml({"x": value}).removeprefix("x:").strip()


options = st.one_of(
    st.text(max_size=30),
    st.builds(
        "{}{}={}".format,
        st.sampled_from(keys(Recipe)),
        st.sampled_from(["", ".0", ".x", ".10000000000000000000000", "..", "."]),
        values.map(as_written) | st.sampled_from(PIECES) | st.text(max_size=10),
    ),
)


def described(read: Callable[[], Recipe]) -> Recipe | UserError:
    """What came of `read`, which must end soon; any other error than the user's fails the test."""
    began = time.monotonic()
    try:
        recipe = read()
        check(recipe)
        return recipe
    except UserError as refusal:
        return refusal
    finally:
        assert time.monotonic() - began < PATIENCE


def rewritten(recipe: Recipe) -> Recipe:
    """Read again from the file that a run would keep of it."""
    text = to_yaml(recipe.model_dump(mode="json"))
    return assemble(Recipe, Layers(source=read_yaml(Path("recipe.yaml"), text)))[0]


@given(text=texts)
def test_any_file_is_a_recipe_or_refused(text: str) -> None:
    def read() -> Recipe:
        return assemble(Recipe, Layers(source=read_yaml(Path("fuzz.yaml"), text)))[0]

    found = described(read)
    assert found == rewritten(found) if isinstance(found, Recipe) else "fuzz.yaml" in str(found)


@given(content=st.binary() | texts.map(lambda text: text.encode("utf-8", "surrogateescape")))
def test_any_bytes_of_a_file(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "bytes.yaml"
    file.write_bytes(content)
    described(lambda: assemble(Recipe, Layers(source=read_yaml(file)))[0])
    with contextlib.suppress(UserError):
        translate.recognises(str(file))


@given(given=st.lists(options, max_size=4), name=st.sampled_from(sorted(shipped())))
def test_any_options_are_a_recipe_or_refused(given: list[str], name: str) -> None:
    source = read_yaml(shipped()[name])
    found = described(lambda: assemble(Recipe, Layers(source=source, options=given))[0])
    assert found == rewritten(found) if isinstance(found, Recipe) else str(found)


@given(tree=st.dictionaries(st.sampled_from(keys(Recipe)), values, max_size=6))
def test_any_values_in_a_file(tree: dict[str, Any]) -> None:
    whole: dict[str, Any] = {}
    for key, value in tree.items():
        below: Any = value
        for part in reversed(key.split(".")):
            below = {part: below}
        whole = merge(whole, below)
    found = described(lambda: assemble(Recipe, Layers(source=ConfigSource(whole)))[0])
    assert found == rewritten(found) if isinstance(found, Recipe) else str(found)


theirs = st.one_of(
    options,
    st.builds(
        "{}={}".format,
        st.sampled_from(sorted(KEYS)).map(lambda path: path.replace("*", "0")),
        values.map(as_written) | st.sampled_from([*PIECES, "None", "True", "1/0", "1.0/255.0"]),
    ),
    st.builds("{}=null".format, st.sampled_from(sorted(KEYS)).map(lambda p: p.replace("*", "1"))),
)


@given(given=st.lists(theirs, max_size=4), processes=st.integers(1, 9))
def test_any_options_of_a_paddleclas_file(
    given: list[str], processes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "DenseNet121.yaml"
    file.write_text(DENSENET121)
    found = described(lambda: translate.translate_file(str(file), given, processes).recipe)
    assert found == rewritten(found) if isinstance(found, Recipe) else str(found)


@given(data=st.data())
def test_a_paddleclas_file_with_any_changes(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = DENSENET121.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        change = data.draw(st.sampled_from(["drop", "twice", "cut", "piece", "value"]))
        if change == "drop":
            lines[at] = ""
        elif change == "twice":
            lines[at] = f"{lines[at]}\n{lines[at]}"
        elif change == "cut":
            lines[at] = lines[at][: data.draw(st.integers(0, 30))]
        elif change == "piece":
            lines[at] += data.draw(st.sampled_from(PIECES).filter(lambda p: "\udce9" not in p))
        else:
            key = lines[at].partition(":")[0]
            lines[at] = f"{key}: {as_written(data.draw(values))}"
    file = tmp_path_factory.getbasetemp() / "DenseNet121.yaml"
    file.write_text("\n".join(lines), encoding="utf-8")
    found = described(lambda: translate.translate_file(str(file), [], 4).recipe)
    assert found == rewritten(found) if isinstance(found, Recipe) else str(found)
