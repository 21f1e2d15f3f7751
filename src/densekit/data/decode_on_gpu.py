"""data.decode=gpu: JPEG files are decoded, cropped, resized and mirrored on the GPU, by nvJPEG.

A worker reads a file, and draws its crop and whether it is mirrored, as for exact decoding, but
hands on its bytes. The main process decodes a batch of them on the device. What nvJPEG might not
take, or take otherwise, the worker decodes, exactly: other formats, CMYK, 16 bits, what EXIF turns,
other channels than the network's, colours that are no YCbCr, a file that is cut off. A file that
nvJPEG refuses nevertheless is decoded exactly by the main process.

Unproved on a GPU. On a CPU torchvision decodes by libjpeg: the pixels are the exact ones, bit for
bit.
n images, C channels, S side.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from densekit.config import UserError
from densekit.data import jpeg
from densekit.data.augment import TrainTransform, train_transform
from densekit.data.config import DataConfig
from densekit.data.dataset import BadImage, Batch, ImageDataset, Kept, Sample, batch_memory
from densekit.data.decode import MODES, Box, ImageFile, JpegFile, UnreadableImage, open_image
from densekit.data.listing import Content, Examples
from densekit.data.places import Placed, Places

READ_MODES = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB}
PIXELS_AT_ONCE = 1 << 26  # of whole images on the device: 200 MB in colour
ADOBE, TRANSFORM = b"Adobe\0", 11  # a segment, and which byte of it is 0 where no colour is YCbCr


def check_decoding(config: DataConfig, device_type: str) -> None:
    """Raises UserError where data.decode=gpu cannot be."""
    if config.decode != "gpu":
        return
    why = None
    if device_type != "cuda":
        why = f"nvJPEG is of NVIDIA's GPUs, and this run is on {device_type}"
    elif config.intensity != "8bit" or config.channels not in MODES:
        why = "it is for images of 8 bits, grey or in colour"
    elif train_transform(config).stages:
        why = (
            "on the GPU images are cropped, resized, mirrored and mixed, and data.augment asks for "
            "more (affine_*, auto_augment, rand_augment, color_jitter or erase)"
        )
    why = why or why_no_decoder(torch.device(device_type))
    if why:
        raise UserError(f"data.decode=gpu: {why}; set data.decode=exact")


def why_no_decoder(device: torch.device) -> str | None:
    """Why torchvision cannot decode on the device, in a line; found out by trying."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        decode_jpeg([_bytes(file.getvalue())], ImageReadMode.RGB, device)
    except RuntimeError as error:
        return f"this torchvision decodes nothing on {device} ({str(error).splitlines()[0]})"
    return None


# In a worker --------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """A JPEG file, and what has been drawn for it."""

    file: Tensor
    """Its bytes, uint8."""
    name: str
    box: Box
    mirrored: bool
    pixels: int
    """Of the whole image."""


class EncodedImages(NamedTuple):
    """A batch's images on their way from a worker; of tensors there are few, see Collated."""

    squares: Tensor
    """Those that the worker decoded, uint8 [m, C, S, S]."""
    is_square: np.ndarray
    """Which of the batch those are, bool [n]."""
    files: Tensor | Placed
    """The others' files, one after the other; in a place of the worker's until it arrives."""
    sizes: list[int]
    names: list[str]
    drawn: list[tuple[Box, bool, int]]
    """Box, mirrored and pixels."""

    def encoded(self) -> list[Encoded]:
        assert isinstance(self.files, Tensor)
        parts = zip(self.files.split(self.sizes), self.names, self.drawn, strict=True)
        return [
            Encoded(file, name, Box(*box), mirrored, pixels)
            for file, name, (box, mirrored, pixels) in parts
        ]


class EncodedDataset(ImageDataset):
    """Batches of EncodedImages."""

    def together(
        self, read: Sequence[Sample | Kept], places: Places | None = None
    ) -> EncodedImages:
        images: list[Any] = [sample.image for sample in read if isinstance(sample, Sample)]
        is_square = np.array([isinstance(image, Tensor) for image in images], bool)
        squares = [sample for sample, own in zip(read, is_square, strict=True) if own]
        files: list[Encoded] = [image for image in images if isinstance(image, Encoded)]
        sizes = [len(image.file) for image in files]
        content = batch_memory((sum(sizes),), torch.uint8, places)
        memory = content.tensor() if isinstance(content, Placed) else content
        for part, image in zip(memory.split(sizes), files, strict=True):
            part.copy_(image.file)
        return EncodedImages(
            super().together(squares),
            is_square,
            content,
            sizes,
            [image.name for image in files],
            [(image.box, image.mirrored, image.pixels) for image in files],
        )


