"""`densekit lr-find`, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from densekit.cli.options import AsJson, Config, Options, OwnFolder, ShortModel
from densekit.cli.output import show, show_json, show_notes


def lr_find(
    config: Config = None,
    option: Options = None,
    data: OwnFolder = None,
    model: ShortModel = None,
    lowest: Annotated[float, typer.Option("--from", metavar="RATE", help="The first rate.")] = 1e-6,
    highest: Annotated[float, typer.Option("--to", metavar="RATE", help="The last rate.")] = 1.0,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=2, help="Optimizer steps at most.")
    ] = 100,
    plot: Annotated[Path, typer.Option("--plot", metavar="FILE.png", help="The plot.")] = Path(
        "lr-find.png"
    ),
    json: AsJson = False,
) -> None:
    """Suggest a learning rate: a short sweep from low to high.

    Takes the options of `densekit train`, trains the same network on the same
    batches at a rate that rises from step to step until the loss grows, and keeps
    only a plot. The suggestion is a tenth of the rate at which the smoothed loss
    is lowest.

    [bold]Examples[/]

      densekit lr-find -c quickstart
      densekit lr-find --data ~/pets --model densenet121 -o model.pretrained=torchvision
    """
    from densekit import distributed
    from densekit.config import UserError
    from densekit.paddleclas.open import open_recipe
    from densekit.training import lr_find as find

    if plot.exists():
        raise UserError(f"--plot {plot}: exists already; name another, or remove it")
    options = [*(option or []), *([f"model.name={model}"] if model else [])]
    with distributed.session():
        opened = open_recipe(config, options, folder=data)
        show_notes(opened.notes)
        found = find.sweep_rates(opened.recipe, lowest, highest, steps)
        if distributed.is_main():
            find.draw_sweep(found, plot)
    if json:
        show_json(
            {
                "lr": found.suggestion,
                "rule": find.RULE,
                "rates": found.rates,
                "losses": found.losses,
                "smoothed": found.smoothed,
                "plot": str(plot),
                "warnings": found.notes,
            }
        )
        return
    show_notes(found.notes)
    show(f"-o optim.lr={found.suggestion:.2g}")
    show(f"{find.RULE}, in {len(found.rates)} steps; plotted in {plot}")
