from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densekit.config import Layers, UserError, assemble
from densekit.data.splits import open_split
from densekit.data.suggest import suggest
from densekit.training.recipe import Recipe


def settings(folder: Path) -> tuple[dict[str, Any], str]:
    """What the whole recipe says, and the sentences."""
    tree, said = suggest(folder)
    recipe = assemble(Recipe, Layers(tree))[0]
    return recipe.model_dump(), "\n".join(said)


def cut(data: dict) -> tuple[int, int | None, str]:
    return data["image_size"], data["evaluate"]["resize"], data["augment"]["crop"]


def test_photographs_get_imagenets_way(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 6, "dog": 4}, suffix=".jpg", size=(320, 240))
    recipe, said = settings(tmp_path)
    data = recipe["data"]
    assert data["train"] == str(tmp_path)
    assert cut(data) == (224, 256, "random_resized")
    assert (data["channels"], data["augment"]["flip"], data["val_fraction"]) == (3, 0.5, 0.2)
    assert recipe["model"]["name"] == "densenet121"
    assert recipe["optim"]["schedule"] == "cosine"
    assert f"10 images of 2 classes in {tmp_path}" in said
    assert "short side is 240 pixels (median): data.image_size=224" in said
    assert "data.val_fraction=0.2 of each class is held out" in said
    assert "8 training images: data.batch_size=32, loop.epochs=200" in said
    train, val = open_split(assemble(Recipe, Layers(suggest(tmp_path)[0]))[0].data)
    assert (len(train), len(val)) == (8, 2)


def test_small_images_stay_as_they_are(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 3, "dog": 3}, size=(32, 32))
    recipe, said = settings(tmp_path)
    data = recipe["data"]
    assert cut(data) == (32, None, "pad")
    assert recipe["model"]["name"] == "densenet_bc_100_12"
    assert "data.image_size=32" in said
    write_folder(tmp_path, {"cow": 2}, size=(48, 40))
    assert cut(settings(tmp_path)[0]["data"])[1] == 32


@pytest.mark.parametrize(
    ("side", "image_size", "resize"),
    [(28, 28, None), (63, 63, None), (64, 64, 73), (96, 96, 110), (130, 128, 146), (160, 224, 256)],
)
def test_sizes_follow_the_table(
    tmp_path: Path, write_folder, side: int, image_size: int, resize: int | None
) -> None:
    write_folder(tmp_path, {"cat": 1, "dog": 1}, size=(side + 9, side))
    data = settings(tmp_path)[0]["data"]
    assert cut(data)[:2] == (image_size, resize)


def test_grey_files_need_one_channel(tmp_path: Path, write_folder, write_image) -> None:
    write_folder(tmp_path, {"cat": 2, "dog": 2}, mode="L")
    recipe, said = settings(tmp_path)
    assert (recipe["data"]["channels"], recipe["model"]["in_channels"]) == (1, 1)
    assert (recipe["data"]["mean"], recipe["data"]["std"]) == ((0.5,), (0.5,))
    assert "the files are grey: data.channels=1" in said
    write_image(tmp_path / "cat/colour.png")
    assert settings(tmp_path)[0]["model"]["in_channels"] == 3


def test_characters_are_not_mirrored(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path / "digits", {str(digit): 1 for digit in range(10)})
    recipe, said = settings(tmp_path / "digits")
    assert recipe["data"]["augment"]["flip"] == 0
    assert "10 classes look like characters: training does not mirror them" in said
    assert "(data.augment.flip=0); they are shifted by up to 4 pixels" in said
    for names in ("a", "b"), ("0", "1"), ("cat", "dog"):
        write_folder(tmp_path / "".join(names), dict.fromkeys(names, 2))
        recipe, said = settings(tmp_path / "".join(names))
        assert recipe["data"]["augment"]["flip"] == 0.5
        assert "mirrors images half of the time; they are shifted by up to 4 pixels" in said


def test_xrays_are_neither_mirrored_nor_cut_to_pieces(tmp_path: Path, write_folder) -> None:
    """In one channel, or in three that are alike, as many are stored."""
    write_folder(tmp_path / "L", {"normal": 2, "ill": 2}, size=(200, 180), mode="L")
    write_folder(tmp_path / "RGB", {"normal": 2, "ill": 2}, size=(200, 180), mode="L")
    for file in (tmp_path / "RGB").rglob("*.png"):
        with Image.open(file) as image:
            image.convert("RGB").save(file)
    for mode, channels in ("L", 1), ("RGB", 3):
        recipe, said = settings(tmp_path / mode)
        augment = recipe["data"]["augment"]
        assert recipe["data"]["channels"] == channels
        assert (augment["flip"], augment["crop_scale"]) == (0, (0.5, 1.0))
        assert "grey, as X-rays are: training does not mirror them" in said
    write_folder(tmp_path / "photos", {"cat": 2, "dog": 2}, size=(200, 180))
    recipe, said = settings(tmp_path / "photos")
    assert recipe["data"]["augment"]["crop_scale"] == (0.08, 1.0)
    assert "mirrors images half of the time; they are cropped to 8 - 100 % of their area" in said


