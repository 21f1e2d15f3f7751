"""The command line. Each command imports what it needs inside the call, so --help is instant.

stdout carries the result, stderr the rest. Exit codes: 0 done, 1 some rows failed, 2 the user's
mistake, 3 a bug of ours or another rank's failure, 75 stopped with the state saved.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from densekit.source import Opened

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
        "-o",
        "--option",
        metavar="KEY=VALUE",
        help="Overrides one key of the recipe, such as [cyan]-o optim.lr=0.05[/]; repeat it.",
    ),
]
Source = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(metavar="SOURCE", help="An artifact, a run, or weights (--model)."),
]
ModelName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", metavar="NAME", help="What a .pth or .safetensors file is of."),
]
Classes = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--classes", metavar="FILE", help="`label name` lines, for such a file."),
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|mps")]
PrecisionName = Annotated[str, typer.Option("--precision", metavar="fp32|bf16|fp16")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
def train(
    config: Config = None,
    option: Options = None,
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--data",
            metavar="FOLDER",
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
            "--resume",
            metavar="auto|never|PATH",
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
    from densekit.data.own_folder import suggest
    from densekit.plan import make_plan
    from densekit.recipe import load
    from densekit.train import train as run

    options = list(option or [])
    options += [f"model.name={model}"] if model else []
    options += [f"loop.resume={resume}"] if resume else []
    with distributed.session():
        suggested = None
        if data is not None:
            suggested, reasons = suggest(Path(data).expanduser())
            report.print_notes(reasons)
        recipe = load(config, options, suggested)
        if dry_run:
            report.print_plan(make_plan(recipe), as_json=json)
            return
        outcome = run(recipe)
        report.print_outcome(outcome, as_json=json)
    if outcome.stopped:
        raise typer.Exit(STOPPED)


@app.command()
def evaluate(
    source: Source = None,
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--data",
            metavar="LIST|FOLDER|builtin:NAME",
            help="The images; without it, the validation images of the training.",
        ),
    ] = None,
    model: ModelName = None,
    classes: Classes = None,
    config: Config = None,
    option: Options = None,
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--batch-size", min=1, help="Images per batch; each is one rank's."),
    ] = None,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--workers", min=0, help="Loader processes per rank."),
    ] = None,
    device: Device = "auto",
    precision: PrecisionName = "fp32",
    json: AsJson = False,
) -> None:
    """Evaluate a network: top-1, top-5, loss, calibration, confusion, per class.

    [bold]Examples[/]

      densekit evaluate runs/quickstart/best
      densekit evaluate densenet121.pth --model densenet121 --data /imagenet/val_list.txt
      torchrun --nproc-per-node=4 -m densekit evaluate runs/pets/best --json
    """
    from densekit import distributed, report
    from densekit.evaluate import evaluate_source
    from densekit.precision import resolve

    with distributed.session():
        formats = resolve(device, precision, local_rank=distributed.local_rank())
        distributed.start(formats.device)
        distributed.set_threads()
        opened = distributed.on_every_rank(
            lambda: _open(source, model, classes, config, option or [])
        )
        report.print_notes(opened.notes)
        found = evaluate_source(
            opened, formats, data, batch_size, "auto" if workers is None else workers
        )
        report.print_evaluation(found, as_json=json)


@app.command()
def predict(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="An artifact, a run, or weights (--model).")
    ],
    files: Annotated[
        list[str], typer.Argument(metavar="FILES_OR_FOLDERS...", help="Images, or folders of them.")
    ],
    topk: Annotated[int, typer.Option("--topk", min=1, help="Answers per image.")] = 5,
    model: ModelName = None,
    classes: Classes = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at once.")] = 32,
    device: Device = "auto",
    precision: PrecisionName = "fp32",
    json: AsJson = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.")] = False,
) -> None:
    """Predict the classes of images: one row per file, in order; exit 1 if some are unreadable.

    [bold]Examples[/]

      densekit predict runs/pets/best photo.jpg more-photos/
      densekit predict runs/pets/best photos/ --topk 3 --csv > answers.csv
    """
    from densekit import report
    from densekit.config import UserError
    from densekit.display import bar
    from densekit.precision import keep_freed_memory, resolve
    from densekit.predict import Classifier, expand, write_csv, write_json, write_text

    if json and csv:
        raise UserError("--json and --csv: choose one")
    keep_freed_memory()
    opened = _open(source, model, classes, None, [])
    report.print_notes(opened.notes)
    classifier = Classifier(opened, resolve(device, precision))
    images = expand(files)
    rows = bar(classifier.rows(images, topk, batch_size), len(images), "predicting")
    if csv:
        failed = write_csv(rows, sys.stdout, min(topk, len(classifier.classes)))
    else:
        failed = (write_json if json else write_text)(rows, sys.stdout)
    raise typer.Exit(1 if failed else 0)


def _open(
    source: str | None,
    model: str | None,
    classes: str | None,
    config: str | None,
    options: list[str],
) -> Opened:
    """The network that a command's SOURCE, or its -c and -o, name."""
    from densekit.config import UserError
    from densekit.data.examples import read_class_names
    from densekit.recipe import load
    from densekit.source import open_path, open_recipe

    names = None
    if classes is not None:
        if not Path(classes).is_file():
            raise UserError(f"--classes {classes}: there is no such file")
        names = list(read_class_names(Path(classes)).values())
    if (source is None) == (config is None):
        raise UserError("give either SOURCE, such as runs/quickstart/best, or -c RECIPE")
    if source is None:
        if model is not None:
            raise UserError("--model goes with SOURCE; with -c use -o model.name=NAME")
        return open_recipe(load(config, options), names)
    if options:
        raise UserError(f"-o {options[0]}: goes with -c RECIPE, not with SOURCE")
    return open_path(source, model, names)


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
    from densekit.peers import PeerFailed

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
