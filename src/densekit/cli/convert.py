"""`densekit convert` and `densekit translate`: other libraries' weights and recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from densekit.cli.options import Classes, ModelName, NewHead, Options, PreprocessingOf, TaskOption


def convert(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="An artifact, weights (FILE#ema for their average), a URL, hf-hub:org/name; "
            "torchvision, timm, paddle, keras.",
        ),
    ],
    dst: Annotated[
        str, typer.Argument(metavar="DST", help="A .pdparams, .pth, .safetensors; or an artifact.")
    ],
    model: ModelName = None,
    new_head: NewHead = None,
    preprocessing: PreprocessingOf = None,
    classes: Classes = None,
    task: TaskOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace DST, be it SRC, another file or an artifact.")
    ] = False,
) -> None:
    """Convert weights: PaddleClas, torchvision, timm; from Keras, MONAI, TorchXRayVision too.

    [bold]Examples[/]

      densekit convert DenseNet121_pretrained.pdparams densenet121.pth
      densekit convert model.weights.h5 my-model --preprocessing imagenet --classes classes.txt
      densekit convert runs/pets/best pets.pdparams
    """
    from densekit.weights import convert as conversion

    options = conversion.ConvertOptions(model, new_head, preprocessing, classes, task, force)
    for line in conversion.convert(src, dst, options):
        typer.echo(line)


def translate(
    config: Annotated[str, typer.Argument(metavar="FILE", help="A PaddleClas YAML.")],
    option: Options = None,
) -> None:
    """Translate a PaddleClas file to a recipe, with comments on whatever behaves differently.

    [bold]Example[/]

      densekit translate DenseNet121.yaml -o Arch.class_num=37 > pets.yaml
    """
    from densekit import distributed
    from densekit.paddleclas.translate import as_text, translate_file

    print(as_text(translate_file(config, option or [], distributed.world_size())), end="")
