"""Options that several commands share, and long ones of single commands."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

Config = Annotated[
    Optional[str],  # noqa: UP045 (typer on Python 3.10 reads it at run time)
    typer.Option(
        "-c",
        "--config",
        metavar="RECIPE",
        help="A shipped recipe's name, or a file: densekit's own, or a PaddleClas YAML.",
    ),
]
Options = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "-o",
        "--option",
        metavar="KEY=VALUE",
        help="Overrides one key of the recipe, such as [cyan]-o optim.lr=0.05[/]; repeatable.",
    ),
]
Source = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(metavar="SOURCE", help="An artifact, a run, an export, or weights (--model)."),
]
ModelName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", metavar="NAME", help="The model of a .pth or .safetensors file."),
]
Classes = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--classes", metavar="FILE", help="`label name` lines, for such a file."),
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|mps")]
PrecisionOption = Annotated[str, typer.Option("--precision", metavar="fp32|bf16|fp16")]
Tta = Annotated[
    str,
    typer.Option(
        "--tta",
        metavar="none|flip|five-crop",
        help="Mean probability of the image and its mirror image, or of five crops.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="torch, onnxruntime or openvino; auto: as SOURCE was exported, else torch.",
    ),
]
Resume = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--resume",
        metavar="auto|never|PATH",
        help="Resume from the folder's newest state (auto), or from another run's.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check recipe and data, print both, and stop.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
BatchSize = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--batch-size", metavar="N", min=1, help="Images per batch, on each rank."),
]
MaxPixels = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--max-pixels", metavar="N", min=1, help="Larger images are refused; as in training."
    ),
]
OwnFolder = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Your own images, one subfolder per class; defaults are picked for them.",
    ),
]
ShortModel = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--model", metavar="NAME", help="Short for -o model.name=NAME."),
]
ShortBatchSize = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--batch-size", metavar="N", min=1, help="Short for -o data.batch_size=N."),
]
ImageSize = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--image-size", metavar="N", min=1, help="Short for -o data.image_size=N."),
]
EvaluationData = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--data",
        metavar="IMAGES",
        help="A list, a folder or builtin:NAME; without it, the training's validation images.",
    ),
]
GroupBy = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--group",
        metavar="COLUMN|REGEX",
        help="Resample by patient, as data.group; by default as in training.",
    ),
]
NewHead = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--new-head", metavar="N", min=1, help="A new head of N classes."),
]
PreprocessingOf = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--preprocessing", metavar="NAME|FILE", help="Preprocessing of its images."),
]
TaskOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--task", metavar="multiclass|multilabel", help="How outputs are read."),
]
