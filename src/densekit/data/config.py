"""DataConfig: where the images are, how they are prepared, and how they are batched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from densekit.config import NO_NUMBER, ON, PathText, Section, when, when_absent
from densekit.data.augment_config import AugmentConfig, Span
from densekit.data.intensity import Intensity, Rule

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Rounding = Literal["torchvision", "paddle"]
Task = Literal["multiclass", "multilabel", "binary"]
"""How a network's outputs are read: see model.task."""
CachePlace = Literal["off", "ram", "disk"]
MAX_PIXELS = 178_956_970  # twice PIL's MAX_IMAGE_PIXELS: PIL refuses larger images


def _of_pixels_to_one(values: tuple[float, ...]) -> tuple[float, ...]:
    if max(values, default=0) > 1:
        raise ValueError(
            f"expected values for pixels in 0..1, got {list(values)}; divide those for pixels in "
            f"0..255 by 255"
        )
    return values


def _fold_of(text: str | None) -> str | None:
    found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text or "1/2")
    if not found or not 1 <= int(found[1]) <= int(found[2]) or int(found[2]) < 2:
        raise ValueError(f"expected a fold and the number of folds, such as 2/5, got {text}")
    return text


Percentile = Annotated[float, Field(ge=0, le=100)]
ValueWindow = tuple[float, Annotated[float, Field(gt=0)]] | None
PerChannel = Annotated[tuple[float, ...], AfterValidator(_of_pixels_to_one)]
EVAL_RESIZED = when(**{"evaluate.resize": ON})
YES_OR_NO = when(**{"/model.task": ("multilabel", "binary")})
TRAIN_RESIZED = when(**{"augment.crop": "random_resized"})
SMOOTHLY_RESIZED = when(
    **{"augment.crop": "random_resized", "interpolation": "bilinear", "antialias": ON}
)


class EvaluateConfig(Section):
    """How evaluation prepares images before the centre crop of data.image_size, and its batches."""

    resize: Annotated[int, Field(ge=1)] | Literal["auto"] | None = "auto"
    """Pixels of the short side before the crop; auto: 8/7 of data.image_size, 256 for 224; null:
    no resize. Training with data.augment.crop=pad or none begins with the same resize."""
    rounding: Rounding = "torchvision"
    """torchvision rounds the long side down and the crop's offset to nearest; paddle does the
    opposite."""
    batch_size: int = Field(64, ge=1)
    """Images per evaluation batch. A batch is never split over ranks, so results do not depend on
    the number of ranks."""


