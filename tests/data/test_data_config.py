"""The data section: its old, flat names wherever a user wrote them, options that have no effect or
cannot be meant, and the resize that follows the image size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from densekit.config import (
    ConfigSource,
    Layers,
    UserError,
    assemble,
    build,
    moved_keys,
    read_yaml,
    to_yaml,
)
from densekit.data.augment_config import AugmentConfig
from densekit.data.config import DataConfig, EvaluateConfig
from densekit.data.transforms import Preprocessing
from densekit.training.recipe import Recipe, differences, load_recipe, read_recipe, shipped

OLD = """
train: builtin:mnist5k
channels: 1
relabel: false
image_size: 28
train_size: null
resize: null
interpolation: bilinear
rounding: torchvision
crop: none
crop_distribution: torchvision
crop_scale: [0.08, 1.0]
crop_padding: 4
flip: 0.0
affine_degrees: 10.0
affine_translate: 0.1
affine_scale: 0.1
affine_shear: 5.0
affine_prob: 1.0
augment_prob: 1.0
color_jitter: [0.0, 0.0, 0.0, 0.0]
mixup_alpha: 0.2
mean: [0.13]
std: [0.31]
batch_size: 64
eval_batch_size: 64
"""  # of a run's recipe.yaml as the version before wrote it


def test_every_old_name_has_a_place_in_the_section() -> None:
    fields = {"augment": AugmentConfig.model_fields, "evaluate": EvaluateConfig.model_fields}
    for (old,), (section, name) in moved_keys(DataConfig).items():
        assert name in fields[str(section)]
        assert old not in DataConfig.model_fields


def test_a_run_of_the_version_before_is_a_run_of_the_same_recipe() -> None:
    indented = OLD.replace("\n", "\n  ")
    stored = build(Recipe, read_yaml(Path("recipe.yaml"), f"data:\n{indented}"))
    assert differences(stored, Recipe(data=load_recipe("quickstart").data)) == []
    changed = load_recipe("quickstart", ["data.augment.flip=0.5"]).data
    assert differences(stored, Recipe(data=changed)) == ["data.augment.flip: 0.0 -> 0.5"]


def test_an_artifacts_section_of_the_version_before() -> None:
    old = {"root": "/x", "eval_batch_size": 8, "resize": 300, "crop": "pad", "augment_prob": 0.5}
    config = build(DataConfig, ConfigSource(old))
    assert (config.evaluate.batch_size, config.evaluate.resize) == (8, 300)
    assert (config.augment.crop, config.augment.policy_prob) == ("pad", 0.5)


def test_options_and_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  crop: none\n  crop_scale: [0.5, 1]\n")
    options = ["data.crop=random_resized", "data.crop_scale.0=0.25"]
    recipe, notes = assemble(Recipe, Layers({}, read_recipe(str(file))[0], options))
    assert recipe.data.augment.crop == "random_resized"
    assert recipe.data.augment.crop_scale == (0.25, 1)
    now = "data.crop is now data.augment.crop; the old name works for this version"
    assert f"{file}:2: {now}" in notes
    assert f"-o data.crop=random_resized: {now}" in notes
    assert assemble(Recipe, Layers({}, read_recipe("quickstart")[0]))[1] == ()
    with pytest.raises(UserError, match=r"^-o data\.crop=padd: expected .* got \'padd\'"):
        load_recipe(None, ["data.crop=padd"])


# Options that have no effect, or cannot be meant --------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["crop_padding=2"], "with data.augment.crop=random_resized; it needs .*crop=pad"),
        (["crop_scale=[0.5, 1]", "crop=pad"], "with data.augment.crop=pad; .*=random_resized"),
        (["crop_ratio=[1, 1]", "crop=none"], "with data.augment.crop=none"),
        (["crop_distribution=paddle", "crop=pad"], "with data.augment.crop=pad"),
        (["crop_size=64", "crop=none"], "with data.augment.crop=none"),
        (["affine_prob=0.5"], "it needs data.augment.affine_degrees, or .*affine_translate, or"),
        (["policy_prob=0.5"], "it needs data.augment.auto_augment, or data.augment.rand_augment"),
        (["rand_augment_magnitude=5", "auto_augment=imagenet"], "it needs .*rand_augment"),
        (["color_jitter_prob=0.5"], "with data.augment.color_jitter="),
        (["erase_scale=[0.1, 0.2]"], "with data.augment.erase=0.0"),
        (["erase_ratio=[1, 2]"], "it needs data.augment.erase"),
        (["erase_with=noise"], "it needs data.augment.erase"),
        (["mixup_alpha=0.4", "cutmix=1"], "it needs data.augment.mixup"),
        (["cutmix_alpha=0.4", "mixup=1"], "it needs data.augment.cutmix"),
    ],
)
def test_an_option_without_effect_is_refused_as_typed(options: list[str], said: str) -> None:
    typed = [f"data.augment.{option}" for option in options]
    with pytest.raises(UserError, match=f"^-o {re.escape(typed[0])}: has no effect .*{said}"):
        load_recipe(None, typed)


def test_what_an_option_switches_off_is_no_mistake_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  augment: {mixup: 0.5, mixup_alpha: 0.4}\n")
    assert load_recipe(str(file)).data.augment.mixup_alpha == 0.4
    assert load_recipe(str(file), ["data.augment.mixup=0"]).data.augment.mixup_alpha == 0.2
    file.write_text("data:\n  augment:\n    mixup_alpha: 0.4\n")
    with pytest.raises(UserError, match=rf"{file}:3: data\.augment\.mixup_alpha: has no effect"):
        load_recipe(str(file))


def test_every_default_written_out_is_no_mistake(tmp_path: Path) -> None:
    """A run's recipe.yaml holds them all."""
    for name in shipped():
        file = tmp_path / "recipe.yaml"
        file.write_text(to_yaml(load_recipe(name).model_dump(mode="json")))
        assert load_recipe(str(file)) == load_recipe(name)


