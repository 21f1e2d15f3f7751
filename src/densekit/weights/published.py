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
        channels=1, intensity="full", resize=224, crop=224, mean=(0.5,), std=(1 / 2048,)
    ),  # what the file's bits can hold as -1024..1024
}
"""The publishers' evaluation preprocessing; `imagenet` is torchvision's."""
MULTILABEL = ("torchxrayvision",)


OPERATING_POINTS = "TorchXRayVision's op_threshs"
"""The rule of an artifact's thresholds that come from there."""
_NO = None
XRAY_POINTS: dict[str, tuple[float | None, ...]] = {
    "all": (
        0.07422872, 0.038290843, 0.09814756, 0.0098118475, 0.023601074, 0.0022490358, 0.010060724,
        0.103246614, 0.056810737, 0.026791653, 0.050318155, 0.023985857, 0.01939503, 0.042889766,
        0.053369623, 0.035975814, 0.20204692, 0.05015312,
    ),
    "nih": (
        0.039117552, 0.0034529066, 0.11396341, 0.0057298196, 0.00045666535, 0.0018880932,
        0.012037827, 0.038744126, 0.0037213727, 0.014730946, 0.016149804, 0.054241467, 0.037198864,
        0.0004403434, _NO, _NO, _NO, _NO,
    ),
    "pc": (
        0.031012505, 0.013347598, 0.081435576, 0.001262615, 0.002587246, 0.0035944257, 0.0023071,
        0.055412333, 0.044385884, 0.042766232, 0.043258056, 0.037629247, 0.005658899, 0.0091741895,
        _NO, 0.026507627, _NO, _NO,
    ),
    "chex": (
        0.1988969, 0.05710573, _NO, 0.0531293, 0.1435217, _NO, _NO, 0.27212676, 0.07749717, _NO,
        0.19712369, _NO, _NO, _NO, 0.09932402, 0.09273402, 0.3270967, 0.10888247,
    ),
    "rsna": (*[_NO] * 8, 0.13486601, *[_NO] * 7, 0.13511065, _NO),
    "mimic_nb": (
        0.08558747, 0.011884617, _NO, 0.0040595434, 0.010733786, _NO, _NO, 0.118761964, 0.022924708,
        _NO, 0.06358637, _NO, _NO, _NO, 0.022143636, 0.017476924, 0.1258702, 0.014020768,
    ),
    "mimic_ch": (
        0.09121389, 0.010573786, _NO, 0.005023008, 0.003698257, _NO, _NO, 0.08001232, 0.037242252,
        _NO, 0.05006329, _NO, _NO, _NO, 0.019866971, 0.03823637, 0.11303808, 0.0069147074,
    ),
}  # fmt: skip
"""op_threshs of torchxrayvision/models.py 1.5.7: the probability from which on a finding of
XRAY_CLASSES is taken for there; none where these weights were not trained on the finding."""


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
    thresholds: tuple[float | None, ...] | None = None
    """Of a multilabel network."""


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
        preprocessing="torchxrayvision", thresholds=XRAY_POINTS[source],
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


def of_name(source: str, model: str, file: str) -> Published | None:
    """The row whose place `source` is; or whose file it is by name, where that is long enough to
    be no chance: TorchXRayVision's, which have no checksum."""
    for row in PUBLISHED:
        long_name = row.preprocessing == "torchxrayvision" and row.url.endswith(f"/{file}")
        if row.model == model and (source in (row.source, row.url) or long_name):
            return row
    return None


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
