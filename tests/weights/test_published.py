"""weights/published.py: the table agrees with what its sources say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torchvision

from densekit.config import UserError
from densekit.models.variants import VARIANTS
from densekit.weights import published
from densekit.weights.published import PUBLISHED, Published

DOCS = Path(__file__).parents[2] / "docs" / "weights.md"


def test_torchvisions_rows_are_torchvisions() -> None:
    rows = [row for row in PUBLISHED if row.source == "torchvision"]
    assert len(rows) == 4
    for row in rows:
        weights = torchvision.models.get_model_weights(row.model)["IMAGENET1K_V1"]
        metrics = weights.meta["_metrics"]["ImageNet-1K"]
        assert (row.url, row.top1, row.top5) == (weights.url, metrics["acc@1"], metrics["acc@5"])
        assert row.checksum == f"sha256:{weights.url[-12:-4]}"
        theirs, ours = weights.transforms(), published.PREPROCESSINGS[row.preprocessing]
        assert (theirs.resize_size, theirs.crop_size) == ([ours.resize], [ours.crop])
        assert (tuple(theirs.mean), tuple(theirs.std)) == (ours.mean, ours.std)
        assert theirs.interpolation.value == ours.interpolation


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.source}-{row.model}")
def test_every_row(row: Published) -> None:
    assert row.model in VARIANTS
    assert row.url.startswith(("https://", "hf-hub:"))
    assert row.preprocessing is None or row.preprocessing in published.PREPROCESSINGS
    assert (row.top1 is None) == (row.top5 is None) == (row.num_classes != 1000)
    assert published.find_published(row.source, row.model) == row
    assert f"| {row.url} |" in DOCS.read_text(encoding="utf-8")


def test_a_checksum_finds_its_row() -> None:
    sha256, md5 = "a639ec97" + 56 * "0", 32 * "0"
    row = published.of_digest(sha256, md5)
    assert row is not None
    assert row.url.endswith("densenet121-a639ec97.pth")
    row = published.of_digest(64 * "0", "d699b8f76981ab1b30698df4c175e90b")
    assert row is not None
    assert (row.source, row.model) == ("keras", "densenet169")
    assert published.of_digest(64 * "0", md5) is None


def test_what_a_source_does_not_have() -> None:
    with pytest.raises(UserError, match="keras has no weights for densenet161"):
        published.find_published("keras", "densenet161")
