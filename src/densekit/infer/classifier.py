"""Classifier: images in, rows out."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from densekit.config import UserError
from densekit.data.bit_depth import dark_files
from densekit.data.decode import UnreadableImage, content_of, from_image, open_image
from densekit.data.folders import images_below
from densekit.data.listing import Content
from densekit.infer.engines import Logits, open_engine, resolve_engine
from densekit.infer.html import as_html
from densekit.infer.model import Opened, device_of, open_path
from densekit.infer.objects import is_object, read_object
from densekit.infer.rows import Answer, Row
from densekit.infer.tta import averaged, squares_for
from densekit.models.densenet import DenseNet
from densekit.precision import Precision, in_bounded_memory, resolve

Input = str | os.PathLike | bytes | Image.Image | np.ndarray
"""A path or an s3:// URL, a file's bytes, a PIL image, or an array [H, W, C] in RGB order: uint8
unless the network's preprocessing takes another type."""
Fetched = Content | UnreadableImage
"""A file's bytes, or why it could not be read."""
Given = TypeVar("Given")
Got = TypeVar("Got")


class Classifier:
    """A network with its preprocessing and classes."""

    def __init__(
        self,
        opened: Opened,
        precision: Precision,
        max_pixels: int | None = None,
        engine: str = "auto",
        tta: str = "none",
    ) -> None:
        """Images of more than `max_pixels` are not decoded; None: the limit used in training.

        `engine` is one of ENGINE_NAMES, `tta` one of VIEWS. Raises UserError if the engine cannot
        run the network, or the views cannot be cropped.
        """
        self.opened = opened
        self.max_pixels = max_pixels or opened.max_pixels
        self.classes = opened.classes
        self.preprocess = opened.preprocessing
        self.task = opened.task
        self.engine = resolve_engine(opened, engine)
        self.precision = precision
        self.thresholds = opened.thresholds
        self._read_as = squares_for(tta, self.preprocess)
        of_one = open_engine(opened, precision, engine)
        self.logits: Logits = averaged(of_one, tta, self.task, self.preprocess.crop)

    @property
    def model(self) -> DenseNet:
        """torch's network. Raises UserError for an exported one."""
        return self.opened.model

    def _repr_html_(self) -> str:
        """Shown by notebooks: the network, its classes and validation metrics."""
        return as_html(self.opened, self.engine, self.precision)

    def predict(
        self, images: Sequence[Input], topk: int | None = None, batch_size: int = 32
    ) -> list[Row]:
        """A row for each image, in order, with the `topk` most probable classes, at most all of
        them; None: `Opened.answers_shown`.

        Probabilities are a softmax over the classes, or a sigmoid per class for a multilabel or
        binary network; then `positive` says whether the class reaches its threshold, if the
        network has one. Warns of files that the network would see as nearly black. Raises
        UserError for inputs that are not images, such as an array of floats.
        """
        if not isinstance(images, (str, os.PathLike)):
            files = [str(i) for i in images if isinstance(i, (str, os.PathLike))]
            for note in dark_files(files, self.preprocess.scaling):
                warnings.warn(note, stacklevel=2)
        return list(
            self.rows(images, self.opened.answers_shown if topk is None else topk, batch_size)
        )

    def rows(self, images: Sequence[Input], topk: int = 5, batch_size: int = 32) -> Iterator[Row]:
        """`predict` batch by batch: the next files are read while the network runs."""
        if isinstance(images, (str, bytes, os.PathLike, Image.Image, np.ndarray)):
            raise UserError("predict takes a list of images; for a single one write [image]")
        if topk < 1 or batch_size < 1:
            raise UserError(f"topk and batch_size must be at least 1, got {topk} and {batch_size}")
        yield from self.rows_of(in_batches(images, batch_size), topk)

    def rows_of(self, batches: Iterable[Sequence[Input]], topk: int) -> Iterator[Row]:
        """A row for each image of `batches`, in order. Holds two batches in memory."""
        for batch, squares in in_bounded_memory(self.read_batches(batches)):
            readable = [square for square in squares if isinstance(square, Tensor)]
            answers = iter(self.answers(torch.stack(readable), topk) if readable else [])
            for image, square in zip(batch, squares, strict=True):
                yield as_row(image, next(answers) if isinstance(square, Tensor) else square)

    def read_batches(
        self, batches: Iterable[Sequence[Input]]
    ) -> Iterator[tuple[Sequence[Input], list[Tensor | UnreadableImage]]]:
        """Batches of images, each image with its `read_square`.

        Each batch is prepared while the network computes the one before it. With a GPU that
        includes decoding. On a CPU only fetching overlaps, and decoding alternates with the
        network: a decoding thread would take a core from one of the network's threads, and all
        others would wait for that one at every layer.
        """
        with (
            ThreadPoolExecutor(thread_name_prefix="densekit-fetch") as fetching,
            ThreadPoolExecutor(thread_name_prefix="densekit-decode") as decoding,
        ):
            if self.precision.device.type != "cpu":
                for batch, squares in _one_ahead(partial(decoding.map, self.read_square), batches):
                    yield batch, list(squares)
                return
            for batch, files in _one_ahead(partial(fetching.map, fetched), batches):
                yield batch, list(decoding.map(self.read_square, files))

    def read_square(self, image: Input | Fetched) -> Tensor | UnreadableImage:
        """The network's input for an image, [C, crop, crop], or why the image cannot be read.

        uint8, or float32 in 0..1 if the preprocessing's intensity is not 8bit. Thread-safe.
        """
        source, seen = fetched(image), self._read_as
        if isinstance(source, UnreadableImage):
            return source
        try:
            if isinstance(source, (bytes, Content)):
                return seen.square(open_image(source, seen.channels, self.max_pixels, seen.scaling))
            return seen(from_image(source, seen.channels, self.max_pixels, seen.scaling))
        except UnreadableImage as error:
            return error

    def answers(self, squares: Tensor, topk: int) -> list[list[Answer]]:
        """Squares [n, C, crop, crop] -> each image's answers; none if the logits are not finite."""
        return self.answers_of(self.logits(squares), topk)

    def answers_of(self, logits: Tensor, topk: int) -> list[list[Answer]]:
        """The network's logits [n, K] -> each image's answers; none if they are not finite."""
        logits = logits.double()
        probs = logits.softmax(1) if self.task == "multiclass" else logits.sigmoid()
        probs, places = (t[:, :topk] for t in probs.sort(dim=1, descending=True, stable=True))
        return [
            [self._answer(*pair) for pair in zip(*row, strict=True)] if finite else []
            for *row, finite in zip(
                places.tolist(), probs.tolist(), logits.isfinite().all(1).tolist(), strict=True
            )
        ]

    def _answer(self, place: int, prob: float) -> Answer:
        answer: Answer = {"class": place, "label": self.classes[place], "prob": prob}
        threshold = None if self.thresholds is None else self.thresholds[place]
        if threshold is not None:
            answer["positive"] = prob >= threshold
        return answer


