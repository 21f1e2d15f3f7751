"""engines.py: which engine computes what, and what is said where one cannot."""

from __future__ import annotations

import pytest
import torch

from densekit.config import UserError
from densekit.data.transforms import Preprocessing
from densekit.infer.classifier import Classifier
from densekit.infer.engines import open_engine, resolve_engine
from densekit.infer.model import Opened
from densekit.models.densenet import DenseNet, DenseNetConfig
from densekit.precision import Precision

TINY = DenseNetConfig(
    growth_rate=4, block_config=(2, 2), num_init_features=8, stem="cifar", in_channels=1,
    num_classes=3, image_size=28,
)  # fmt: skip
PREPROCESSING = Preprocessing(channels=1, resize=None, crop=28, mean=(0.5,), std=(0.5,))
FP32 = Precision(torch.device("cpu"))


@pytest.fixture
def opened() -> Opened:
    torch.manual_seed(0)
    network = DenseNet(TINY, op="reference").eval()
    return Opened("tiny", network, PREPROCESSING, ["zero", "one", "two"])


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_an_artifact_is_computed_by_torch(opened: Opened, engine: str) -> None:
    images = torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = opened.model(PREPROCESSING.normalize(images))
    torch.testing.assert_close(open_engine(opened, FP32, engine)(images), wanted)
    assert resolve_engine(opened, engine) == "torch"
    assert Classifier(opened, FP32, engine=engine).engine == "torch"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_other_engines_need_an_export(opened: Opened, engine: str) -> None:
    with pytest.raises(UserError, match=f"--engine {engine}: .*densekit export ARTIFACT --to"):
        Classifier(opened, FP32, engine=engine)


def test_an_unknown_engine_names_the_nearest(opened: Opened) -> None:
    with pytest.raises(UserError, match=r'--engine openvin: .*did you mean "openvino"'):
        open_engine(opened, FP32, "openvin")
