"""The files that `make docs` writes are what it would write."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from densekit.config import Section
from densekit.training.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402 (docs/generate.py)


def test_the_recipe_reference_is_current() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert text == generate.recipe_reference(), "run make docs"


def test_the_paddleclas_keys_are_current() -> None:
    text = (ROOT / "docs" / "paddleclas.md").read_text(encoding="utf-8")
    assert text == generate.paddleclas(text), "run make docs"


def test_the_readmes_results_are_current() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == generate.readme(text), "run make docs"
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert text == generate.benchmarks(text), "run make docs"


def options(section: Section, prefix: str = "") -> list[str]:
    """The dotted names of all fields of a section and of those in it."""
    found = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        inner = isinstance(value, Section)
        found += options(value, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return found


def test_the_reference_has_every_option_with_its_default() -> None:
    text = generate.recipe_reference()
    for option in options(Recipe()):
        assert f"| `{option}` | `" in text
    assert "| `loop.epochs` | `90` | whole number from 1 |" in text
    assert "| `optim.head_lr` | `null` | number above 0 or null |" in text
    assert "| `data.augment.crop_scale` | `[0.08, 1.0]` | list: 2 of number above 0 to 1 |" in text


def test_tables_go_between_their_marks() -> None:
    marked = "".join(
        f"before\n<!-- {name} -->\nstale\n<!-- /{name} -->\n" for name in ("lean", "results")
    )
    text = generate.benchmarks(marked + "after\n")
    assert text.startswith("before\n<!-- lean -->\n")
    assert "<!-- /lean -->\nbefore\n<!-- results -->\n" in text
    assert text.endswith("<!-- /results -->\nafter\n")
    assert "stale" not in text
    with pytest.raises(ValueError, match="lacks the lines"):
        generate.readme("no marks\n")
