"""Explanations as files: overlays/*.png, one page with all images, explain.json."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable
from importlib.resources import files as package_files
from pathlib import Path
from string import Template
from typing import Any, TextIO, TypedDict

from PIL import Image

from densekit.config import UserError
from densekit.data.listing import readable
from densekit.explain.cam import CompactMap, compact
from densekit.explain.folder import OVERLAYS, PAGE_NAME, claim, write_manifest
from densekit.explain.images import METHODS, Explained, MethodName
from densekit.explain.overlay import enlarged, legend, overlay, strongest_of
from densekit.files import temporary, write_atomically
from densekit.infer.rows import Answer

ARTICLES_HERE = "<!-- articles -->"
LEGEND_WORDS = (
    "blue where the place speaks against the class, grey at nought, orange to yellow for it"
)

WrittenMap = TypedDict(
    "WrittenMap", {"class": int, "label": str, "overlay": str, "map": CompactMap}
)


class ExplainedRow(TypedDict):
    """A row of explain.json: a prediction's row, and its maps."""

    file: str | None
    topk: list[Answer]
    error: str | None
    maps: list[WrittenMap]


def write_gallery(
    folder: Path, found: Iterable[Explained], method: MethodName, name: str, classes: list[str]
) -> dict[str, Any]:
    """Writes `found` to `folder` as it comes, and returns explain.json's content.

    `name` is the network's, shown on the page. The folder is claimed before the first image is
    computed. Raises UserError for a folder with other content, and for a full or read-only disk.
    """
    claim(folder, "images")
    head, tail = _page(method, name)
    page = temporary(folder / PAGE_NAME)
    try:
        (folder / OVERLAYS).mkdir(exist_ok=True)
        with page.open("w", encoding="utf-8") as out:
            out.write(head)
            rows = [_write(folder, out, i, e, classes) for i, e in enumerate(found, start=1)]
            out.write(tail)
        page.replace(folder / PAGE_NAME)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        page.unlink(missing_ok=True)
    said = {"network": name, "method": method, "page": PAGE_NAME, "rows": rows}
    return write_manifest(folder, "images", said)


def _write(
    folder: Path, out: TextIO, number: int, explained: Explained, classes: list[str]
) -> ExplainedRow:
    """One image's PNGs and its part of the page."""
    row, maps = explained.row, explained.maps
    file = None if row["file"] is None else readable(row["file"])
    shown: list[WrittenMap] = []
    views = []
    if explained.square is not None and maps is not None:
        picture = enlarged(explained.square)
        views.append(
            _figure(picture, "as the network sees it", "", f"{file} as the network sees it")
        )
        strongest = strongest_of(maps)
        probs = {answer["class"]: answer["prob"] for answer in row["topk"]}
        for place, own in zip(explained.classes, maps, strict=True):
            label = classes[place]
            over = overlay(explained.square, own, strongest)
            stem = _plain(Path(file or "image").stem)
            png = f"{OVERLAYS}/{number:04d}-{stem}-{place}-{_plain(label)}.png"
            write_atomically(folder / png, _bytes(over, "PNG"))
            prob = f"{probs[place]:.1%}" if place in probs else ""
            views.append(_figure(over, label, prob, f"map of {label} over {file}"))
            sent = compact(own)
            shown.append({"class": place, "label": label, "overlay": png, "map": sent})
    out.write(_article(file, views, row["topk"], row["error"]))
    return {"file": file, "topk": row["topk"], "error": row["error"], "maps": shown}


def _page(method: MethodName, name: str) -> tuple[str, str]:
    """The page before and after the articles."""
    text = package_files("densekit.explain").joinpath("gallery.html").read_text(encoding="utf-8")
    head, _, tail = text.partition(ARTICLES_HERE)
    filled = Template(head).substitute(
        title="What the answers rest on",
        network=html.escape(name),
        method=html.escape(METHODS[method]),
        legend=", ".join(legend()),
        strip=LEGEND_WORDS,
    )
    return filled, tail


def _article(file: str | None, views: list[str], answers: list[Answer], error: str | None) -> str:
    parts = [f"<h2>{html.escape(file or 'an image')}</h2>"]
    if error is not None:
        parts.append(f'<p class="error">{html.escape(error)}</p>')
    else:
        parts.append(f'<div class="views">{"".join(views)}</div>')
        parts.append(f'<ol aria-label="answers">{"".join(map(_bar, answers))}</ol>')
    return "<article>" + "\n".join(parts) + "</article>\n"


def _bar(answer: Answer) -> str:
    label, prob = html.escape(answer["label"]), answer["prob"]
    return (
        f'<li><span>{label}</span><em>{prob:.1%}</em><i style="--prob:{100 * prob:.2f}%"></i></li>'
    )


def _figure(image: Image.Image, title: str, number: str, alternative: str) -> str:
    data = base64.b64encode(_bytes(image, "JPEG")).decode("ascii")
    strong = f"<b>{html.escape(title)}</b>" if number else html.escape(title)
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" width="{image.width}" '
        f'height="{image.height}" alt="{html.escape(alternative)}">'
        f"<figcaption><span>{strong}</span><em>{number}</em></figcaption></figure>\n"
    )


def _bytes(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "JPEG":
        image.save(out, kind, quality=90, subsampling=0)
    else:
        image.save(out, kind, optimize=True)
    return out.getvalue()


def _plain(name: str) -> str:
    """A name that is valid on any file system, at most 40 characters."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._")[:40] or "x"
