"""The command line. Each command imports what it needs inside the call, so --help is instant.

stdout carries the result, stderr the rest. Exit codes: 0 done, 1 some rows failed, 2 the user's
mistake, 3 a bug of ours or another rank's failure, 75 stopped with the state saved.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback

import typer

from densekit.cli import (
    bench,
    catalog,
    compare,
    convert,
    data,
    evaluate,
    explain,
    export,
    lr_find,
    predict,
    push,
    serve,
    train,
)
from densekit.cli.plain_help import PlainCommand, PlainGroup

app = typer.Typer(
    name="densekit",
    cls=PlainGroup,
    help="Train, evaluate, predict with, export and serve DenseNets.",
    epilog="Start with: densekit train -c quickstart",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    train.train,
    lr_find.lr_find,
    evaluate.evaluate,
    predict.predict,
    explain.explain,
    export.export,
    serve.serve,
    push.push,
    convert.translate,
    convert.convert,
    bench.bench,
    catalog.models,
    catalog.recipes,
):
    app.command(cls=PlainCommand)(command)
app.command("compare", cls=PlainCommand)(compare.compare_runs)
app.add_typer(data.data_app)


class Unwritable(Exception):  # noqa: N818 (named for what is wrong)
    """stdout cannot be written: a full disk, or a closed pipe."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout cannot be written: {error.strerror}")
        self.reader_gone = isinstance(error, BrokenPipeError)


class Stdout(io.TextIOWrapper):
    """stdout whose write errors are told from those of other files.

    Characters that its encoding lacks are escaped.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise Unwritable(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise Unwritable(error) from error


def main() -> None:
    """The entry point: runs a command and turns exceptions into exit codes."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        encoding, tty = sys.stdout.encoding, sys.stdout.isatty()
        sys.stdout = Stdout(sys.stdout.detach(), encoding, "backslashreplace", line_buffering=tty)
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:  # which a shell may have closed
                sys.stdout.flush()
    except Exception as error:
        sys.exit(told(error))


def told(error: Exception) -> int:
    """Prints a user's mistake as a sentence, a bug with its traceback; returns the exit code."""
    from densekit.config import UserError
    from densekit.distributed.failures import PeerFailed

    first_rank = os.environ.get("LOCAL_RANK", "0") == "0"
    if isinstance(error, UserError):
        if not error.shared or first_rank:
            typer.secho(f"densekit: {error}", err=True, fg="red")
        return 2
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = os.fsdecode(error.filename or "")[:40]
        typer.secho(f"densekit: {name}...: a path too long for any disk", err=True, fg="red")
        return 2
    if isinstance(error, PeerFailed):
        typer.secho(f"densekit: {error}", err=True, fg="red")
        return 3
    if isinstance(error, Unwritable):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left as it ends
        if error.reader_gone:  # `head` has seen enough
            return 0
        typer.secho(f"densekit: {error}", err=True, fg="red")
        return 2
    traceback.print_exception(error)
    typer.secho("densekit: this is a bug in densekit, please report it", err=True, fg="red")
    return 3