def leave_encoded(transform: TrainTransform, image: ImageFile) -> Tensor | Encoded:
    """What a device can decode as it is, with the draws of `transform`; else its pixels."""
    if not (isinstance(image, JpegFile) and _is_for_nvjpeg(image)):
        return transform(image)
    box, mirrored = transform.part(image.height, image.width)
    return Encoded(_bytes(image.content), image.name, box, mirrored, image.height * image.width)


def _is_for_nvjpeg(image: JpegFile) -> bool:
    segment = image.content.find(ADOBE)
    transform = image.content[segment + TRANSFORM :][:1] if segment >= 0 else b""
    other_colours = transform == b"\0" and image.bands == 3
    whole = image.content.endswith(jpeg.END)
    return whole and image.bands == image.channels and not other_colours


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


# In the main process ------------------------------------------------------------------------


class Decoder:
    """Batches of EncodedImages -> the same with squares on the device, uint8 [n, C, S, S].

    Raises UnreadableImage for a file that cannot be decoded; or, if `skip_bad`, leaves it out.
    """

    def __init__(
        self,
        examples: Examples,
        config: DataConfig,
        transform: TrainTransform,
        device: torch.device,
        skip_bad: bool = False,
    ) -> None:
        self.examples, self.resize, self.device = examples, transform.resize, device
        self.channels, self.max_pixels = config.channels, config.max_pixels
        self.shape = (config.channels, config.train_side, config.train_side)
        self.skip_bad = skip_bad

    def __call__(self, batch: Batch) -> Batch:
        given = batch.images
        assert isinstance(given, EncodedImages)
        decoded = iter(self._squares(given.encoded()))
        squares = iter(given.squares.to(self.device, non_blocking=True))
        found = [next(squares if own else decoded) for own in given.is_square]
        bad: list[BadImage] = []
        for position, image in zip(batch.indices.tolist(), found, strict=True):
            if isinstance(image, UnreadableImage):
                error = image.at(self.examples.where(position))
                if not self.skip_bad:
                    raise error
                bad.append(BadImage(position, str(error)))
        images = [image for image in found if isinstance(image, Tensor)]
        empty = torch.empty((0, *self.shape), dtype=torch.uint8, device=self.device)
        kept = torch.tensor([isinstance(image, Tensor) for image in found], dtype=torch.bool)
        return Batch(
            torch.stack(images) if images else empty,
            batch.labels[kept],
            batch.indices[kept],
            (*batch.bad, *bad),
        )

    def _squares(self, files: list[Encoded]) -> list[Tensor | UnreadableImage]:
        """In order, so many at a time as PIXELS_AT_ONCE says, or one."""
        found: list[Tensor | UnreadableImage] = []
        while files:
            ends = np.cumsum([file.pixels for file in files])
            some = max(1, int(np.searchsorted(ends, PIXELS_AT_ONCE, "right")))
            wholes = self._decoded([file.file for file in files[:some]])
            found += map(self._square, files[:some], wholes)
            files = files[some:]
        return found

    def _decoded(self, files: list[Tensor]) -> list[Tensor | None]:
        """Whole images; None for a file that is refused, found by halving its batch."""
        try:
            return [*decode_jpeg(files, READ_MODES[self.channels], self.device)]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            if len(files) == 1:
                return [None]
            half = len(files) // 2
            return [*self._decoded(files[:half]), *self._decoded(files[half:])]

    def _square(self, file: Encoded, whole: Tensor | None) -> Tensor | UnreadableImage:
        if whole is not None:
            return ImageFile(whole).square(file.box, self.resize, file.mirrored)
        content = Content(file.name, file.file.numpy().tobytes())
        try:
            image = open_image(content, self.channels, self.max_pixels)
            return image.square(file.box, self.resize, file.mirrored).to(self.device)
        except UnreadableImage as error:
            return error
