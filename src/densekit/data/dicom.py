"""DICOM files: rescaled values and their window, and nothing about the patient.

Only the elements in ELEMENTS are parsed, so no name, date or ID of a patient gets into a
message or a log; pydicom's own messages, which may quote elements, are dropped.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from densekit.config import needs_extra
from densekit.data.pixels import Pixels, check_size, full_span

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

ELEMENTS = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction",
    "PixelData", "FloatPixelData", "DoubleFloatPixelData",
]  # fmt: skip
GREY_KINDS, COLOUR_KINDS = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR")


def read_dicom(data: bytes, max_pixels: int) -> Pixels:
    """The first image's values, [H, W, 1] grey or [H, W, 3] colour.

    Raises ValueError, which quotes no element, for a file without an image, with several, or in
    an encoding that the installed libraries cannot decode.
    """
    with needs_extra("dicom", "is DICOM, which"):
        import pydicom
    # pydicom's warnings quote malformed elements
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        file = pydicom.dcmread(io.BytesIO(data), specific_tags=ELEMENTS)
        height, width = int(file.get("Rows") or 0), int(file.get("Columns") or 0)
        frames = int(file.get("NumberOfFrames") or 1)
        kind = str(file.get("PhotometricInterpretation", ""))
    except Exception as error:
        raise ValueError(f"is a corrupt DICOM file ({type(error).__name__})") from None
    if not height or not width or not kind:
        raise ValueError("is a DICOM file without an image")
    check_size(height, width, max_pixels)
    if frames > 1:
        raise ValueError(f"is a DICOM file of {frames} images; expected one: save each separately")
    if kind not in GREY_KINDS and not kind.startswith(COLOUR_KINDS):
        known = ", ".join((*GREY_KINDS, *COLOUR_KINDS))
        raise ValueError(f"is a DICOM file whose pixels are neither grey nor colour ({known})")
    values = _decoded(file)
    if kind not in GREY_KINDS:
        return Pixels(values, full_span(values.dtype))
    return _grey(file, values[..., None], inverted=kind == "MONOCHROME1")


def _decoded(file: FileDataset) -> np.ndarray:
    """The stored values; YBR becomes RGB."""
    try:
        return file.pixel_array
    except Exception as error:
        uid = file.file_meta.get("TransferSyntaxUID")
        known = uid is not None and uid.is_transfer_syntax and not uid.is_private
        encoding = uid.name if known else "an unknown encoding"
        raise ValueError(
            f"is a DICOM file whose pixels cannot be decoded ({encoding}; "
            f"{type(error).__name__}): it is corrupt, or its compression needs another library, "
            f"such as pylibjpeg"
        ) from None


def _grey(file: FileDataset, stored: np.ndarray, inverted: bool) -> Pixels:
    """Rescaled: Hounsfield units in CT."""
    from pydicom.pixels import apply_modality_lut

    try:
        values = apply_modality_lut(stored, file)
        slope = float(file.get("RescaleSlope") or 1)
        intercept = float(file.get("RescaleIntercept") or 0)
        window = _window(file)
    except Exception as error:
        raise ValueError(
            f"is a DICOM file whose rescale or window cannot be read ({type(error).__name__})"
        ) from None
    span = None if file.get("ModalityLUTSequence") else _stored_span(file, stored.dtype)
    if span is not None:
        ends = sorted(end * slope + intercept for end in span)
        span = ends[0], ends[1]
    if (slope, intercept) == (1, 0) and not file.get("ModalityLUTSequence"):
        values = stored  # in the file's dtype
    return Pixels(values, span, window, inverted)


def _stored_span(file: FileDataset, dtype: np.dtype) -> tuple[float, float] | None:
    """The smallest and largest value that the stored bits can hold."""
    if dtype.kind not in "ui":
        return None
    bits = int(file.BitsStored)
    return (
        (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if dtype.kind == "i" else (0.0, 2.0**bits - 1)
    )


def _window(file: FileDataset) -> tuple[float, float] | None:
    """The first of the file's windows: the values that become black and white.

    LINEAR starts at centre - 0.5 - (width - 1) / 2 and spans width - 1 (PS3.3 C.11.2.1.2.1);
    LINEAR_EXACT spans centre +- width / 2. Other functions are ignored (None).
    """
    centre, width = _first(file.get("WindowCenter")), _first(file.get("WindowWidth"))
    function = str(file.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or function not in ("LINEAR", "LINEAR_EXACT"):
        return None
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return (centre - width / 2, centre + width / 2) if width > 0 else None


def _first(value: Any) -> float | None:
    """The first value of an element that may have several."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float, str)) else value[0])
