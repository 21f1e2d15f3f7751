"""A map over its picture: orange to yellow speaks for the class, blue against it.

At zero the picture stays grey; colour and opacity grow with the value, so that strong places are
also bright, in print and for the colour-blind too. Nothing is clipped.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

FOR = ("#a82e5f", "#dd513a", "#f98e09", "#f6d746")  # the upper half of matplotlib's inferno
AGAINST = ("#144db8", "#4dccff")
OPACITY = 0.85  # of the strongest value
LEAST_SIDE = 224  # pixels: smaller pictures are enlarged to at least this
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's own grey


def overlay(square: Tensor, class_map: Tensor, strongest: float) -> Image.Image:
    """RGB, the square's size, or a multiple of it of at least LEAST_SIDE pixels.

    square: [C, S, S], the network's input, as for `enlarged`. class_map: float [h, w], finite,
    interpolated bilinearly. strongest: the |value| with full colour; use the same one for several
    maps to make them comparable.
    """
    picture = enlarged(square)
    values = F.interpolate(
        class_map[None, None].float(), picture.size[::-1], mode="bilinear", align_corners=False
    )[0, 0].numpy()
    grey = np.asarray(picture, np.float32) @ np.array(LUMA, np.float32)
    colours, opacity = _colours(values / (strongest or 1.0))
    mixed = grey[..., None] * (1 - opacity) + colours * opacity
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def enlarged(square: Tensor) -> Image.Image:
    """The network's input, [C, S, S], as RGB; small ones are enlarged by a whole factor.

    uint8, or float in 0..1. Unless there are three channels, their mean, as grey.
    """
    if square.is_floating_point():
        square = (square.clamp(0, 1) * 255).round().to(torch.uint8)
    if square.shape[0] != 3:
        square = square.float().mean(0, keepdim=True).round().to(torch.uint8)
    pixels = square.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    factor = -(-LEAST_SIDE // pixels.shape[0])
    return Image.fromarray(pixels.repeat(factor, 0).repeat(factor, 1))


def legend(steps: int = 9) -> list[str]:
    """Colours of the values from -1 to 1 over middle grey, for a strip beside the pictures."""
    colours, opacity = _colours(np.linspace(-1, 1, steps))
    mixed = 128 * (1 - opacity) + colours * opacity
    return ["#" + bytes(colour).hex() for colour in mixed.round().astype(np.uint8)]


def strongest_of(maps: Tensor) -> float:
    """The largest |value|; 0.0 without maps."""
    return maps.abs().max().item() if maps.numel() else 0.0


def _colours(values: NDArray) -> tuple[NDArray, NDArray]:
    """Values from -1 to 1 [...] -> colours [..., 3] from 0 to 255, and opacities [..., 1]."""
    strength = np.abs(values).clip(0, 1)[..., None]
    colours = np.where(values[..., None] > 0, _ramp(FOR, strength), _ramp(AGAINST, strength))
    return colours, OPACITY * strength


def _ramp(names: tuple[str, ...], strength: NDArray) -> NDArray:
    """[..., 1] from 0 to 1 -> [..., 3], linear between the colours."""
    stops = np.array([list(bytes.fromhex(name[1:])) for name in names], np.float64)
    places = np.linspace(0, 1, len(names))
    channels = [np.interp(strength[..., 0], places, stops[:, c]) for c in range(3)]
    return np.stack(channels, -1)