def test_the_warm_up_fits_the_epochs_asked_for(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 5, "dog": 5})
    for options, warmup, epochs in (
        ([], 10, 200),
        (["loop.epochs=2"], 0, 2),
        (["loop.epochs=2", "loop.epochs=60"], 3, 60),
    ):
        tree, said = suggest(tmp_path, options)
        recipe = assemble(Recipe, Layers(tree, options=options))[0]
        assert (recipe.optim.warmup_epochs, recipe.loop.epochs) == (warmup, epochs)
        assert f"loop.epochs={epochs}" in said[-1]


def test_epochs_are_a_whole_number(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 720, "dog": 720}, size=(8, 8))
    recipe, said = settings(tmp_path)
    assert recipe["loop"]["epochs"] == 170
    assert "loop.epochs=170," in said


def test_a_run_is_called_by_the_folders_whole_name(tmp_path: Path, write_folder) -> None:
    for name in "pets.v1", "pets.v2":
        write_folder(tmp_path / name, {"cat": 2, "dog": 2})
        assert suggest(tmp_path / name)[0]["name"] == name


def test_a_whole_data_set_keeps_its_validation_images(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path / "train", {"cat": 2, "dog": 2})
    write_folder(tmp_path / "val", {"cat": 1, "dog": 1})
    recipe, said = settings(tmp_path)
    assert recipe["data"]["val_fraction"] == 0
    assert "held out" not in said
    assert "4 training images" in said
    train, val = open_split(assemble(Recipe, Layers(suggest(tmp_path)[0]))[0].data)
    assert (len(train), len(val)) == (4, 2)


def test_a_list_file_will_do(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 5, "dog": 5})
    names = [f"{c}/{i:03d}.png" for c in ("cat", "dog") for i in range(5)]
    file = tmp_path / "all.txt"
    file.write_text("".join(f"{name} {int('dog' in name)}\n" for name in names))
    tree, _ = suggest(file)
    train, val = open_split(assemble(Recipe, Layers(tree))[0].data)
    assert (len(train), len(val)) == (8, 2)


