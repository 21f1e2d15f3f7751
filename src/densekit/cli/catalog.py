"""`densekit models` and `densekit recipes`."""

from __future__ import annotations

from dataclasses import asdict

from densekit.cli.options import AsJson
from densekit.cli.output import new_table, show, show_json


def models(json: AsJson = False) -> None:
    """List the DenseNets: parameters, multiply-adds, input size."""
    from densekit.models import variants

    rows = [variants.describe_variant(name, config) for name, config in variants.VARIANTS.items()]
    if json:
        show_json([asdict(row) for row in rows])
        return
    columns = ("Model", "Parameters", "Multiply-adds", "Input", "Classes")
    table = new_table(*columns, right=columns[1:])
    for row in rows:
        table.add_row(
            row.name,
            f"{row.parameters:,}",
            f"{row.multiply_adds / 1e9:.2f} G",
            f"{row.image_size} x {row.image_size}",
            f"{row.num_classes:,}",
        )
    show(table)
    show("also any densenet_L_k and densenet_bc_L_k: depth L, growth rate k")


def recipes() -> None:
    """List the recipes that come with the package, and what each trains."""
    from densekit.training.recipe import shipped

    table = new_table("Recipe", "What it trains")
    for name, file in shipped().items():
        table.add_row(name, file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# "))
    show(table)