class DataConfig(Section):
    """Where the images are, how they are prepared, and how they are batched."""

    renamed: ClassVar[Mapping[str, str]] = {  # accepted for one version
        "train_size": "augment.crop_size",
        "augment_prob": "augment.policy_prob",
        **{
            name: f"augment.{name}"
            for name in AugmentConfig.model_fields
            if name not in ("crop_size", "policy_prob")
        },
        "resize": "evaluate.resize",
        "rounding": "evaluate.rounding",
        "eval_batch_size": "evaluate.batch_size",
    }

    root: PathText | None = Field(None, json_schema_extra=NO_NUMBER)
    """Folder that paths in list files are relative to, and where train and val are looked up
    first; null: the list file's own folder, and the current one."""
    train: PathText | None = Field(None, json_schema_extra=NO_NUMBER)
    """A list or CSV file, a folder of class folders, builtin:mnist5k, or the folder of a whole data
    set: train_list.txt and val_list.txt, or train/ and val/ (training/, valid/, test/, ..., in any
    case); null: data.root is such a folder. Or shards, local or in object storage:
    s3://bucket/train-{000000..001023}.tar, or train-index.npz beside them (docs/shards.md)."""
    val: PathText | None = Field(None, json_schema_extra=NO_NUMBER)
    """The validation images, likewise; null: the data set's own, else data.val_fraction of
    train."""
    val_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of train, class by class, that is held out when data.val is null."""
    fold: Annotated[str | None, AfterValidator(_fold_of)] = None
    """Cross-validation, such as 2/5: train is split into five folds, stratified by class, and the
    second is the validation set; instead of data.val or data.val_fraction."""
    group: Annotated[str | None, Field(min_length=1)] = None
    """What training and validation may not share, such as a patient with several images: a column
    of the CSV file, or a regular expression on the path with one group in brackets, such as
    ^(patient\\d+)/. A group is held out as a whole or not at all; one on both sides is an error."""
    split_seed: Annotated[int, Field(ge=0), when(val_fraction=ON), when(fold=ON)] = 0
    """Seed that chooses the images to hold out; loop.seed does not change them."""
    delimiter: str | None = Field(None, min_length=1)
    """What separates path and label in list files; null: a comma, semicolon or bar if the first
    line has one before its label, else the last run of whitespace."""
    classes: Annotated[tuple[str, ...] | None, YES_OR_NO] = None
    """Classes to use, in this order, by their names in a CSV file or in a list's classes.txt; null:
    all. In a binary task, the positive class, against all others; also a class folder's name."""
    relabel: Annotated[bool, when(**{"/model.task": "multiclass"})] = False
    """Renumber the training list's labels 0, 1, ... in ascending order, in both lists."""

    channels: int = Field(3, ge=1)
    """3: colour, 1: grey; 8-bit files are converted. Any other number, as in .npy or TIFF files,
    must be the file's own."""
    intensity: Rule = "8bit"
    """How a file's values become pixels in 0..1. 8bit: 8-bit pixels, as photographs have; 16-bit
    files keep their high 8 bits. The others keep all bits (float32), and refuse files that would
    need converting. full: the format's range, 0 to 65535 for 16 bits; percentile: each image's own
    data.percentiles; window: data.window, which CT needs."""
    percentiles: Annotated[Span[Percentile], when(intensity="percentile")] = (0.5, 99.5)
    """The percentiles of an image's values that become black and white."""
    window: Annotated[ValueWindow, when(intensity="window")] = None
    """Centre and width of the displayed values, in the file's units after DICOM's rescale (CT:
    Hounsfield units), such as [40, 400]; null: the DICOM file's own window."""
    image_size: int = Field(224, ge=1)
    """Side of the network's square input, in pixels."""
    decode: Annotated[Literal["exact", "scaled", "gpu"], SMOOTHLY_RESIZED] = "exact"
    """How training decodes JPEG files. exact: at full size; scaled: at 1/2, 1/4 or 1/8 of it
    if the random crop is then still twice as large as the network's input, which is faster on large
    photographs and changes pixels slightly; gpu: on the GPU, by nvJPEG, which changes pixels
    slightly, too. Evaluation always decodes exactly."""
    interpolation: Annotated[Interpolation, EVAL_RESIZED, TRAIN_RESIZED] = "bilinear"
    """Interpolation of every resize, in training and evaluation."""
    antialias: Annotated[bool, EVAL_RESIZED, TRAIN_RESIZED] = True
    """Whether resizing smooths an image before shrinking it (PIL does, cv2 does not)."""
    mean: PerChannel = (0.485, 0.456, 0.406)
    """Per channel, of pixels in 0..1; a single value applies to all channels."""
    std: PerChannel = (0.229, 0.224, 0.225)
    """Per channel, of pixels in 0..1."""

    balance: float = Field(0.0, ge=0, le=1)
    """How far an epoch balances the classes, at the same length: a class of n images is drawn in
    proportion to n ** (1 - balance). 0: every image once; 1: every class equally often; 0.5: by
    square roots. A multilabel image counts for its rarest class."""
    shuffle_window: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", json_schema_extra=when_absent(0)
    )
    """Shards that are read at a time, so that the cache need not hold all of them. 0: an epoch is
    shuffled over all shards, as over files; auto: 16 for remote shards, else 0."""
    batch_size: int = Field(256, ge=1)
    """Images per optimizer step over all ranks and micro-batches."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", json_schema_extra=NO_NUMBER
    )
    """Loader processes per rank; auto: by the number of cores. Does not change results."""
    drop_last: bool = False
    """Skip an epoch's last batch if it is smaller than data.batch_size."""
    check_files: int = Field(64, ge=0, json_schema_extra=NO_NUMBER)
    """Files of each list that are decoded as a check before training starts."""
    on_bad_image: Literal["error", "skip"] = Field("error", json_schema_extra=NO_NUMBER)
    """What to do with an unreadable training image. error: stop the run; skip: leave it out of its
    batch and list it in the run's bad-images.txt. Evaluation always stops."""
    max_bad_images: Annotated[int, when(on_bad_image="skip")] = Field(
        10, ge=0, json_schema_extra=NO_NUMBER
    )
    """Unreadable images that may be left out before the run stops."""
    cache: CachePlace | Literal["auto"] = Field("auto", json_schema_extra=NO_NUMBER)
    """Where decoded images are cached, bit for bit. ram: in memory shared by all processes of a
    machine (Linux); disk: in a file in data.cache_dir, which later runs reuse; auto: ram if they
    take at most a quarter of the free memory (docs/concepts/input-pipeline.md)."""
    cache_dir: PathText | None = Field(None, json_schema_extra=NO_NUMBER)
    """Folder for remote shards and decoded images, which runs on a machine may share; null:
    shards/ and pixels/ in densekit's cache, $DENSEKIT_CACHE or ~/.cache/densekit."""
    cache_gib: float = Field(100.0, gt=0, json_schema_extra=NO_NUMBER)
    """Limit of the shards there, in GiB, and of the decoded images; the least recently used are
    removed, unless a run uses them."""
    max_pixels: int = Field(MAX_PIXELS, ge=1, json_schema_extra=NO_NUMBER)
    """Images of more pixels are refused before decoding, since a small file may claim to hold
    billions; the default is PIL's own limit. Raise it for files that you trust."""

    augment: AugmentConfig = AugmentConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _agrees(self) -> DataConfig:
        twice = [name for name in self.classes or () if (self.classes or ()).count(name) > 1]
        if twice:
            raise ValueError(f"classes names {twice[0]!r} twice; leave one")
        check_agreement(self.channels, self.eval_resize, self.image_size, self.mean, self.std)
        self._check_colours()
        if self.fold is not None and self.val_fraction:
            raise ValueError(
                f"fold={self.fold} and val_fraction={self.val_fraction:g} both hold images out of "
                f"train; set one of them"
            )
        return self

    def _check_colours(self) -> None:
        """Raises ValueError for colour changes that would lose bits or are impossible."""
        augment = self.augment
        policy = "auto_augment" if augment.auto_augment else "rand_augment"
        if (augment.auto_augment or augment.rand_augment) and self.intensity != "8bit":
            raise ValueError(
                f"augment.{policy} works on 8 bits, but data.intensity={self.intensity} keeps "
                f"more; use augment.affine_* and augment.color_jitter"
            )
        if self.channels in (1, 3):
            return
        if augment.auto_augment or augment.rand_augment or any(augment.color_jitter):
            raise ValueError(
                f"augment.{'color_jitter' if any(augment.color_jitter) else policy} is for 1 or 3 "
                f"channels, and channels={self.channels}"
            )

    @property
    def held_out(self) -> str | None:
        """The option that holds out images of train for validation, as `key=value`."""
        if self.fold is not None:
            return f"data.fold={self.fold}"
        return f"data.val_fraction={self.val_fraction}" if self.val_fraction else None

    @property
    def scaling(self) -> Intensity:
        """How files are decoded."""
        return Intensity(self.intensity, self.percentiles, self.window)

    @property
    def eval_resize(self) -> int | None:
        """Pixels of the short side before evaluation's crop; None: no resize."""
        resize = self.evaluate.resize
        return larger(self.image_size) if resize == "auto" else resize

    def resolved(self, workers: int, shuffle_window: int, cache: CachePlace) -> DataConfig:
        """The same with each `auto` resolved: to these values, and the resize."""
        evaluate = self.evaluate.model_copy(update={"resize": self.eval_resize})
        return self.model_copy(
            update={
                "workers": workers,
                "shuffle_window": shuffle_window,
                "cache": cache,
                "evaluate": evaluate,
            }
        )

    @property
    def train_side(self) -> int:
        """Side of the network's square input in training."""
        return self.augment.crop_size or self.image_size

    @property
    def mixes(self) -> bool:
        """Whether training labels may be mixtures."""
        return self.augment.mixes


def larger(side: int) -> int:
    """The short side that ImageNet's evaluation resizes to before the crop: 256 for 224."""
    return round(side * 8 / 7)


def check_agreement(
    channels: int, resize: int | None, crop: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Raises ValueError for values that contradict each other."""
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
            f"borders; set resize to {larger(crop)}, or to null for no resize"
        )