@pytest.mark.parametrize(
    ("images", "batch", "epochs"),
    [(10, 32, 200), (1000, 32, 190), (4000, 64, 100), (20000, 256, 80), (10**5, 256, 30)],
)
def test_batch_and_epochs_follow_the_number_of_images(
    tmp_path: Path, write_folder, images: int, batch: int, epochs: int
) -> None:
    write_folder(tmp_path / "val", {"cat": 1, "dog": 1})
    (tmp_path / "val_list.txt").write_text("val/cat/000.png 0\n")
    lines = ["val/cat/000.png 0\n", "val/dog/000.png 1\n"]
    (tmp_path / "train_list.txt").write_text("".join(lines) * (images // 2))
    recipe, _ = settings(tmp_path)
    assert (recipe["data"]["batch_size"], recipe["loop"]["epochs"]) == (batch, epochs)


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path, write_folder) -> None:
    with pytest.raises(UserError, match=r"there is no file or folder .*none"):
        suggest(tmp_path / "none")
    with pytest.raises(UserError, match="holds no images and no class folders"):
        suggest(tmp_path)
    write_folder(tmp_path / "images", {"cat": 1})
    with pytest.raises(UserError, match="all images are of one class; give a folder with"):
        suggest(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cat/1\.png: is not an image"):
        suggest(tmp_path / "bad")
    (tmp_path / "imgs").mkdir()
    write_folder(tmp_path / "imgs", {"a": 1})
    (tmp_path / "windows.txt").write_text("imgs\\\\a\\\\000.png 0\nb.png 1\n")
    with pytest.raises(
        UserError, match=r"windows\.txt:1: .* there is no such file, but .* exists: write"
    ):
        suggest(tmp_path / "windows.txt")


def test_files_of_more_than_eight_bits_keep_them(tmp_path: Path) -> None:
    for name in ("sick", "well"):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = np.full((80, 70), 300 * i, np.uint16)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    recipe, said = settings(tmp_path)
    data = recipe["data"]
    assert (data["intensity"], data["channels"], data["augment"]["flip"]) == ("percentile", 1, 0.0)
    assert "hold more than 8 bits: data.intensity=percentile" in said


def test_arrays_of_five_channels(tmp_path: Path) -> None:
    for name in ("sick", "well"):
        (tmp_path / name).mkdir()
        for i in range(3):
            np.save(tmp_path / name / f"{i}.npy", np.zeros((80, 70, 5), np.float32))
    recipe, said = settings(tmp_path)
    assert recipe["data"]["channels"] == recipe["model"]["in_channels"] == 5
    assert recipe["data"]["intensity"] == "percentile"
    assert "the files have 5 channels" in said


# Patients and fine-tuning -------------------------------------------------------------------


def recipe_of(folder: Path, *options: str) -> tuple[Recipe, str]:
    tree, said = suggest(folder, options)
    return assemble(Recipe, Layers(tree, options=options))[0], "\n".join(said)


def test_patients_in_paths_or_a_column_are_kept_together(tmp_path: Path, write_image) -> None:
    rows = ["path,mass,edema,Patient ID"]
    for index in range(24):
        path = f"patient{index // 3:03d}/view{index % 3}.png"
        write_image(tmp_path / path, seed=index)
        rows.append(f"{path},{index % 2},{int(index % 5 == 0)},{index // 3}")
    (tmp_path / "all.csv").write_text("\n".join(rows))
    task = "model.task=multilabel"
    recipe, said = recipe_of(tmp_path / "all.csv", task)
    assert recipe.data.group == "Patient ID"
    assert "column Patient ID names 8 patients" in said
    recipe, _ = recipe_of(tmp_path / "all.csv", task, "data.group=null")
    assert recipe.data.group is None
    (tmp_path / "all.csv").write_text("\n".join(row.rsplit(",", 1)[0] for row in rows))
    recipe, said = recipe_of(tmp_path / "all.csv", task)
    assert "the paths name 8 patients" in said
    train, val = open_split(recipe.data, "multilabel")
    assert not set(train.groups) & set(val.groups)  # type: ignore[arg-type]
    recipe, _ = recipe_of(tmp_path / "all.csv", task, "data.fold=1/4")
    assert recipe.data.held_out == "data.fold=1/4"


def test_pretrained_weights_are_fine_tuned(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 30, "dog": 20}, size=(20, 20))
    recipe, said = recipe_of(tmp_path, "model.pretrained=torchvision")
    optim = recipe.optim
    assert (optim.name, optim.lr, optim.head_lr) == ("adamw", 3e-4, pytest.approx(9e-4))
    assert (optim.layer_decay, optim.head_epochs, optim.freeze_norm) == (0.5, 1, True)
    assert (recipe.model.name, recipe.data.image_size) == ("densenet121", 128)
    scratch, _ = recipe_of(tmp_path)
    assert recipe.loop.epochs < scratch.loop.epochs
    assert "optim.layer_decay=0.5: each block learns" in said
    assert "the first epoch trains the head alone" in said
    assert "optim.freeze_norm=true: with 40 training images" in said


def test_what_is_typed_is_not_said_to_be_chosen(tmp_path: Path, write_folder) -> None:
    """And sync-BN, which statistics that stand still would make idle, wins over them."""
    write_folder(tmp_path, {"cat": 30, "dog": 20}, size=(20, 20))
    start = "model.pretrained=torchvision"
    recipe, said = recipe_of(tmp_path, start, "model.sync_bn=true")
    assert (recipe.model.sync_bn, recipe.optim.freeze_norm) == (True, False)
    assert "optim.freeze_norm" not in said
    with pytest.raises(UserError, match=r"sync_bn=true: has no effect with optim.freeze_norm=true"):
        recipe_of(tmp_path, start, "model.sync_bn=true", "optim.freeze_norm=true")
    _, said = recipe_of(tmp_path, start, "optim.freeze_norm=false", "optim.layer_decay=1")
    assert "optim.freeze_norm" not in said
    assert "optim.layer_decay" not in said
    recipe, said = recipe_of(tmp_path, start, "optim.freeze=norm5")
    assert (recipe.optim.head_epochs, recipe.optim.layer_decay) == (0, 1)
    assert "optim.head_epochs" not in said
    assert "optim.head_lr=0.0009" in said
    with pytest.raises(UserError, match=r"head_epochs=2: has no effect with optim.freeze=norm5"):
        recipe_of(tmp_path, start, "optim.freeze=norm5", "optim.head_epochs=2")


def test_what_is_typed_wins_over_the_plan(tmp_path: Path, write_folder) -> None:
    write_folder(tmp_path, {"cat": 30, "dog": 20}, mode="L")
    typed = ["optim.name=sgd", "optim.lr=0.02", "loop.epochs=2", "optim.freeze_norm=false"]
    recipe, said = recipe_of(tmp_path, "model.pretrained=torchvision", *typed)
    optim = recipe.optim
    assert (optim.name, optim.lr, optim.head_lr) == ("sgd", 0.02, pytest.approx(0.06))
    assert (optim.head_epochs, optim.freeze_norm, recipe.loop.epochs) == (0, False, 2)
    assert (recipe.data.mean, recipe.data.std) == ((0.449,), (0.226,))
    assert "optim.name=sgd at optim.lr=0.02" in said
