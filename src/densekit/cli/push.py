"""`densekit push`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from densekit.cli.options import AsJson
from densekit.cli.output import is_printing, show, show_json, show_notes


def push(
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="An artifact, or a run.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="On Hugging Face's hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Only you, or the organisation, may see it.")
    ] = False,
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--revision", metavar="BRANCH", help="Created if missing; default main."),
    ] = None,
    licence: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--licence", metavar="NAME", help="As the hub names it: apache-2.0, mit."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also replace files that densekit did not write.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Push an artifact to Hugging Face's hub, with a model card made from it.

    Uses the token of [cyan]hf auth login[/], or $HF_TOKEN. Needs
    densekit\\[hub].

    [bold]Examples[/]

      densekit push runs/pets/best anna/pets --licence apache-2.0
      densekit push runs/pets/best anna/pets --private --revision v2
      densekit predict hf-hub:anna/pets@v2 photo.jpg
    """
    from dataclasses import asdict
    from pathlib import Path

    from densekit.hub.push import PushOptions, push_artifact

    if not is_printing():
        return
    options = PushOptions(private, revision, licence, force)
    done = push_artifact(Path(artifact).expanduser(), repository, options)
    show_notes(done.notes)
    if json:
        show_json(asdict(done))
    else:
        show(done.url)