def test_interpolation_without_any_resize() -> None:
    alone = ["data.evaluate.resize=null", "data.augment.crop=none"]
    with pytest.raises(UserError, match=r"-o data\.interpolation=bicubic: has no effect"):
        load_recipe(None, [*alone, "data.interpolation=bicubic"])
    for used in alone:
        load_recipe(None, [used, "data.interpolation=bicubic"])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("augment.crop_scale=[2, 3]", "expected less than or equal to 1, got 2"),
        ("augment.crop_scale=[0.5, 0.1]", "expected the smaller number first"),
        ("augment.erase_scale=[0, 0.1]", "expected greater than 0"),
        ("augment.affine_shear=90", "expected less than 90"),
        ("augment.color_jitter=[.inf, 0, 0, 0]", "expected a finite number"),
        ("augment.flip=.nan", "expected"),
        ("mean=[123.7, 116.3, 103.5]", r"pixels in 0\.\.1, got .*; divide those .* by 255"),
        ("std=[58.4]", r"pixels in 0\.\.1"),
        ("evaluate.resize=100", "resize=100 is smaller than the image size 224.*set resize to 256"),
        ("evaluate.resize=big", "expected a valid integer.* or 'auto', got 'big'"),
    ],
)
def test_what_cannot_be_meant(option: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe(None, [f"data.{option}"])


@pytest.mark.parametrize(("side", "resize"), [(224, 256), (128, 146), (28, 32), (1, 1), (299, 342)])
def test_the_resize_follows_the_image_size(side: int, resize: int) -> None:
    """An image size alone left 256, of which the evaluation then saw a part."""
    data = load_recipe(None, [f"data.image_size={side}"]).data
    assert Preprocessing.from_config(data).resize == resize
    assert data.resolved(workers=2, shuffle_window=0, cache="off").evaluate.resize == resize
    for given, kept in (("null", None), ("400", 400)):
        options = [f"data.image_size={side}", f"data.evaluate.resize={given}"]
        assert load_recipe(None, options).data.eval_resize == kept


def test_shipped_recipes_resize_as_they_always_did() -> None:
    for name in shipped():
        asked = load_recipe(name).data.eval_resize
        assert asked == (256 if name.startswith("imagenet/") else None), name
