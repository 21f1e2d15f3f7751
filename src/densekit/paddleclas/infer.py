"""The Infer section: what it asks `densekit predict` for, and the names that it gives classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from densekit.data.listing import read_class_names
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


def named(opened: Opened, infer: Infer) -> Opened:
    """`opened` with class_id_map_file's names, where they are as many as its outputs.

    Theirs gives the names of ImageNet to a network of other classes.
    """
    if infer.classes is None:
        return opened
    file, outputs = Path(infer.classes), len(opened.classes)
    if not file.is_file():
        said = f"class_id_map_file: there is no {file}"
    elif len(names := read_class_names(file)) != outputs:
        said = f"class_id_map_file: {len(names)} names in {file} for {outputs} outputs"
    else:
        return replace(opened, classes=[names.get(i, str(i)) for i in range(outputs)])
    return replace(opened, notes=(*opened.notes, f"{said}; the names are the weights' own"))
