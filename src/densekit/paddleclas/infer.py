"""The Infer section: what it asks `densekit predict` for, and the names that it gives classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from densekit.config import UserError
from densekit.data.classes import names_by_output
from densekit.infer.model import Opened
from densekit.paddleclas.translation import Translation


@dataclass(frozen=True)
class Infer:
    """What their Infer section asks `densekit predict` for."""

    files: tuple[str, ...] = ()
    batch_size: int = 32
    topk: int = 5
    classes: str | None = None
    """class_id_map_file."""


def read_infer(t: Translation) -> Infer:
    """The Infer section. Raises UserError."""
    files, classes = t.text("Infer.infer_imgs"), t.text("Infer.PostProcess.class_id_map_file")
    return Infer(
        files=(files,) if files else (),
        batch_size=t.whole("Infer.batch_size", 1),
        topk=t.whole("Infer.PostProcess.topk", 5),
        classes=classes or None,
    )


def with_class_names(opened: Opened, infer: Infer) -> Opened:
    """`opened` with class_id_map_file's names, where they are those of its outputs.

    Theirs gives the names of ImageNet to a network of other classes.
    """
    if infer.classes is None:
        return opened
    asked = "class_id_map_file"
    try:
        names = names_by_output(Path(infer.classes), len(opened.classes), asked)
    except UserError as error:
        said = f"{error}; the names are the weights' own"
        return replace(opened, notes=(*opened.notes, said))
    return replace(opened, classes=names, named=True)
