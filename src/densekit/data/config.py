"""DataConfig: where the images are, how they are cut, and how they reach the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from densekit.config import Section

Interpolation = Literal["nearest", "bilinear", "bicubic"]
NO_NUMBER: dict[str, Any] = {"changes_no_number": True}  # a resumed run may change such a field


class DataConfig(Section):
    """Sources, transforms, batches."""

    root: str | None = Field(None, json_schema_extra=NO_NUMBER)
    """Folder that list files' paths start from, and where train and val are looked up first; null:
    the list file's own folder, and the current one."""
    train: str | None = None
    """A list file, a folder of class folders, builtin:mnist5k, or the folder of a whole data set:
    train_list.txt and val_list.txt, or train/ and val/; null: data.root is such a folder."""
    val: str | None = None
    """The same for evaluation; null: the data set's own, else data.val_fraction of train."""
    val_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of train, class by class, that is held out when data.val is null."""
    delimiter: str | None = Field(None, min_length=1)
    """Between path and label in list files; null: the last run of whitespace."""
    channels: Literal[1, 3] = 3
    """3: colour, 1: grey; files are converted to it."""

    image_size: int = Field(224, ge=1)
    """Side of the square that the network sees."""
    resize: int | None = Field(256, ge=1)
    """Evaluation: the short side before the centre crop; null: no resize. Training with crop=pad
    or none begins with the same resize."""
    interpolation: Interpolation = "bilinear"
    """Of every resize, in training and evaluation."""
    antialias: bool = True
    """Whether resizes smooth before they shrink (PIL does, cv2 does not)."""
    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    """Training: Inception's random crop; or crop_padding zeros around, then a random crop; or the
    evaluation's own."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that random_resized keeps."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of random_resized's crop."""
    crop_padding: int = Field(4, ge=0)
    """Pixels of zeros on each side for `pad`."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    affine_degrees: float = Field(0.0, ge=0)
    """Random rotation, up to this many degrees either way."""
    affine_translate: float = Field(0.0, ge=0, le=1)
    """Random shift, up to this share of the side."""
    affine_scale: float = Field(0.0, ge=0, lt=1)
    """Random zoom, by a factor from 1 - s to 1 + s."""
    affine_shear: float = Field(0.0, ge=0)
    """Random shear along x, up to this many degrees either way."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Per channel, of pixels in 0..1; one value serves all channels."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Per channel, of pixels in 0..1."""

    batch_size: int = Field(256, ge=1)
    """Images per optimizer step over all ranks and micro-batches."""
    eval_batch_size: int = Field(64, ge=1)
    """Images per evaluation batch; each batch is one rank's, so numbers do not depend on ranks."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", json_schema_extra=NO_NUMBER
    )
    """Loader processes per rank; auto: by data.loader.resolve_workers. Changes no number."""
    drop_last: bool = False
    """Leave out an epoch's last, smaller batch."""
    check_files: int = Field(64, ge=0, json_schema_extra=NO_NUMBER)
    """Files of each list that are decoded before training starts."""

    @model_validator(mode="after")
    def _agrees(self) -> DataConfig:
        check_agreement(self.channels, self.resize, self.image_size, self.mean, self.std)
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"data.{name}: expected 0 < low <= high, got {low} and {high}")
        return self


def check_agreement(
    channels: int, resize: int | None, crop: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Raises ValueError for values that do not go together."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(
                f"{name} has {len(values)} values for {channels} channels; "
                f"give {'1' if channels == 1 else f'1 or {channels}'}"
            )
    if min(std) <= 0:
        raise ValueError(f"std must be greater than 0, got {list(std)}")
    if resize is not None and resize < crop:
        raise ValueError(
            f"resize={resize} is smaller than the image size {crop}, which would leave black "
            f"borders; set resize to {round(crop * 8 / 7)}, or to null for no resize"
        )
