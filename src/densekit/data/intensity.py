"""data.intensity: how a file's values become pixels.

Under `8bit` an image is uint8. Under every other rule it is float32 in 0..1, which holds 16 bits
without loss: `round(65535 * x)` returns each of the 65,536 values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from densekit.data.pixels import Pixels, fit_channels

Rule = Literal["8bit", "full", "percentile", "window"]
Ends = tuple[float, float]
"""The values that become 0 and 1."""
WIDEST = 2  # bytes; wider integers have no agreed range


@dataclass(frozen=True)
class Intensity:
    """The rule and its parameters, named as in DataConfig."""

    rule: Rule = "8bit"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = None
    """Centre and width."""

    @property
    def dtype(self) -> torch.dtype:
        """An image's dtype before normalisation."""
        return torch.uint8 if self.rule == "8bit" else torch.float32

    def apply(self, pixels: Pixels, channels: int) -> Tensor:
        """-> uint8, or float32 in 0..1, [C, H, W], channels last in memory.

        Raises ValueError if the file does not fit the rule or the channels.
        """
        values = fit_channels(pixels, channels)
        if self.rule == "8bit":
            if values.dtype != np.uint8:
                raise ValueError(
                    f"holds {values.dtype} values, but data.intensity=8bit takes 8-bit files; "
                    f"train with data.intensity=full, percentile or window to keep all bits"
                )
            values = 255 - values if pixels.inverted else values
        else:
            values = _to_unit(values, self._limits(pixels), pixels.inverted)
        return torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)

    def _limits(self, pixels: Pixels) -> Ends:
        values = pixels.values
        if not np.isfinite(values).all():
            raise ValueError("holds values that are not finite")
        if self.rule == "percentile":
            low, high = np.percentile(values, self.percentiles)
            return float(low), float(high)
        if self.rule == "full":
            if pixels.span is None:
                raise ValueError(
                    f"holds {values.dtype} values, which have no full range; "
                    f"set data.intensity=percentile or window"
                )
            return pixels.span
        if self.window is not None:
            centre, width = self.window
            return centre - width / 2, centre + width / 2
        if pixels.window is None:
            raise ValueError(
                "has no window of its own (some DICOM files do); set data.window=[CENTRE,WIDTH]"
            )
        return pixels.window


def _to_unit(values: np.ndarray, limits: Ends, inverted: bool) -> np.ndarray:
    """float32 in 0..1, clipped; 0 everywhere if the limits coincide (a constant image)."""
    low, high = limits
    # float32 holds 16 bits; wider numbers are scaled in float64
    wide = values.astype(np.result_type(values.dtype, np.float32))
    wide -= wide.dtype.type(low)
    if high > low:
        wide /= wide.dtype.type(high - low)
    wide = np.clip(wide, 0, 1).astype(np.float32, copy=False)
    return np.float32(1) - wide if inverted else wide
