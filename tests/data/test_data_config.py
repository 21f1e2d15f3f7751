"""The data section's old, flat names, as recipes, options, run folders and artifacts hold them."""

from __future__ import annotations

from pathlib import Path

import pytest

from densekit.config import ConfigSource, UserError, build, moved_keys, read_yaml
from densekit.data.config import AugmentConfig, DataConfig, EvaluateConfig
from densekit.training.recipe import Recipe, differences, load, load_with_notes

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
    assert differences(stored, Recipe(data=load("quickstart").data)) == []
    changed = load("quickstart", ["data.augment.flip=0.5"]).data
    assert differences(stored, Recipe(data=changed)) == ["data.augment.flip: 0.0 -> 0.5"]


def test_an_artifacts_section_of_the_version_before() -> None:
    old = {"root": "/x", "eval_batch_size": 8, "resize": 300, "crop": "pad", "augment_prob": 0.5}
    config = build(DataConfig, ConfigSource(old))
    assert (config.evaluate.batch_size, config.evaluate.resize) == (8, 300)
    assert (config.augment.crop, config.augment.policy_prob) == ("pad", 0.5)


def test_options_and_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  crop: pad\n  crop_scale: [0.5, 1]\n")
    recipe, notes = load_with_notes(str(file), ["data.crop=none", "data.crop_scale.0=0.25"])
    assert recipe.data.augment.crop == "none"
    assert recipe.data.augment.crop_scale == (0.25, 1)
    now = "data.crop is now data.augment.crop; the old name works for this version"
    assert f"{file}:2: {now}" in notes
    assert f"-o data.crop=none: {now}" in notes
    assert load_with_notes("quickstart")[1] == ()
    with pytest.raises(UserError, match=r"^-o data\.crop=padd: expected .* got \'padd\'"):
        load(None, ["data.crop=padd"])
