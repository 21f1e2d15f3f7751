"""The command line. Each command imports what it needs inside the call, so --help is instant.

stdout carries the result, stderr the rest. Exit codes: 0 done, 1 some rows failed, 2 the user's
mistake, 3 a bug of ours or another rank's failure, 75 stopped with the state saved.
"""

from __future__ import annotations

import io
import os
import sys
import traceback

import typer

from densekit.cli import bench, catalog, convert, evaluate, predict, train

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
for command in (
    train.train,
    evaluate.evaluate,
    predict.predict,
    convert.translate,
    convert.convert,
    bench.bench,
    catalog.models,
    catalog.recipes,
):
    app.command()(command)


def main() -> None:
    """The entry point: runs a command and turns what it raises into an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that its encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except Exception as error:
        sys.exit(_explain(error))


def _explain(error: Exception) -> int:
    """A user's mistake in a sentence; a bug with its traceback."""
    from densekit.config import UserError
    from densekit.distributed.failures import PeerFailed

    first_rank = os.environ.get("LOCAL_RANK", "0") == "0"
    if isinstance(error, UserError):
        if not error.shared or first_rank:
            typer.secho(f"densekit: {error}", err=True, fg="red")
        return 2
    if isinstance(error, PeerFailed):
        typer.secho(f"densekit: {error}", err=True, fg="red")
        return 3
    traceback.print_exception(error)
    typer.secho("densekit: this is a bug in densekit, please report it", err=True, fg="red")
    return 3
