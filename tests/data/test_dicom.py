"""Real DICOM files, those that pydicom's wheel holds, against pydicom's own functions."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_windowing

from densekit.data.decode import UnreadableImage, decode
from densekit.data.dicom import read_dicom
from densekit.data.intensity import Intensity

PLENTY = 10**8
GREY = [
    "CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
    "MR_small_RLE.dcm", "no_meta.dcm",
]  # fmt: skip


def content(name: str) -> bytes:
    file = get_testdata_file(name, download=False)
    assert isinstance(file, str)
    return Path(file).read_bytes()


def changed(name: str, **elements: object) -> bytes:
    """The file with other elements."""
    file, written = pydicom.dcmread(io.BytesIO(content(name))), io.BytesIO()
    for key, value in elements.items():
        setattr(file, key, value)
    file.save_as(written)
    return written.getvalue()


@pytest.mark.parametrize("name", GREY[:-1])
def test_values_are_pydicoms(name: str) -> None:
    file = pydicom.dcmread(io.BytesIO(content(name)))
    found = read_dicom(content(name), PLENTY)
    np.testing.assert_array_equal(found.values[..., 0], apply_modality_lut(file.pixel_array, file))


def test_ct_is_in_hounsfield_units() -> None:
    """CT_small has an intercept of -1024; its air is near -1000."""
    found = read_dicom(content("CT_small.dcm"), PLENTY)
    assert (found.values.min(), found.values.max()) == (-896, 1167)
    assert found.span == (-32768 - 1024, 32767 - 1024)


def test_the_files_window_is_dicoms_linear_function() -> None:
    data = content("MR_small.dcm")
    file = pydicom.dcmread(io.BytesIO(data))
    square = Intensity("window").apply(read_dicom(data, PLENTY), 1)
    shown = apply_windowing(apply_modality_lut(file.pixel_array, file), file)
    unit = (shown - shown.min()) / (shown.max() - shown.min())
    assert (file.WindowCenter, file.WindowWidth) == (600, 1600)
    limits = read_dicom(data, PLENTY).window
    assert limits == (600 - 0.5 - 1599 / 2, 600 - 0.5 + 1599 / 2)
    clipped = np.clip((file.pixel_array - limits[0]) / (limits[1] - limits[0]), 0, 1)
    np.testing.assert_allclose(square[0], clipped, atol=1e-6)
    order = np.argsort(shown, axis=None)
    assert np.all(np.diff(square[0].flatten().numpy()[order]) >= -1e-6)
    assert unit.shape == square[0].shape


def test_monochrome1_is_a_negative() -> None:
    positive = content("MR_small.dcm")
    negative = changed("MR_small.dcm", PhotometricInterpretation="MONOCHROME1")
    for rule in ("full", "percentile", "window"):
        one, other = (Intensity(rule).apply(read_dicom(d, PLENTY), 1) for d in (positive, negative))
        assert torch.equal(other, 1 - one), rule


def test_full_is_the_range_of_the_stored_bits() -> None:
    data = changed("MR_small.dcm", BitsStored=12, HighBit=11)
    assert read_dicom(data, PLENTY).span == (-2048, 2047)


def test_colour() -> None:
    found = read_dicom(content("SC_rgb_small_odd.dcm"), PLENTY)
    assert found.values.shape[2] == 3
    assert Intensity().apply(found, 3).dtype == torch.uint8, "8 bits, as a photograph has"


REFUSED = {
    "rtplan.dcm": "is a DICOM file without an image",
    "SC_rgb_rle_2frame.dcm": "is a DICOM file of 2 images",
    "JPEGLSNearLossless_16.dcm": "needs another library",
    "examples_palette.dcm": "neither grey nor colour (MONOCHROME1, MONOCHROME2, RGB, YBR)",
    "MR_truncated.dcm": "cannot be decoded",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(content(name))
    with pytest.raises(UnreadableImage) as error:
        decode(tmp_path / name, 1, intensity=Intensity("full"))
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert REFUSED[name] in str(error.value)


def test_the_limit_on_pixels_holds(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(content("CT_small.dcm"))
    with pytest.raises(UnreadableImage, match="more than 1,000 pixels"):
        decode(tmp_path / "a.dcm", 1, 1000, Intensity("full"))


def test_nothing_of_the_patient_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither where the file is read, nor where it is damaged or its elements are malformed."""
    secret = "Doe^Jane1965"
    elements = {"PatientName": secret, "PatientID": secret, "InstitutionName": secret}
    whole = changed("CT_small.dcm", **elements)
    assert secret.encode() in whole
    broken = whole.replace(b"1.2.840.10008.1.2.1", b"Doe^Jane1965.1.2.1x")
    for data in (whole, whole[:-5000], whole[:400], broken):
        file = tmp_path / "scan.dcm"
        file.write_bytes(data)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                decode(file, 1, intensity=Intensity("window"))
                text = ""
            except UnreadableImage as error:
                text = str(error)
        out, err = capfd.readouterr()
        everything = text + out + err + "".join(str(each.message) for each in said)
        assert secret not in everything
        assert "Jane" not in everything
    parsed = pydicom.dcmread(io.BytesIO(whole), specific_tags=["Rows"])
    assert "PatientName" not in parsed
