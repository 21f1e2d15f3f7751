"""The command line. Each command imports what it needs inside the call, so --help is instant.

stdout carries the result, stderr the rest. Exit codes: 0 done, 1 some rows failed, 2 the user's
mistake, 3 a bug of ours, 75 stopped with the state saved.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    name="densekit",
    help="Train, evaluate and predict with DenseNets.",
    epilog="Start with: densekit train -c quickstart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

STOPPED = 75  # EX_TEMPFAIL: try again and the run goes on

Config = Annotated[
    Optional[str],  # noqa: UP045 (typer on Python 3.10 reads it at run time)
    typer.Option("-c", "--config", metavar="RECIPE", help="A shipped recipe's name, or a file."),
]
Options = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "-o", "--option", metavar="KEY=VALUE",
        help="Overrides one key of the recipe, such as [cyan]-o optim.lr=0.05[/]; repeat it.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Data = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--data", metavar="LIST|FOLDER|builtin:NAME"),
]


@app.command()
def train(
    config: Config = None,
    option: Options = None,
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--data", metavar="FOLDER",
            help="Your own folder of images, one subfolder a class; defaults are picked for it.",
        ),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--model", metavar="NAME", help="Short for -o model.name=NAME."),
    ] = None,
    resume: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--resume", metavar="auto|never|PATH",
            help="Go on from the folder's newest state (auto), or from another run's.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check recipe and data, print both, and stop."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Train a DenseNet.

    [bold]Examples[/]

      densekit train -c quickstart
      densekit train --data ~/pets --model densenet121
      densekit train -c imagenet/densenet121 -o data.root=/imagenet
      torchrun --nproc-per-node=4 -m densekit train -c imagenet/densenet121 -o data.root=/imagenet
    """
    from densekit import distributed, report
    from densekit.plan import make_plan
    from densekit.recipe import load
    from densekit.train import train as run

    suggested = None
    if data is not None:
        from densekit.data.own_folder import suggest

        suggested, reasons = suggest(Path(data).expanduser())
        report.print_suggestions(reasons)
    options = list(option or [])
    options += [f"model.name={model}"] if model else []
    options += [f"loop.resume={resume}"] if resume else []
    recipe = load(config, options, suggested)
    try:
        if dry_run:
            report.print_plan(make_plan(recipe), as_json=json)
            return
        outcome = run(recipe)
        report.print_outcome(outcome, as_json=json)
        if outcome.stopped:
            raise typer.Exit(STOPPED)
    finally:
        distributed.stop()


@app.command()
def models(json: AsJson = False) -> None:
    """List the DenseNets: parameters, multiply-adds, input size."""
    from densekit.report import print_models

    print_models(as_json=json)


@app.command()
def recipes() -> None:
    """List the recipes that come with the package, with what each is for."""
    from densekit.report import print_recipes

    print_recipes()


def main() -> None:
    """The entry point: runs a command and turns what it raises into an exit code."""
    try:
        app()
    except Exception as error:
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """A user's mistake in a sentence; a bug with its traceback."""
    from densekit.config import UserError

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if isinstance(error, UserError):
        if not error.shared or local_rank == 0:
            typer.secho(f"densekit: {error}", err=True, fg="red")
        return 2
    traceback.print_exception(error)
    typer.secho("densekit: this is a bug in densekit, please report it", err=True, fg="red")
    return 3
