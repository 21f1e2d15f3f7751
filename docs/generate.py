"""What `make docs` runs: writes docs/recipe.md, and the tables in the other pages.

python docs/generate.py          writes all
python docs/generate.py --check  exit 1 where a file is not what would be written
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import rooms  # noqa: E402 (docs/rooms.py)

import gates  # noqa: E402 (benchmarks/gates.py)
import row_tables  # noqa: E402 (benchmarks/row_tables.py)
import rows  # noqa: E402 (benchmarks/rows.py)
from densekit.config import Section, to_yaml  # noqa: E402
from densekit.config.applies import marks  # noqa: E402
from densekit.models.densenet import DenseNetConfig  # noqa: E402
from densekit.paddleclas.keys import KEYS, OPERATIONS, PLACES, TheirKey  # noqa: E402
from densekit.training.recipe import Recipe  # noqa: E402

HEAD = """# Recipe options

Every option of a recipe, by its name in YAML and on the command line
(`densekit train -c RECIPE -o optim.lr=0.05`). `make docs` writes this file from the sections'
own fields: change those, not this.
"""


# docs/recipe.md -----------------------------------------------------------------------------


def recipe_reference() -> str:
    """A table for each section of Recipe, and one for what model.overrides may hold."""
    parts = [HEAD, *_tables("", Recipe, depth=1)]
    after = next(i for i, part in enumerate(parts) if part.startswith("## model\n")) + 1
    overrides = (
        "### model.overrides\n\nThe fields of an architecture; defaults are densenet121's."
        f"\n\n{_table('', DenseNetConfig)}"
    )
    return "\n".join([*parts[:after], overrides, *parts[after:]])


def _tables(prefix: str, section: type[Section], depth: int) -> Iterator[str]:
    """The table of a section's own fields, then those of the sections in it, a heading deeper."""
    below = {
        name: field.annotation
        for name, field in section.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
    head = f"{'#' * depth} {prefix[:-1]}\n\n{inspect.getdoc(section)}\n\n" if prefix else ""
    yield head + _table(prefix, section, skip=below)
    for name, inner in below.items():
        yield from _tables(f"{prefix}{name}.", inner, depth + 1)


def _table(prefix: str, section: type[Section], skip: Container[str] = ()) -> str:
    lines = ["| Option | Default | Values | Meaning |", "|---|---|---|---|"]
    schema = section.model_json_schema()
    for name, field in section.model_fields.items():
        if name not in skip:
            values = _values(schema["properties"][name], schema.get("$defs", {}))
            default = _yaml(field.get_default(call_default_factory=True))
            meaning = " ".join((field.description or "").split())
            assert meaning, f"{section.__name__}.{name} has no docstring"
            needs = ", or with ".join(mark.describe(prefix) for mark in marks(section, name))
            meaning += f" Only with {needs}." if needs else ""
            cells = (f"`{prefix}{name}`", f"`{default}`", values, meaning)
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Without what Markdown takes for a column's end or a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _yaml(value: Any) -> str:
    """As one writes it in a recipe."""
    return to_yaml({"x": value}).removeprefix("x:").strip()


NAMES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}
BOUNDS = {
    "minimum": "from {}", "exclusiveMinimum": "above {}",
    "maximum": "to {}", "exclusiveMaximum": "below {}",
}  # fmt: skip


def _values(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    """What a field takes, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_values(choice, defs) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(_yaml(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "null":
        return "null"
    if schema.get("type") == "array":
        items = schema.get("prefixItems", [schema.get("items", {})])
        kinds = dict.fromkeys(_values(item, defs) for item in items)
        count = f"{len(items)} of " if "prefixItems" in schema else ""
        return f"list: {count}" + "; ".join(kinds)
    if schema.get("type") == "object":
        return "map"
    bounds = [text.format(_yaml(schema[key])) for key, text in BOUNDS.items() if key in schema]
    return " ".join([NAMES[schema["type"]], *bounds])


# Tables between marks -----------------------------------------------------------------------


def readme(text: str) -> str:
    """`text` with the five lines of results. Raises ValueError without the marks."""
    return _between(text, "results", row_tables.summary_markdown(rows.read()))


def benchmarks(text: str) -> str:
    """`text` with the newest rows between the marks. Raises ValueError without them."""
    measured = rows.read()
    text = _between(text, "lean", row_tables.lean_markdown(measured))
    return _between(text, "results", row_tables.markdown(measured))


def export(text: str) -> str:
    """`text` with the gates between the marks. Raises ValueError without them."""
    return _between(text, "gates", gates.markdown())


def architecture(text: str) -> str:
    """`text` with the rooms and their picture between the marks. Raises ValueError without them."""
    text = _between(text, "rooms", rooms.table())
    return _between(text, "picture", rooms.picture())


def paddleclas(text: str) -> str:
    """`text` with every key of PaddleClas' between the marks. Raises ValueError without them."""
    tables = [_keys("", [key for path, key in KEYS.items() if not path.startswith(PLACES)])]
    tables.append(_keys("Below transform_ops and Infer.transforms:\n\n", OPERATIONS))
    return _between(text, "keys", "\n".join(tables))


def _keys(head: str, keys: Iterable[TheirKey]) -> str:
    cells = ((f"`{key.path}`", key.kind, key.says) for key in keys)
    lines = ["| Key | | |", "|---|---|---|"]
    return (
        head + "\n".join([*lines, *("| " + " | ".join(map(_cell, c)) + " |" for c in cells)]) + "\n"
    )


def _between(text: str, name: str, content: str) -> str:
    start, stop = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, mark, rest = text.partition(start)
    _, end, after = rest.partition(stop)
    if not mark or not end:
        raise ValueError(f"the text lacks the lines {start.strip()} and {stop}")
    return f"{before}{start}{content}{stop}{after}"


def main() -> None:
    made = {ROOT / "docs" / "recipe.md": recipe_reference()}
    for name, fill in (
        ("docs/architecture.md", architecture),
        ("docs/paddleclas.md", paddleclas),
        ("docs/export.md", export),
        ("README.md", readme),
        ("benchmarks/README.md", benchmarks),
    ):
        file = ROOT / name
        made[file] = fill(file.read_text(encoding="utf-8"))
    for file, text in made.items():
        current = file.exists() and file.read_text(encoding="utf-8") == text
        if "--check" in sys.argv and not current:
            sys.exit(f"{file.relative_to(ROOT)} is not current: run make docs")
        if not current:
            file.write_text(text, encoding="utf-8")
            print(f"wrote {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
