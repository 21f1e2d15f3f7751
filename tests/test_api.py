"""What a notebook calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import densekit
from densekit.config import UserError

TINY = "densenet_bc_16_8"


def test_create_model_without_a_head(tmp_path: Path) -> None:
    """As timm: num_classes=0 gives pooled features; weights lose their head."""
    whole = densekit.create_model(TINY, num_classes=4).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    model = densekit.create_model(TINY, num_classes=0, pretrained=str(tmp_path / "weights.pth"))
    x = torch.randn(2, 3, 8, 8)
    assert isinstance(model.classifier, nn.Identity)
    assert not [name for name in model.state_dict() if "classifier" in name]
    assert torch.equal(whole.classifier(model.eval()(x)), whole(x))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_classes": -1}, "^create_model: num_classes: expected .*equal to 1, got -1$"),
        ({"drop_rate": 2}, "^create_model: drop_rate: expected less than 1, got 2$"),
        ({"name": "densenet_bc_40000_4"}, "^model.name: .* dense layers; more than 1,000 are"),
    ],
)
def test_a_wrong_argument_is_a_sentence(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        densekit.create_model(**arguments)
