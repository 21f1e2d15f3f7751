"""Printing: results on stdout, as tables or JSON; everything else on stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def is_printing() -> bool:
    """Whether this process is the rank that prints (without importing torch)."""
    return os.environ.get("RANK", "0") == "0"


def new_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table with these columns; those in `right` are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def show(table: Table | str) -> None:
    """Prints a table or a line, on rank 0."""
    if is_printing():
        Console(highlight=False).print(table, soft_wrap=isinstance(table, str), markup=False)


def show_json(value: Any) -> None:
    """Prints JSON, on rank 0."""
    if is_printing():
        print(json.dumps(value, indent=2))


def show_notes(notes: Sequence[str]) -> None:
    """Prints notes on stderr."""
    if is_printing():
        console = Console(stderr=True, highlight=False)
        for note in notes:
            console.print(note, markup=False, soft_wrap=True)


def number(value: float | None) -> str:
    """Four decimals, or a dash for None."""
    return "-" if value is None else f"{value:.4f}"