def in_batches(images: Sequence[Given], batch_size: int) -> Iterator[Sequence[Given]]:
    """The images in slices; the last may be smaller."""
    return (images[start : start + batch_size] for start in range(0, len(images), batch_size))


def _one_ahead(
    begin: Callable[[Sequence[Input]], Got], batches: Iterable[Sequence[Input]]
) -> Iterator[tuple[Sequence[Input], Got]]:
    """Each batch with what `begin` returned for it; `begin` has been called on the next already."""
    ahead: deque[tuple[Sequence[Input], Got]] = deque()
    for batch in batches:
        ahead.append((batch, begin(batch)))
        if len(ahead) == 2:
            yield ahead.popleft()
    yield from ahead


def fetched(image: Input | Fetched) -> Image.Image | np.ndarray | bytes | Fetched:
    """Reads a file or an S3 object; returns anything in memory unchanged. Thread-safe."""
    if not isinstance(image, (str, os.PathLike)):
        return image
    name = os.fspath(image)
    try:
        return Content(name, read_object(name)) if is_object(name) else content_of(Path(name))
    except UnreadableImage as error:
        return _of_folder(Path(name)) if Path(name).is_dir() else error


def _of_folder(folder: Path) -> UnreadableImage:
    """The error for a folder given as an image."""
    found = images_below(folder)
    if found.paths:
        return UnreadableImage(str(folder), "is a folder; name its images")
    others = f", only {found.left_out()}" if found.others else ""
    return UnreadableImage(str(folder), f"is a folder without images{others}")


def as_row(image: Input, result: list[Answer] | UnreadableImage) -> Row:
    """An image's row: its answers, or the error."""
    file = str(image) if isinstance(image, (str, os.PathLike)) else None
    if isinstance(result, UnreadableImage):
        return {"file": file, "topk": [], "error": result.reason}
    error = None if result else "the network's output is not finite"
    return {"file": file, "topk": result, "error": error}


def load(
    path: str | os.PathLike,
    device: str = "auto",
    max_pixels: int | None = None,
    engine: str = "auto",
) -> Classifier:
    """The classifier in the folder of an artifact or export, or the best artifact of a run's
    folder; in fp32.

    Images of more than `max_pixels` are not decoded; None: the limit used in training. `engine` is
    "torch", "onnxruntime" or "openvino"; "auto": the one the folder is for. Raises UserError.
    """
    place = os.fspath(path)
    formats = resolve(device_of(place, device), "fp32")
    return Classifier(open_path(place), formats, max_pixels, engine)
