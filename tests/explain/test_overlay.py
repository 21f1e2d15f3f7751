"""overlay.py: colours that say what the map says."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from densekit.explain.overlay import AGAINST, FOR, LEAST_SIDE, OPACITY, enlarged, legend, overlay

GREY = torch.full((3, 32, 32), 100, dtype=torch.uint8)


def rgb(name: str) -> np.ndarray:
    return np.array(list(bytes.fromhex(name[1:])))


def test_zero_is_the_picture_in_grey(squares: Tensor) -> None:
    shown = np.asarray(overlay(squares[0], torch.zeros(4, 4), 1.0)).astype(int)
    assert shown.shape == (LEAST_SIDE, LEAST_SIDE, 3)
    grey = np.asarray(enlarged(squares[0]).convert("L")).astype(int)
    assert np.abs(shown - grey[..., None]).max() <= 1
    assert np.array_equal(shown, overlay(squares[0], torch.zeros(4, 4), 0.0))


def test_the_strongest_has_full_colour_on_its_own_side() -> None:
    for value, name in ((2.0, FOR[-1]), (-2.0, AGAINST[-1])):
        shown = np.asarray(overlay(GREY, torch.full((2, 2), value), 2.0))
        expected = 100 * (1 - OPACITY) + rgb(name) * OPACITY
        assert np.abs(shown - expected).max() <= 0.5
    half = np.asarray(overlay(GREY, torch.full((2, 2), 1.0), 2.0)).astype(int)
    assert 0 < np.abs(half - 100).max() < np.abs(shown.astype(int) - 100).max()


def test_a_place_of_the_map_is_that_place_of_the_picture() -> None:
    class_map = torch.zeros(4, 4)
    class_map[0, 3] = 1.0  # up and right
    shown = np.asarray(overlay(GREY, class_map, 1.0)).astype(int)
    far = np.abs(shown - 100).sum(2)
    y, x = np.unravel_index(far.argmax(), far.shape)
    assert y < LEAST_SIDE / 4
    assert x > 3 * LEAST_SIDE / 4
    assert far[LEAST_SIDE // 2 :, : LEAST_SIDE // 2].max() == 0


def test_stronger_is_brighter_in_luminance() -> None:
    """On middle grey, on either side, so that it can be read without seeing hues."""
    colours = [rgb(name) @ (0.2126, 0.7152, 0.0722) for name in legend(101)]
    assert np.diff(colours[75:]).min() > 0
    assert np.diff(colours[:25]).max() < 0


def test_a_picture_is_enlarged_by_whole_pixels(squares: Tensor) -> None:
    large = np.asarray(enlarged(squares[0]))
    assert np.array_equal(large[::7, ::7], squares[0].permute(1, 2, 0).numpy())
    grey = enlarged(torch.zeros(1, 224, 224, dtype=torch.uint8))
    assert (grey.size, grey.mode) == ((224, 224), "RGB")


def test_floats_and_many_channels_can_be_looked_at(squares: Tensor) -> None:
    same = enlarged(squares[0].float() / 255)
    assert np.array_equal(same, enlarged(squares[0]))
    bands = torch.cat([squares[0], squares[1]])[:5]
    shown = np.asarray(enlarged(bands)).astype(float)[::7, ::7]
    assert np.abs(shown - bands.float().mean(0)[..., None].numpy()).max() <= 0.5
