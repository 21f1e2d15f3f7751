"""The shipped file and users' changes to it -> the recipe that means the same."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from densekit.config import UserError, build, read_yaml
from densekit.data.config import AugmentConfig, DataConfig, EvaluateConfig
from densekit.paddleclas import flags
from densekit.paddleclas.translate import ARCHS, as_text, check_device, load, recognises
from densekit.training import optim
from densekit.training.recipe import Recipe

EPOCH = 5005  # steps: 1,281,167 images in batches of 256


def rates(recipe: Recipe, processes: int = 4, per_epoch: int = EPOCH) -> list[float]:
    """The rate at the first step of each epoch."""
    config, epochs = recipe.optim, recipe.loop.epochs
    peak = config.lr * optim.scale(config, recipe.data.batch_size)
    return [
        peak * optim.lr_factor(config, epoch * per_epoch, per_epoch, epochs * per_epoch)
        for epoch in range(epochs)
    ]


def test_the_shipped_file_on_four_cards(shipped: str) -> None:
    recipe = load(shipped, ["Arch.pretrained=False", "Global.device=gpu"], 4).recipe
    assert recipe.name == "DenseNet121"
    assert recipe.model.name == "densenet121"
    assert recipe.model.num_classes == 1000
    assert recipe.model.pretrained is None
    assert recipe.data == DataConfig(
        root="./dataset/ILSVRC2012/",
        train="./dataset/ILSVRC2012/train_list.txt",
        val="./dataset/ILSVRC2012/val_list.txt",
        image_size=224,
        antialias=False,
        batch_size=256,
        workers=4,
        augment=AugmentConfig(crop_distribution="paddle", flip=0.5),
        evaluate=EvaluateConfig(resize=256, rounding="paddle", batch_size=64),
    )
    assert recipe.optim == optim.OptimConfig(
        lr=0.1, momentum=0.9, weight_decay=1e-4, milestones=(30, 60, 90), gamma=0.1
    )
    loop = recipe.loop
    assert (loop.epochs, loop.device, loop.precision) == (120, "cuda", "fp32")
    assert (loop.label_smoothing, loop.ema, loop.accumulation) == (0.0, 0.0, 1)
    assert loop.output_dir == "output/DenseNet121"
    assert loop.log_format == "paddleclas"
    assert rates(recipe) == [0.1 * 0.1 ** (epoch // 30) for epoch in range(120)]


@pytest.mark.parametrize(("name", "ours"), ARCHS.items())
def test_the_five_shipped_depths(shipped: str, name: str, ours: str) -> None:
    assert load(shipped, [f"Arch.name={name}"], 4).recipe.model.name == ours


def test_there_are_five() -> None:
    assert sorted(ARCHS) == [f"DenseNet{depth}" for depth in (121, 161, 169, 201, 264)]


def test_only_their_files_are_recognised(shipped: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("model: {name: densenet169}\n")
    assert recognises(shipped)
    assert not recognises("own.yaml")
    assert not recognises("imagenet/densenet121")
    assert not recognises("missing.yaml")


# The batch and the rate ----------------------------------------------------------------------


@pytest.mark.parametrize(("cards", "rate"), [(1, 0.025), (4, 0.1), (8, 0.2)])
def test_a_batch_per_card_and_a_rate_that_follows_it(shipped: str, cards: int, rate: float) -> None:
    found = load(shipped, [], cards)
    assert found.recipe.data.batch_size == 64 * cards
    assert rates(found.recipe)[0] == pytest.approx(rate, rel=1e-12)
    assert ("multiplied by" in found.notes["optim.reference_batch"]) == (cards != 4)
    plain = load(shipped, ["optim.scale_lr=false"], cards)
    assert rates(plain.recipe)[0] == 0.1
    assert "optim.reference_batch" not in plain.notes


def test_an_override_of_the_batch_leaves_what_the_rate_was_for(shipped: str) -> None:
    option = "DataLoader.Train.sampler.batch_size=4"
    recipe = load(shipped, [option], 4).recipe
    assert (recipe.data.batch_size, recipe.optim.reference_batch) == (16, 256)
    grown = load(shipped, [option, "Global.update_freq=16"], 4).recipe
    assert (grown.data.batch_size, grown.loop.accumulation) == (256, 16)


def test_adamw_recipes_are_for_eight_cards(shipped: str) -> None:
    assert load(shipped, ["Optimizer.name=AdamW"], 8).recipe.optim.reference_batch == 512


# Schedules, against Paddle's definitions ------------------------------------------------------


def paddle_rates(schedule, warmup: float, start: float, peak: float, epochs: int) -> list[float]:
    """LinearWarmup around `schedule` (of epochs since its end), at each epoch's first step."""
    return [
        start + (peak - start) * epoch / warmup if epoch < warmup else schedule(epoch - warmup)
        for epoch in range(epochs)
    ]


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        (
            ["Optimizer.lr={name: Cosine, learning_rate: 0.4, eta_min: 0.001, warmup_epoch: 5}"],
            lambda e: 0.001 + 0.399 * (1 + math.cos(math.pi * e / 115)) / 2,
        ),
        (
            ["Optimizer.lr={name: Linear, learning_rate: 0.4, end_lr: 0.01, warmup_epoch: 5}"],
            lambda e: 0.01 + 0.39 * (1 - e / 115),
        ),
        (
            ["Optimizer.lr={name: Step, learning_rate: 0.4, step_size: 30, gamma: 0.3, "
             "warmup_epoch: 5}"],
            lambda e: 0.4 * 0.3 ** (e // 30),
        ),
        (
            ["Optimizer.lr={name: MultiStepDecay, learning_rate: 0.4, milestones: [10, 70], "
             "gamma: 0.2, warmup_epoch: 5}"],
            lambda e: 0.4 * 0.2 ** ((e >= 10) + (e >= 70)),
        ),
        (
            ["Optimizer.lr={name: Piecewise, decay_epochs: [10, 70], values: [0.4, 0.3, 0.01], "
             "warmup_epoch: 5}"],
            lambda e: 0.01 if e >= 70 else 0.3 if e >= 10 else 0.4,
        ),
        (["Optimizer.lr={name: Constant, learning_rate: 0.4, warmup_epoch: 5}"], lambda e: 0.4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by_epoch", ["False", "True"])
def test_schedules_with_warm_up_by_step_and_by_epoch(
    shipped: str, options: list[str], schedule, by_epoch: str
) -> None:
    found = load(shipped, [*options, f"Optimizer.lr.by_epoch={by_epoch}"], 4)
    theirs = paddle_rates(schedule, 5, 0.0, 0.4, 120)
    ours = rates(found.recipe)
    one_step = 0.4 / (5 * EPOCH)  # by which the warm-up is ahead, as the note says
    assert ours[:5] == pytest.approx([rate + one_step for rate in theirs[:5]], rel=1e-9)
    assert ours[5:] == pytest.approx(theirs[5:], rel=1e-9)
    assert "optim.warmup_epochs" in found.notes
    config, steps = found.recipe.optim, 120 * EPOCH
    within = {optim.lr_factor(config, 50 * EPOCH + step, EPOCH, steps) for step in (0, 7, 5000)}
    smooth = config.schedule in ("cosine", "linear") and by_epoch == "False"
    assert len(within) == (3 if smooth else 1)


def test_piecewise_follows_the_file_and_says_where_theirs_does_not(shipped: str) -> None:
    found = load(shipped, ["Optimizer.lr.decay_epochs=[40, 80, 100]"], 4)
    assert rates(found.recipe)[39:41] == pytest.approx([0.1, 0.01])
    assert "takes a tenth every 30 epochs" in found.notes["optim.milestones"]
    assert "optim.milestones" not in load(shipped, [], 4).notes
    assert "optim.milestones" not in load(shipped, ["Global.epochs=20"], 4).notes
    assert "optim.milestones" in load(shipped, ["Optimizer.lr.values.2=0.005"], 4).notes
    quiet = load(shipped, ["Optimizer.lr.values.2=0.005", "Optimizer.lr.learning_rate=None"], 4)
    assert "optim.milestones" not in quiet.notes
    assert rates(quiet.recipe)[60] == pytest.approx(0.005)


# Other sections --------------------------------------------------------------------------------


def test_mixed_precision_is_what_it_was(shipped: str) -> None:
    assert load(shipped, ["AMP.use_amp=false"], 4).recipe.loop.precision == "fp32"
    assert load(shipped, ["AMP.use_amp=True"], 4).recipe.loop.precision == "fp16"
    cpu = load(shipped, ["AMP.use_amp=true", "Global.device=cpu"], 4).recipe.loop
    assert (cpu.device, cpu.precision) == ("cpu", "auto")


def test_mixing(shipped: str) -> None:
    mix = "DataLoader.Train.dataset.batch_transform_ops"
    data = load(shipped, [f"{mix}=[{{MixupOperator: {{alpha: 0.2}}}}]"], 4).recipe.data.augment
    assert (data.mixup, data.mixup_alpha, data.cutmix) == (1.0, 0.2, 0.0)
    sampler = "{MixupOperator: {alpha: 0.8, prob: 0.5}, CutmixOperator: {alpha: 1.0, prob: 0.4}}"
    found = load(shipped, [f"{mix}=[{{OpSampler: {sampler}}}]"], 4)
    data = found.recipe.data.augment
    assert (data.mixup, data.mixup_alpha, data.cutmix, data.cutmix_alpha) == (0.5, 0.8, 0.4, 1.0)
    assert "softmax" in found.notes["data.augment.mixup"]


def test_a_list_index_reaches_into_the_operations(shipped: str) -> None:
    option = "DataLoader.Train.dataset.transform_ops.1.RandCropImage.size=192"
    data = load(shipped, [option], 4).recipe.data
    assert (data.train_side, data.image_size) == (192, 224)


def test_values_are_yaml_and_pythons_spellings(shipped: str) -> None:
    recipe = load(
        shipped,
        ["Global.seed=7", "Arch.class_num=None", "Arch.use_sync_bn=True",
         "Global.output_dir=runs/a=b", "Optimizer.regularizer.coeff=1e-3"],
        4,
    ).recipe  # fmt: skip
    assert recipe.loop.seed == 7
    assert recipe.model.num_classes is None
    assert recipe.model.sync_bn is True
    assert recipe.loop.output_dir == "runs/a=b/DenseNet121"
    assert recipe.optim.weight_decay == 1e-3


def test_weights_are_found_as_theirs_are_and_as_densekits_are(shipped: str, tmp_path: Path) -> None:
    def of(*options: str) -> str | None:
        return load(shipped, options, 4).recipe.model.pretrained

    assert of("Arch.pretrained=True") == "paddle"
    assert of("Global.pretrained_model=w/DenseNet121") == "w/DenseNet121.pdparams"
    assert of("Global.pretrained_model=w/DenseNet121.pdparams") == "w/DenseNet121.pdparams"
    assert of("Arch.pretrained=https://x.org/d.pdparams") == "https://x.org/d.pdparams"
    run = tmp_path / "output" / "DenseNet121"
    (run / "best").mkdir(parents=True)
    (run / "last").mkdir()
    assert of("Global.pretrained_model=output/DenseNet121/best_model") == (
        "output/DenseNet121/best"
    )
    assert of("Global.pretrained_model=./output/DenseNet121/latest") == "output/DenseNet121/last"


def test_checkpoints_go_on_with_densekits_runs_only(shipped: str, tmp_path: Path) -> None:
    for name in ("output/DenseNet121", "elsewhere/DenseNet121"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "recipe.yaml").touch()

    def resume(value: str) -> str:
        return load(shipped, [f"Global.checkpoints={value}"], 4).recipe.loop.resume

    assert resume("output/DenseNet121/latest") == "auto"
    assert resume("elsewhere/DenseNet121/latest") == "elsewhere/DenseNet121"
    assert resume("elsewhere/DenseNet121") == "elsewhere/DenseNet121"
    with pytest.raises(UserError, match=r"-o Global\.pretrained_model=paddle/epoch_5"):
        resume("paddle/epoch_5")


# What is printed, what is refused --------------------------------------------------------------


def test_the_text_is_a_recipe_with_a_comment_on_each_different_line(
    shipped: str, tmp_path: Path
) -> None:
    found = load(shipped, ["Optimizer.lr.decay_epochs=[40, 80, 100]", "loop.keep=5"], 1)
    text = as_text(found)
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    again = build(Recipe, read_yaml(file))
    assert again == found.recipe.model_copy(update={"name": again.name})
    for key, note in found.notes.items():
        line = next(line for line in text.splitlines() if note in line)
        assert line.strip().startswith(f"{key.rpartition('.')[2]}: ")
    assert "batch_size: 64  # 64 per card" in text


MISTAKES = [
    ("Global.epochs", "  epochs: 120", "  epoch: 120",
     'DenseNet121.yaml:10 (Global.epoch): unknown key "epoch"; did you mean "epochs"?'),
    ("RandCropImage", "        - RandCropImage:", "        - RandCropImag:",
     'DenseNet121.yaml:64 (DataLoader.Train.dataset.transform_ops.1.RandCropImag): unknown key '
     '"RandCropImag"; did you mean "RandCropImage"?'),
    ("Arch.name", "  name: DenseNet121", "  name: Densenet121",
     "DenseNet121.yaml:29 (Arch.name): 'Densenet121' is no DenseNet that densekit has; did you "
     'mean "DenseNet121"?'),
    ("learning_rate", "    learning_rate: 0.1\n", "    learning_rate: 0,1\n",
     "DenseNet121.yaml:46 (Optimizer.lr.learning_rate): expected a number, got '0,1'"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "right", "wrong", "sentence"), MISTAKES)
def test_typing_mistakes_and_their_sentences(
    shipped: str, key: str, right: str, wrong: str, sentence: str
) -> None:
    file = Path(shipped)
    assert right in file.read_text()
    file.write_text(file.read_text().replace(right, wrong, 1))
    with pytest.raises(UserError) as mistake:
        load(shipped, [], 4)
    assert str(mistake.value) == sentence


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("Global.epoch=3", '-o Global.epoch=3: unknown key "epoch"; did you mean "epochs"?'),
        ("loop.epoch=3", '-o loop.epoch=3: unknown key "epoch"; did you mean "epochs"?'),
        ("AMP.use_amp=no", "-o AMP.use_amp=no: expected True or False, got 'no'"),
        ("Global.device=npu", "-o Global.device=npu: 'npu': densekit runs on gpu and cpu"),
        ("Optimizer.name=Lamb",
         "-o Optimizer.name=Lamb: 'Lamb': densekit has Momentum, SGD, AdamW, RMSProp"),
        ("Global.use_multilabel=True",
         "-o Global.use_multilabel=True: use_multilabel=True is not translated: densekit trains "
         "one class an image; set it to False"),
    ],
)  # fmt: skip
def test_options_with_mistakes(shipped: str, option: str, sentence: str) -> None:
    with pytest.raises(UserError) as mistake:
        load(shipped, [option], 4)
    assert str(mistake.value) == sentence


def test_gpu_without_a_gpu_names_the_override(
    shipped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device(load(shipped, ["Global.device=cpu"], 4))
    with pytest.raises(UserError, match=r"-o Global\.device=cpu"):
        check_device(load(shipped, [], 4))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device(load(shipped, [], 4))


def test_flags_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    said = flags.follow(
        {"FLAGS_cudnn_exhaustive_search": "True", "FLAGS_new": "1", "HOME": "/",
         "FLAGS_cudnn_batchnorm_spatial_persistent": "True"}
    )  # fmt: skip
    assert torch.backends.cudnn.benchmark is True
    assert len(said) == 3
    assert sum("means nothing here" in sentence for sentence in said) == 2
    flags.follow({"FLAGS_cudnn_exhaustive_search": "0"})
    assert torch.backends.cudnn.benchmark is False
