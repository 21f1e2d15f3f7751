"""The command line. Each command imports what it needs inside the call, so --help is instant.

stdout carries the result, stderr the rest. Exit codes: 0 done, 1 some rows failed, 2 the user's
mistake, 3 a bug of ours or another rank's failure, 75 stopped with the state saved.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Optional

import typer

from densekit.cli.options import (
    AsJson,
    BatchSize,
    Classes,
    Config,
    Device,
    EvaluationData,
    ImageSize,
    ModelName,
    NewHead,
    Options,
    OwnFolder,
    PrecisionName,
    PreprocessingOf,
    ShortBatchSize,
    ShortModel,
    Source,
    Task,
)

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


@app.command()
def train(
    config: Config = None,
    option: Options = None,
    data: OwnFolder = None,
    model: ShortModel = None,
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
    from densekit import distributed
    from densekit.cli import report
    from densekit.data.suggest import suggest
    from densekit.paddleclas.open import open_recipe
    from densekit.training.run_training import train as run
    from densekit.training.setup import make_plan

    options = list(option or [])
    options += [f"model.name={model}"] if model else []
    options += [f"loop.resume={resume}"] if resume else []
    with distributed.session():
        suggested = None
        if data is not None:
            suggested, reasons = suggest(Path(data).expanduser())
            report.print_notes(reasons)
        asked = open_recipe(config, options, "train", suggested)
        report.print_notes(asked.notes)
        if dry_run:
            report.print_plan(make_plan(asked.recipe), as_json=json)
            return
        outcome = run(asked.recipe)
        # nothing is left to lose; launchers and schedulers repeat the signal that stopped the run
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        report.print_outcome(outcome, as_json=json)
    if outcome.stopped:
        raise typer.Exit(STOPPED)


@app.command()
def evaluate(
    source: Source = None,
    data: EvaluationData = None,
    model: ModelName = None,
    classes: Classes = None,
    config: Config = None,
    option: Options = None,
    batch_size: BatchSize = None,
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
    from densekit import distributed
    from densekit.cli import report
    from densekit.cli.inputs import ask
    from densekit.infer.evaluate import evaluate_source
    from densekit.precision import keep_freed_memory, resolve

    keep_freed_memory()
    with distributed.session():
        asked = ask(source, config, option or [], "evaluate")
        rank = distributed.local_rank()
        formats = resolve(asked.device(device), precision, local_rank=rank)
        distributed.start(formats.device)
        distributed.set_threads()
        opened = distributed.on_every_rank(lambda: asked.open(classes, model))
        report.print_notes([*asked.notes, *opened.notes])
        found = evaluate_source(
            opened, formats, data, batch_size, "auto" if workers is None else workers
        )
        report.print_evaluation(found, as_json=json)


@app.command()
def predict(
    source: Source = None,
    files: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="FILES_OR_FOLDERS...", help="Images, or folders of them."),
    ] = None,
    topk: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--topk", min=1, help="Answers per image; 5."),
    ] = None,
    model: ModelName = None,
    classes: Classes = None,
    config: Config = None,
    option: Options = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    precision: PrecisionName = "fp32",
    json: AsJson = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.")] = False,
) -> None:
    """Predict the classes of images: one row per file, in order; exit 1 if some are unreadable.

    With -c every argument is an image, or a folder of them.

    [bold]Examples[/]

      densekit predict runs/pets/best photo.jpg more-photos/
      densekit predict runs/pets/best photos/ --topk 3 --csv > answers.csv
      densekit predict -c DenseNet121.yaml -o Infer.infer_imgs=photo.jpg
    """
    from densekit.cli import report
    from densekit.cli.inputs import ask
    from densekit.config import UserError
    from densekit.infer.classifier import Classifier, expand, write_csv, write_json, write_text
    from densekit.precision import keep_freed_memory, resolve
    from densekit.progress import bar

    if json and csv:
        raise UserError("--json and --csv: choose one")
    keep_freed_memory()
    if config is not None:
        source, files = None, [*([source] if source else []), *(files or [])]
    asked = ask(source, config, option or [], "predict")
    images, topk = expand(files or asked.infer.files), topk or asked.infer.topk
    if not images:
        raise UserError("say which images to predict: files, or folders of them")
    opened = asked.open(classes, model)
    report.print_notes([*asked.notes, *opened.notes])
    classifier = Classifier(opened, resolve(asked.device(device), precision))
    size = batch_size or asked.infer.batch_size
    rows = bar(classifier.rows(images, topk, size), len(images), "predicting")
    if csv:
        failed = write_csv(rows, sys.stdout, min(topk, len(classifier.classes)))
    else:
        failed = (write_json if json else write_text)(rows, sys.stdout)
    raise typer.Exit(1 if failed else 0)


@app.command()
def translate(
    config: Annotated[str, typer.Argument(metavar="FILE", help="A PaddleClas YAML.")],
    option: Options = None,
) -> None:
    """Print the recipe that a PaddleClas file means, with what is otherwise than there.

    [bold]Example[/]

      densekit translate DenseNet121.yaml -o Arch.class_num=37 > pets.yaml
    """
    from densekit import distributed
    from densekit.paddleclas.translate import as_text, load

    print(as_text(load(config, option or [], distributed.world_size())), end="")


@app.command()
def convert(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="An artifact, weights, a URL, hf-hub:org/name; torchvision, timm, paddle, keras.",
        ),
    ],
    dst: Annotated[
        str, typer.Argument(metavar="DST", help="A .pdparams, .pth, .safetensors; or an artifact.")
    ],
    model: ModelName = None,
    new_head: NewHead = None,
    preprocessing: PreprocessingOf = None,
    classes: Classes = None,
    task: Task = None,
) -> None:
    """Convert weights: PaddleClas, torchvision, timm; from Keras, MONAI, TorchXRayVision too.

    [bold]Examples[/]

      densekit convert DenseNet121_pretrained.pdparams densenet121.pth
      densekit convert model.weights.h5 my-model --preprocessing imagenet --classes classes.txt
      densekit convert runs/pets/best pets.pdparams
    """
    from densekit.weights import convert as conversion

    options = conversion.Options(model, new_head, preprocessing, classes, task)
    for line in conversion.convert(src, dst, options):
        typer.echo(line)


@app.command()
def bench(
    config: Config = None,
    option: Options = None,
    model: ShortModel = None,
    image_size: ImageSize = None,
    batch_size: ShortBatchSize = None,
    ops: Annotated[str, typer.Option(help="Which to compare.")] = "reference,recompute,lean",
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of each op.")] = 5,
    json: AsJson = False,
) -> None:
    """Compare the ops on this machine: training speed, memory, the largest batch that fits.

    [bold]Example[/]

      densekit bench -c imagenet/densenet121 --batch-size 16 --ops reference,lean
    """
    from densekit.bench import compare as bench_ops
    from densekit.cli import report
    from densekit.paddleclas.open import open_recipe

    options = [*(option or []), *bench_ops.as_options(model, image_size, batch_size)]
    names, asked = bench_ops.parse_ops(ops), open_recipe(config, options)
    report.print_notes(asked.notes)
    report.print_bench(bench_ops.measure(asked.recipe, names, steps), as_json=json)


@app.command()
def models(json: AsJson = False) -> None:
    """List the DenseNets: parameters, multiply-adds, input size."""
    from densekit.cli.report import print_models

    print_models(as_json=json)


@app.command()
def recipes() -> None:
    """List the recipes that come with the package, with what each is for."""
    from densekit.cli.report import print_recipes

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
