"""The table of published DenseNet weights: URL, checksum, accuracy, preprocessing.

Accuracies are the publishers' own on ImageNet's validation set, not reproduced here; None if
unpublished. Sources: torchvision's weights API; PaddleClas' model zoo; timm's
results-imagenet.csv; keras.io/api/applications; torchxrayvision/models.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from densekit.config import UserError, nearest
from densekit.models.artifact import Preprocessing, Task

XRAY_CLASSES = (
    "Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema",
    "Fibrosis", "Effusion", "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass",
    "Hernia", "Lung Lesion", "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum",
)  # fmt: skip

PREPROCESSINGS: dict[str, Preprocessing] = {
    "imagenet": Preprocessing(),
    "timm": Preprocessing(interpolation="bicubic"),
    "timm-288": Preprocessing(interpolation="bicubic", resize=303, crop=288),
    "paddleclas": Preprocessing(antialias=False, rounding="paddle"),
    "torchxrayvision": Preprocessing(
        channels=1, resize=224, crop=224, mean=(0.5,), std=(1 / 2048,)
    ),  # maps pixels 0..255 to -1024..1024
}
"""The publishers' evaluation preprocessing; `imagenet` is torchvision's."""
MULTILABEL = ("torchxrayvision",)


@dataclass(frozen=True)
class Published:
    """One file of weights."""

    source: str
    """Its name in `model.pretrained`."""
    model: str
    url: str
    checksum: str | None = None
    """`sha256:` or `md5:` and the digest, or as many leading digits as are published."""
    num_classes: int = 1000
    top1: float | None = None
    top5: float | None = None
    preprocessing: str | None = None
    """The key in PREPROCESSINGS of what its publisher evaluates with."""


_TORCHVISION = "https://download.pytorch.org/models/{}.pth"
_PADDLE = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/{}_pretrained.pdparams"
_KERAS = (
    "https://storage.googleapis.com/tensorflow/keras-applications/densenet/"
    "{}_weights_tf_dim_ordering_tf_kernels.h5"
)
_XRAY = (
    "https://github.com/mlmed/torchxrayvision/releases/download/v1/"
    "{}-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
)


def _torchvision(model: str, digest: str, top1: float, top5: float) -> Published:
    url = _TORCHVISION.format(f"{model}-{digest}")
    return Published(
        "torchvision", model, url, f"sha256:{digest}", 1000, top1, top5, "imagenet"
    )  # fmt: skip


def _timm(name: str, top1: float, top5: float, preprocessing: str = "timm") -> Published:
    model = name.partition(".")[0]
    return Published(
        "timm", model, f"hf-hub:timm/{name}", None, 1000, top1, top5, preprocessing
    )  # fmt: skip


def _paddle(depth: int, top1: float, top5: float) -> Published:
    url = _PADDLE.format(f"DenseNet{depth}")
    return Published(
        "paddle", f"densenet{depth}", url, None, 1000, top1, top5, "paddleclas"
    )  # fmt: skip


def _keras(model: str, md5: str, top1: float, top5: float) -> Published:
    # keras.io does not say how images were resized; preprocess_input normalises as imagenet
    return Published(
        "keras", model, _KERAS.format(model), f"md5:{md5}", 1000, top1, top5, None
    )  # fmt: skip


def _xray(source: str, data: str) -> Published:
    return Published(
        f"torchxrayvision-{source}", "densenet121", _XRAY.format(data), num_classes=18,
        preprocessing="torchxrayvision",
    )  # fmt: skip


PUBLISHED = (
    _torchvision("densenet121", "a639ec97", 74.434, 91.972),
    _torchvision("densenet161", "8d451a50", 77.138, 93.560),
    _torchvision("densenet169", "b2777c0a", 75.600, 92.806),
    _torchvision("densenet201", "c1103571", 76.896, 93.370),
    _timm("densenet121.ra_in1k", 76.500, 93.368, "timm-288"),
    _timm("densenet161.tv_in1k", 77.358, 93.642),
    _timm("densenet169.tv_in1k", 75.900, 93.028),
    _timm("densenet201.tv_in1k", 77.286, 93.480),
    _paddle(121, 75.7, 92.6),
    _paddle(161, 78.6, 94.1),
    _paddle(169, 76.8, 93.3),
    _paddle(201, 77.6, 93.7),
    _paddle(264, 78.0, 93.9),
    _keras("densenet121", "9d60b8095a5708f2dcce2bca79d332c7", 75.0, 92.3),
    _keras("densenet169", "d699b8f76981ab1b30698df4c175e90b", 76.2, 93.2),
    _keras("densenet201", "1ceb130c1ea1b78c3bf6114dbdfd8807", 77.3, 93.6),
    _xray("all", "nih-pc-chex-mimic_ch-google-openi-kaggle"),
    _xray("nih", "nih"),
    _xray("pc", "pc"),
    _xray("chex", "chex"),
    _xray("rsna", "kaggle"),
    _xray("mimic_nb", "mimic_nb"),
    _xray("mimic_ch", "mimic_ch"),
)
SOURCES = tuple(dict.fromkeys(published.source for published in PUBLISHED))


def find_published(source: str, model: str) -> Published:
    """Raises UserError if `source` has no weights for `model`."""
    own = {row.model: row for row in PUBLISHED if row.source == source}
    if model not in own:
        raise UserError(f"{source} has no weights for {model}{nearest(model, own)}")
    return own[model]


def of_digest(sha256: str, md5: str) -> Published | None:
    """The published weights whose checksum matches these digests of a file, if any."""
    digests = {"sha256": sha256, "md5": md5}
    for row in PUBLISHED:
        kind, _, digest = (row.checksum or "").partition(":")
        if digest and digests[kind].startswith(digest):
            return row
    return None


def task_of(preprocessing: str | None) -> Task:
    """The task of the published networks that use this preprocessing."""
    return "multilabel" if preprocessing in MULTILABEL else "multiclass"
