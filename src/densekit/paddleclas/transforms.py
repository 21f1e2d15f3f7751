"""transform_ops and batch_transform_ops -> data.*"""

from __future__ import annotations

import math
import re
from typing import Any

from densekit.paddleclas.translation import Translation

TRAIN, EVAL, INFER = (
    "DataLoader.Train.dataset.transform_ops",
    "DataLoader.Eval.dataset.transform_ops",
    "Infer.transforms",
)
EVAL_OPS = ("DecodeImage", "ResizeImage", "CropImage", "NormalizeImage", "ToCHWImage")
ORDER = (
    "RandCropImage", "RandomRotation", "RandFlipImage", "AutoAugment", "RandAugment",
    "TimmAutoAugment", "ColorJitter", "RandomErasing",
)  # fmt: skip
INTERPOLATIONS = {"nearest": 0, "bilinear": 1, "bicubic": 2}  # by cv2's numbers
Ops = dict[str, str]
"""An operation's name -> its dotted path."""


def translate_transforms(t: Translation, evaluated: str = EVAL) -> None:
    """Both lists; `evaluated` is the one that evaluation, or prediction, follows."""
    eval_ops, train_ops = _ops(t, evaluated), _ops(t, TRAIN)
    for name, path in eval_ops.items():
        if name not in EVAL_OPS:
            t.fail(path, f"{name} is for training; evaluation takes {', '.join(EVAL_OPS)}")
    _normalize(t, [eval_ops, train_ops])
    _resizes(t, [eval_ops, train_ops])
    _evaluation(t, eval_ops, evaluated)
    if train_ops:
        _training(t, train_ops)


def _ops(t: Translation, path: str) -> Ops:
    found: Ops = {}
    for index, item in enumerate(t.value(path, [])):
        name = str(next(iter(item)))
        if name in found:
            t.fail(f"{path}.{index}.{name}", f"{name} stands twice; densekit applies it once")
        found[name] = f"{path}.{index}.{name}"
    return found


def _evaluation(t: Translation, ops: Ops, where: str) -> None:
    if "CropImage" not in ops:
        t.fail(where, "CropImage is missing, which says what size the network sees")
    t.set("data.image_size", _side(t, f"{ops['CropImage']}.size"), f"{ops['CropImage']}.size")
    short = f"{ops['ResizeImage']}.resize_short" if "ResizeImage" in ops else ""
    t.set("data.evaluate.resize", t.value(short) if short else None, short)
    t.set("data.evaluate.rounding", "paddle")


def _side(t: Translation, path: str) -> int:
    size = t.value(path)
    sides = size if isinstance(size, list) else [size]
    if not all(isinstance(side, int) for side in sides) or len(set(sides)) != 1:
        t.fail(path, f"expected the side of a square, got {size!r}")
    return sides[0]


def _normalize(t: Translation, lists: list[Ops]) -> None:
    for ops in lists:
        if not ops:
            continue
        if "NormalizeImage" not in ops:
            t.fail(next(iter(ops.values())), "NormalizeImage is missing from this list")
        path = ops["NormalizeImage"]
        if not math.isclose(t.number(f"{path}.scale", 1 / 255), 1 / 255, rel_tol=1e-5):
            t.fail(f"{path}.scale", "densekit divides pixels by 255: write 1.0/255.0")
        for name in ("mean", "std"):
            _agree(t, f"data.{name}", t.value(f"{path}.{name}"), f"{path}.{name}")


def _agree(t: Translation, key: str, value: Any, path: str) -> None:
    """Sets what all lists must say alike."""
    section, _, name = key.partition(".")
    before = t.tree.get(section, {}).get(name)
    if before is not None and value is not None and before != value:
        t.fail(path, f"{value!r} here and {before!r} in another list; densekit has one {key}")
    if value is not None:
        t.set(key, value, path)


def _resizes(t: Translation, lists: list[Ops]) -> None:
    """Interpolation and smoothing of ResizeImage and RandCropImage, alike in all lists."""
    for ops in lists:
        for name in ("ResizeImage", "RandCropImage"):
            if name in ops:
                given = t.value(f"{ops[name]}.interpolation", "bilinear")
                mode = {str(number): each for each, number in INTERPOLATIONS.items()}.get(
                    str(given), str(given)
                )
                if mode not in INTERPOLATIONS:
                    known = ", ".join(INTERPOLATIONS)
                    t.fail(f"{ops[name]}.interpolation", f"{given!r}: densekit has {known}")
                _agree(t, "data.interpolation", mode, f"{ops[name]}.interpolation")
                backend = t.text(f"{ops[name]}.backend", "cv2").lower()
                _agree(t, "data.antialias", backend == "pil", f"{ops[name]}.backend")


def _training(t: Translation, ops: Ops) -> None:
    if "RandCropImage" in ops:
        _random_crop(t, ops["RandCropImage"])
    else:
        t.set("data.augment.crop", "none")
        for name in ("ResizeImage", "CropImage"):
            if name in ops:
                t.note("data.augment.crop", "training images are cut as the evaluation's")
    t.set("data.augment.flip", 0.5 if "RandFlipImage" in ops else 0.0)
    for name, translate in AUGMENTATIONS.items():
        if name in ops:
            translate(t, ops[name])
    order = list(ops)
    if "RandomErasing" in ops and order.index("RandomErasing") < order.index("NormalizeImage"):
        t.note("data.augment.erase_with", "theirs erases before NormalizeImage here, so that const "
               "is black and pixel nearly so")  # fmt: skip
    asked = [name for name in ops if name in ORDER]
    if asked != sorted(asked, key=ORDER.index):
        ours = ", ".join(sorted(asked, key=ORDER.index))
        t.note("data.augment.crop", f"densekit's order is {ours}; the file's is another")


