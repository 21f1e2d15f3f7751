"""AugmentConfig: the options of augmentation, which `augment` and `mix` carry out."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from densekit.config import ON, Section, when

Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Hue = Annotated[float, Field(ge=0, le=0.5)]
Number = TypeVar("Number", bound=float)
RESIZED = when(crop="random_resized")


def _in_order(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError(f"expected the smaller number first, got {list(span)}")
    return span


Span = Annotated[tuple[Number, Number], AfterValidator(_in_order)]


class AugmentConfig(Section):
    """Random changes to training images, applied in this order: crop, affine, flip, colours,
    erasing, mixing. A change that is off draws no random numbers."""

    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    """random_resized: a random part of the image, resized (Inception's crop); pad: crop_padding
    pixels of zeros on each side, then a random crop; none: resize and crop as in evaluation."""
    crop_size: Annotated[int | None, Field(ge=1), RESIZED] = None
    """Side of random_resized's crop, in pixels; null: data.image_size."""
    crop_distribution: Annotated[Literal["torchvision", "paddle"], RESIZED] = "torchvision"
    """How random_resized draws. torchvision: a log-uniform aspect ratio, up to ten tries until the
    crop fits; paddle: a uniform one, with the area limited so that it fits."""
    crop_scale: Annotated[Span[Share], RESIZED] = (0.08, 1.0)
    """Share of the image's area that random_resized keeps."""
    crop_ratio: Annotated[Span[Positive], RESIZED] = (3 / 4, 4 / 3)
    """Aspect ratio of random_resized's crop."""
    crop_padding: Annotated[int, Field(ge=0), when(crop="pad")] = 4
    """Pixels of zeros that pad adds on each side."""

    affine_degrees: float = Field(0.0, ge=0)
    """Random rotation, up to this many degrees either way."""
    affine_translate: float = Field(0.0, ge=0, le=1)
    """Random shift, up to this share of the side."""
    affine_scale: float = Field(0.0, ge=0, lt=1)
    """Random zoom, by a factor from 1 - s to 1 + s."""
    affine_shear: float = Field(0.0, ge=0, lt=90)
    """Random shear along x, up to this many degrees either way."""
    affine_prob: Annotated[
        Probability,
        when(affine_degrees=ON),
        when(affine_translate=ON),
        when(affine_scale=ON),
        when(affine_shear=ON),
    ] = 1.0
    """Probability that the affine change (the four options above) is applied to an image."""

    flip: Probability = 0.5
    """Probability of a horizontal flip."""

    auto_augment: Literal["imagenet", "cifar10", "svhn"] | None = None
    """AutoAugment's policy (Cubuk et al., 2019), learned on these images."""
    rand_augment: int = Field(0, ge=0)
    """Operations that RandAugment applies to each image (Cubuk et al., 2020); 0: off."""
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30), when(rand_augment=ON)] = 9
    """Strength of RandAugment's operations, from 0 to 30."""
    policy_prob: Annotated[Probability, when(auto_augment=ON), when(rand_augment=ON)] = 1.0
    """Probability that auto_augment and rand_augment are applied to an image."""
    color_jitter: tuple[Amount, Amount, Amount, Hue] = (0.0, 0.0, 0.0, 0.0)
    """Random brightness, contrast and saturation, by factors from 1 - a to 1 + a, and hue, by up
    to this share of the circle."""
    color_jitter_prob: Annotated[Probability, when(color_jitter=ON)] = 1.0
    """Probability that color_jitter is applied to an image."""

    erase: Probability = 0.0
    """Probability that a random rectangle is erased (Zhong et al., 2020)."""
    erase_scale: Annotated[Span[Share], when(erase=ON)] = (0.02, 0.33)
    """Range of the erased rectangle's share of the image's area."""
    erase_ratio: Annotated[Span[Positive], when(erase=ON)] = (0.3, 3.3)
    """Range of the erased rectangle's aspect ratio, drawn log-uniformly."""
    erase_with: Annotated[Literal["mean", "noise"], when(erase=ON)] = "mean"
    """What fills the erased rectangle: data.mean, or normal noise of data.mean and data.std."""

    mixup: Probability = 0.0
    """Probability that a micro-batch is mixed with itself by mixup (Zhang et al., 2018)."""
    mixup_alpha: Annotated[Positive, when(mixup=ON)] = 0.2
    """Mixup draws the two images' shares from Beta(alpha, alpha)."""
    cutmix: Probability = 0.0
    """Probability of cutmix (Yun et al., 2019); a micro-batch gets mixup, cutmix or neither."""
    cutmix_alpha: Annotated[Positive, when(cutmix=ON)] = 1.0
    """Cutmix draws the share of the pasted area from Beta(alpha, alpha)."""

    @model_validator(mode="after")
    def _agrees(self) -> AugmentConfig:
        if self.mixup + self.cutmix > 1:
            raise ValueError(
                f"mixup={self.mixup} and cutmix={self.cutmix} are probabilities of "
                f"alternatives; their sum must be at most 1"
            )
        return self

    @property
    def mixes(self) -> bool:
        """Whether training labels may be mixtures."""
        return self.mixup > 0 or self.cutmix > 0
