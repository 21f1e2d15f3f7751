"""The files that `make docs` writes are what it would write."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from densekit.cli.main import app
from densekit.config import Section
from densekit.training.recipe import Recipe
from test_architecture import ROOMS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402 (docs/generate.py)
import rooms  # noqa: E402


def test_the_recipe_reference_is_current() -> None:
    text = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert text == generate.recipe_reference(), "run make docs"


def test_the_paddleclas_keys_are_current() -> None:
    text = (ROOT / "docs" / "paddleclas.md").read_text(encoding="utf-8")
    assert text == generate.paddleclas(text), "run make docs"


def test_the_gates_are_current() -> None:
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    assert text == generate.export(text), "run make docs"
    for file in generate.gates.RESULTS.glob("*.json"):
        kept = file.read_text(encoding="utf-8")
        assert json.loads(kept)["gate"]["passed"], file
        assert not re.search(r'"/|[ =]/\w', kept), f"{file} names a path of a machine"


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


def test_the_architecture_is_current() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert text == generate.architecture(text), "run make docs"


def test_every_room_is_in_the_table_with_what_it_imports() -> None:
    found = rooms.imports()
    files = (ROOT / "src" / "densekit").iterdir()
    there = {f.stem for f in files if f.suffix == ".py" or (f / "__init__.py").exists()}
    assert set(found) == set(rooms.PURPOSES) == there - {"__init__", "__main__"}
    assert "| `cli` | " in rooms.table()
    for room, others in found.items():
        assert others <= {"config", *ROOMS[room].split()}


def test_an_arrow_is_an_import_and_no_way_is_lost() -> None:
    used = {room: others - {"config"} for room, others in rooms.imports().items()}
    arrows = {tuple(line.split(" --> ")) for line in re.findall(r"^  (.*)$", rooms.picture(), re.M)}
    assert all(other in used[room] for room, other in arrows)
    reached = {room: {other for one, other in arrows if one == room} for room in used}
    for room in rooms.in_order(rooms.imports()):
        reached[room] |= set().union(*(reached[other] for other in reached[room]))
        assert used[room] <= reached[room]


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="circle among"):
        rooms.in_order({"a": {"b"}, "b": {"a"}})


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


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_named_files_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(r"`((?:src|tests|docs|benchmarks|ops|training)/[\w/.]+\.\w+)`", text)
    places = (ROOT, ROOT / "src" / "densekit")
    assert [name for name in named if not any((at / name).exists() for at in places)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = {
        command.name or command.callback.__name__.replace("_", "-")
        for command in app.registered_commands
    }
    known |= {str(group.typer_instance.info.name) for group in app.registered_groups}
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    code = "\n".join(
        [*re.findall(r"`([^`\n]+)`", text), *blocks, *re.findall(r"^    (.+)", text, re.M)]
    )
    assert set(re.findall(r"^(?:.*-m )?densekit ([a-z][a-z-]*)", code, re.MULTILINE)) <= known