def _random_crop(t: Translation, path: str) -> None:
    t.set("data.augment.crop", "random_resized")
    log = t.is_on(f"{path}.use_log_aspect")
    t.set("data.augment.crop_distribution", "torchvision" if log else "paddle")
    side = _side(t, f"{path}.size")
    if side != t.tree["data"]["image_size"]:
        t.set("data.augment.crop_size", side, f"{path}.size")
    for name in ("scale", "ratio"):
        if t.value(f"{path}.{name}") is not None:
            t.set(f"data.augment.crop_{name}", t.value(f"{path}.{name}"), f"{path}.{name}")


def _auto_augment(t: Translation, path: str) -> None:
    t.set(
        "data.augment.auto_augment",
        "imagenet",
        path,
        "the paper's policy by torchvision; fill differs",
    )


def _rand_augment(t: Translation, path: str) -> None:
    magnitude = round(3 * t.number(f"{path}.magnitude", 5))
    t.set("data.augment.rand_augment", t.whole(f"{path}.num_layers", 2), f"{path}.num_layers",
          "torchvision's operations: theirs have Invert for Identity, and their Posterize and "
          "Solarize are stronger at a low magnitude")  # fmt: skip
    t.set("data.augment.rand_augment_magnitude", magnitude, f"{path}.magnitude")


def _timm(t: Translation, path: str) -> None:
    recipe = t.text(f"{path}.config_str", "rand-m9-mstd0.5-inc1")
    kind, options = recipe.split("-")[0], dict(re.findall(r"-([a-z]+)([\d.]+)", recipe))
    if kind == "rand":
        t.set("data.augment.rand_augment", int(options.get("n", "2")), f"{path}.config_str",
              "torchvision's operations, each applied; timm's are applied with probability 0.5, "
              "their magnitude varied by mstd")  # fmt: skip
        magnitude = round(3 * min(10.0, float(options.get("m", "10"))))
        t.set("data.augment.rand_augment_magnitude", magnitude, f"{path}.config_str")
    elif kind in ("original", "v0", "auto"):
        t.set("data.augment.auto_augment", "imagenet", path, "the paper's policy by torchvision")
    else:
        t.fail(f"{path}.config_str", f"{recipe!r}: densekit has rand-... and original")
    t.set("data.augment.policy_prob", t.number(f"{path}.prob", 1.0), f"{path}.prob")


def _erasing(t: Translation, path: str) -> None:
    ratio, mode = t.number(f"{path}.r1", 0.3), t.text(f"{path}.mode", "const")
    if mode not in ("const", "pixel"):
        t.fail(f"{path}.mode", f"{mode!r}: densekit erases with const, the mean, or pixel, noise")
    probability = t.number(f"{path}.EPSILON", 0.5)
    t.set("data.augment.erase", probability, f"{path}.EPSILON")
    if not probability:
        return
    t.set("data.augment.erase_scale", [t.number(f"{path}.sl", 0.02), t.number(f"{path}.sh", 0.4)])
    t.set("data.augment.erase_ratio", [ratio, 1 / ratio], f"{path}.r1")
    t.set("data.augment.erase_with", "mean" if mode == "const" else "noise", f"{path}.mode")
    if not t.is_on(f"{path}.use_log_aspect"):
        t.note(
            "data.augment.erase_ratio",
            "log-uniform, theirs uniform: they erase more tall than wide",
        )


def _jitter(t: Translation, path: str) -> None:
    names = ("brightness", "contrast", "saturation", "hue")
    amounts = [t.number(f"{path}.{name}", 0.0) for name in names]
    probability = min(1.0, t.number(f"{path}.prob", 1.0))
    t.set("data.augment.color_jitter", amounts, path)
    if any(amounts):
        t.set("data.augment.color_jitter_prob", probability, f"{path}.prob")


def _rotation(t: Translation, path: str) -> None:
    degrees, probability = t.number(f"{path}.degrees", 0.0), t.number(f"{path}.prob", 0.5)
    t.set("data.augment.affine_degrees", degrees, f"{path}.degrees")
    if degrees:
        t.set("data.augment.affine_prob", probability, f"{path}.prob")


AUGMENTATIONS = {
    "AutoAugment": _auto_augment,
    "RandAugment": _rand_augment,
    "TimmAutoAugment": _timm,
    "RandomErasing": _erasing,
    "ColorJitter": _jitter,
    "RandomRotation": _rotation,
}


def translate_mixing(t: Translation) -> None:
    """batch_transform_ops: one operation, or OpSampler's choice of them."""
    path = "DataLoader.Train.dataset.batch_transform_ops"
    ops = _ops(t, path)
    if len(ops) > 1:
        t.fail(path, "densekit mixes a batch once: put the operations below one OpSampler")
    for name, place in ops.items():
        sampled = name == "OpSampler"
        for mixer in t.value(place, {}) if sampled else [name]:
            _mixer(t, mixer, f"{place}.{mixer}" if sampled else place, sampled)


def _mixer(t: Translation, mixer: str, path: str, sampled: bool) -> None:
    short, alpha = ("mixup", 1.0) if mixer == "MixupOperator" else ("cutmix", 0.2)
    probability = t.number(f"{path}.prob", 0.0) if sampled else 1.0
    t.set(f"data.augment.{short}", probability, path,
          "soft labels go into the loss as they are; theirs pass through a softmax first unless "
          "CELoss.epsilon is set")  # fmt: skip
    if probability:
        t.set(f"data.augment.{short}_alpha", t.number(f"{path}.alpha", alpha), f"{path}.alpha")
