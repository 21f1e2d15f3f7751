"""The shipped file and users' changes to it -> the recipe that means the same."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from densekit.config import UserError, build, read_yaml
from densekit.data.augment_config import AugmentConfig
from densekit.data.config import DataConfig, EvaluateConfig
from densekit.models.variants import create
from densekit.paddleclas import flags
from densekit.paddleclas.here import check_device
from densekit.paddleclas.translate import ARCHS, as_text, recognises, translate_file
from densekit.training import optim
from densekit.training.recipe import Recipe
from densekit.weights.keymaps import PADDLE

EPOCH = 5005  # steps: 1,281,167 images in batches of 256


def rates(recipe: Recipe, processes: int = 4, per_epoch: int = EPOCH) -> list[float]:
    """The rate at the first step of each epoch."""
    config, epochs = recipe.optim, recipe.loop.epochs
    peak, _ = optim.peak_rates(config, recipe.data.batch_size)
    return [
        peak * optim.lr_factor(config, epoch * per_epoch, per_epoch, epochs * per_epoch)
        for epoch in range(epochs)
    ]


def test_the_shipped_file_on_four_cards(shipped: str) -> None:
    recipe = translate_file(shipped, ["Arch.pretrained=False", "Global.device=gpu"], 4).recipe
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
    assert translate_file(shipped, [f"Arch.name={name}"], 4).recipe.model.name == ours


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
    found = translate_file(shipped, [], cards)
    assert found.recipe.data.batch_size == 64 * cards
    assert rates(found.recipe)[0] == pytest.approx(rate, rel=1e-12)
    assert ("multiplied by" in found.notes["optim.reference_batch"]) == (cards != 4)
    plain = translate_file(shipped, ["optim.scale_lr=false"], cards)
    assert rates(plain.recipe)[0] == 0.1
    assert "optim.reference_batch" not in plain.notes


def test_an_override_of_the_batch_leaves_what_the_rate_was_for(shipped: str) -> None:
    option = "DataLoader.Train.sampler.batch_size=4"
    recipe = translate_file(shipped, [option], 4).recipe
    assert (recipe.data.batch_size, recipe.optim.reference_batch) == (16, 256)
    grown = translate_file(shipped, [option, "Global.update_freq=16"], 4).recipe
    assert (grown.data.batch_size, grown.loop.accumulation) == (256, 16)


def test_adamw_recipes_are_for_eight_cards(shipped: str) -> None:
    assert translate_file(shipped, ["Optimizer.name=AdamW"], 8).recipe.optim.reference_batch == 512


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
    found = translate_file(shipped, [*options, f"Optimizer.lr.by_epoch={by_epoch}"], 4)
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
    found = translate_file(shipped, ["Optimizer.lr.decay_epochs=[40, 80, 100]"], 4)
    assert rates(found.recipe)[39:41] == pytest.approx([0.1, 0.01])
    assert "takes a tenth every 30 epochs" in found.notes["optim.milestones"]
    assert "optim.milestones" not in translate_file(shipped, [], 4).notes
    assert "optim.milestones" not in translate_file(shipped, ["Global.epochs=20"], 4).notes
    assert "optim.milestones" in translate_file(shipped, ["Optimizer.lr.values.2=0.005"], 4).notes
    quiet = translate_file(
        shipped, ["Optimizer.lr.values.2=0.005", "Optimizer.lr.learning_rate=None"], 4
    )
    assert "optim.milestones" not in quiet.notes
    assert rates(quiet.recipe)[60] == pytest.approx(0.005)


def test_a_typed_learning_rate_is_the_rate_as_it_is_there(shipped: str) -> None:
    """There learning_rate wins over values; here the file's values follow it in proportion."""
    found = translate_file(shipped, ["Optimizer.lr.learning_rate=0.01"], 4)
    assert rates(found.recipe) == pytest.approx([0.01 * 0.1 ** (e // 30) for e in range(120)])
    assert "Optimizer.lr.learning_rate as typed" in found.notes["optim.lr"]
    assert "0.01, 0.001, 0.0001, 1e-05" in found.notes["optim.lr"]
    assert "optim.milestones" not in found.notes
    changed = ["Optimizer.lr.learning_rate=0.2", "Optimizer.lr.decay_epochs=[10, 20, 50]"]
    assert rates(translate_file(shipped, changed, 4).recipe)[50] == pytest.approx(0.0002)
    both = ["Optimizer.lr.learning_rate=0.2", "Optimizer.lr.values=[0.1, 0.01, 0.001, 1e-4]"]
    with pytest.raises(UserError, match="give one of them, or both alike"):
        translate_file(shipped, both, 4)
    alike = ["Optimizer.lr.learning_rate=0.2", "Optimizer.lr.values=[0.2, 0.1, 0.05, 0.01]"]
    assert rates(translate_file(shipped, alike, 4).recipe)[119] == pytest.approx(0.01)


def test_constant_rates_of_both_names(shipped: str) -> None:
    def of(name: str):
        return translate_file(
            shipped, [f"Optimizer.lr={{name: {name}, learning_rate: 0.4, warmup_epoch: 5}}"], 4
        )

    constant, const_lr = of("Constant"), of("ConstLR")
    assert rates(constant.recipe) == rates(const_lr.recipe)
    assert "theirs warms up with ConstLR" in constant.notes["optim.warmup_epochs"]
    assert "ConstLR" not in const_lr.notes["optim.warmup_epochs"]


def test_a_thousand_million_epochs_are_translated_at_once(shipped: str) -> None:
    assert translate_file(shipped, ["Global.epochs=1000000000"], 4).recipe.loop.epochs == 10**9
    step = "Optimizer.lr={name: Step, learning_rate: 0.1, step_size: 1}"
    with pytest.raises(UserError, match="up to 1000"):
        translate_file(shipped, [step, "Global.epochs=1000000000"], 4)


# Optimizers -----------------------------------------------------------------------------------


def test_adam_decays_by_the_gradient_as_theirs_does(shipped: str) -> None:
    found = translate_file(shipped, ["Optimizer.name=Adam", "Optimizer.beta1=0.8"], 4).recipe.optim
    assert (found.name, found.betas, found.eps) == ("adam", (0.8, 0.999), 1e-8)
    assert found.weight_decay == 1e-4


def spared(found) -> set[str]:
    with torch.device("meta"):
        network = create(found.recipe.model)
    words = found.recipe.optim.no_weight_decay
    names = (name for name, _ in network.named_parameters())
    return {name for name in names if any(word in name for word in words)}


@pytest.mark.parametrize("word", ["norm", "batch_norm", "bn", "bias", ".bias", "out", "conv2_1",
                                  "tr_conv", "_conv.weight", "db_conv_2"])  # fmt: skip
def test_words_of_their_names_spare_the_same_parameters(shipped: str, word: str) -> None:
    found = translate_file(
        shipped, ["Optimizer.name=AdamW", f"Optimizer.no_weight_decay_name={word}"], 4
    )
    with torch.device("meta"):
        names = [name for name, _ in create(found.recipe.model).named_parameters()]
    assert spared(found) == {name for name in names if word in str(PADDLE.theirs(name))}
    assert spared(found)


def test_words_that_match_nothing_are_said_not_refused(shipped: str) -> None:
    words = "Optimizer.no_weight_decay_name=pos_embed cls_token .bias"
    found = translate_file(shipped, ["Optimizer.name=AdamW", words], 4)
    assert found.recipe.optim.no_weight_decay == ("bias",)
    assert "named pos_embed, there neither" in found.notes["optim.weight_decay"]
    assert "cls_token" in found.notes["optim.weight_decay"]


def test_one_dimensional_parameters_are_norms_and_biases(shipped: str) -> None:
    option = "Optimizer.one_dim_param_no_weight_decay=True"
    found = translate_file(shipped, [option], 4)
    assert found.recipe.optim.no_weight_decay == ("norm", "bias")
    assert "theirs heeds it with AdamW" in found.notes["optim.no_weight_decay"]
    adamw = translate_file(shipped, ["Optimizer.name=AdamW", option], 4)
    assert "optim.no_weight_decay" not in adamw.notes


# Other sections --------------------------------------------------------------------------------


def test_mixed_precision_is_what_it_was(shipped: str) -> None:
    assert translate_file(shipped, ["AMP.use_amp=false"], 4).recipe.loop.precision == "fp32"
    assert translate_file(shipped, ["AMP.use_amp=True"], 4).recipe.loop.precision == "fp16"
    cpu = translate_file(shipped, ["AMP.use_amp=true", "Global.device=cpu"], 4).recipe.loop
    assert (cpu.device, cpu.precision) == ("cpu", "auto")


def test_mixing(shipped: str) -> None:
    mix = "DataLoader.Train.dataset.batch_transform_ops"
    data = translate_file(
        shipped, [f"{mix}=[{{MixupOperator: {{alpha: 0.2}}}}]"], 4
    ).recipe.data.augment
    assert (data.mixup, data.mixup_alpha, data.cutmix) == (1.0, 0.2, 0.0)
    sampler = "{MixupOperator: {alpha: 0.8, prob: 0.5}, CutmixOperator: {alpha: 1.0, prob: 0.4}}"
    found = translate_file(shipped, [f"{mix}=[{{OpSampler: {sampler}}}]"], 4)
    data = found.recipe.data.augment
    assert (data.mixup, data.mixup_alpha, data.cutmix, data.cutmix_alpha) == (0.5, 0.8, 0.4, 1.0)
    assert "softmax" in found.notes["data.augment.mixup"]


def test_a_list_index_reaches_into_the_operations(shipped: str) -> None:
    option = "DataLoader.Train.dataset.transform_ops.1.RandCropImage.size=192"
    data = translate_file(shipped, [option], 4).recipe.data
    assert (data.train_side, data.image_size) == (192, 224)


def test_values_are_yaml_and_pythons_spellings(shipped: str) -> None:
    recipe = translate_file(
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
        return translate_file(shipped, options, 4).recipe.model.pretrained

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
        return translate_file(shipped, [f"Global.checkpoints={value}"], 4).recipe.loop.resume

    assert resume("output/DenseNet121/latest") == "auto"
    assert resume("elsewhere/DenseNet121/latest") == "elsewhere/DenseNet121"
    assert resume("elsewhere/DenseNet121") == "elsewhere/DenseNet121"
    with pytest.raises(UserError, match=r"-o Global\.pretrained_model=paddle/epoch_5"):
        resume("paddle/epoch_5")
    for key in ("Global.checkpoints", "Global.pretrained_model"):
        with pytest.raises(UserError, match=f"{key}=.*a path too long for any disk"):
            translate_file(shipped, [f"{key}={'9' * 300}"], 4)


def test_erasing_before_normalising_is_black_there(shipped: str) -> None:
    ops = "DataLoader.Train.dataset.transform_ops"
    erase, norm = "{RandomErasing: {EPSILON: 0.25}}", "{NormalizeImage: {scale: 1/255}}"
    start = "{DecodeImage: null}, {RandCropImage: {size: 224}}"
    before = translate_file(shipped, [f"{ops}=[{start}, {erase}, {norm}]"], 4)
    assert "erases before NormalizeImage" in before.notes["data.augment.erase_with"]
    after = translate_file(shipped, [f"{ops}=[{start}, {norm}, {erase}]"], 4)
    assert "data.augment.erase_with" not in after.notes


def test_a_tie_and_the_evaluations_workers_are_said(shipped: str) -> None:
    found = translate_file(shipped, ["DataLoader.Eval.loader.num_workers=1"], 4)
    assert "of equal top-1 the earlier epoch stays the best" in found.notes["loop.eval_from"]
    assert "where theirs takes 1" in found.notes["data.workers"]


def test_null_takes_a_key_out_of_the_file(shipped: str) -> None:
    file = Path(shipped)
    text = file.read_text().replace("  epochs: 120", "  epochs: 120\n  mystery: 1")
    file.write_text(
        text.replace(
            "        - RandFlipImage:",
            "        - CoarseDropout:\n            p: 1\n        - RandFlipImage:",
        )
    )
    with pytest.raises(UserError) as mistake:
        translate_file(shipped, [], 4)
    assert len(str(mistake.value).splitlines()) == 2
    ops = "DataLoader.Train.dataset.transform_ops"
    for gone in (f"{ops}.2.CoarseDropout=null", f"{ops}.2=None"):
        found = translate_file(
            shipped, ["Global.mystery=null", gone, "Optimizer.regularizer=None"], 4
        )
        assert found.recipe.data.augment.flip == 0.5
        assert found.recipe.optim.weight_decay == 0.0
    with pytest.raises(UserError, match='unknown key "mystry"'):
        translate_file(shipped, ["Global.mystry=null", f"{ops}.2=null", "Global.mystery=null"], 4)


# What is printed, what is refused --------------------------------------------------------------


def test_the_text_is_a_recipe_with_a_comment_on_each_different_line(
    shipped: str, tmp_path: Path
) -> None:
    found = translate_file(shipped, ["Optimizer.lr.decay_epochs=[40, 80, 100]", "loop.keep=5"], 1)
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
        translate_file(shipped, [], 4)
    assert str(mistake.value) == sentence


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("Global.epoch=3", '-o Global.epoch=3: unknown key "epoch"; did you mean "epochs"?'),
        ("loop.epoch=3", '-o loop.epoch=3: unknown key "epoch"; did you mean "epochs"?'),
        ("AMP.use_amp=no", "-o AMP.use_amp=no: expected True or False, got 'no'"),
        ("Global.device=npu", "-o Global.device=npu: 'npu': densekit runs on gpu and cpu"),
        ("Optimizer.name=Lamb",
         "-o Optimizer.name=Lamb: 'Lamb': densekit has Momentum, SGD, Adam, AdamW, RMSProp"),
        ("Global.use_multilabel=True",
         "-o Global.use_multilabel=True: use_multilabel=True is not translated: densekit trains "
         "one class an image; set it to False"),
    ],
)  # fmt: skip
def test_options_with_mistakes(shipped: str, option: str, sentence: str) -> None:
    with pytest.raises(UserError) as mistake:
        translate_file(shipped, [option], 4)
    assert str(mistake.value) == sentence


def test_all_refusals_are_shown(shipped: str) -> None:
    options = ["Optimizer.name=Lamb", "Global.device=npu", "Arch.use_ssld=True",
               "Optimizer.lr.learning_rate=x", "Arch.data_format=XYZ",
               "Optimizer.lr.gamma=0.5"]  # fmt: skip
    with pytest.raises(UserError) as mistake:
        translate_file(shipped, options, 4)
    lines = str(mistake.value).splitlines()
    for option in options:
        assert sum(line.startswith(f"-o {option}: ") for line in lines) == 1, option
    assert len(lines) == len(options)
    with pytest.raises(UserError) as mistake:
        translate_file(shipped, ["Global.epoch=1", "Arch.nam=x", "Arch.use_ssld=True"], 4)
    assert len(str(mistake.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("option", "other"),
    [
        ("Optimizer.rho=0.5", "Optimizer.name=Momentum"),
        ("Optimizer.beta1=0.5", "Optimizer.name=Momentum"),
        ("Optimizer.lr.eta_min=0.5", "Optimizer.lr.name=Piecewise"),
        ("Optimizer.weight_decay=0.5", "Optimizer.regularizer"),
        ("AMP.level=O2", "AMP.use_amp=False"),
        ("Global.class_num=10", "Arch.class_num=1000"),
    ],
)
def test_an_option_without_effect_is_refused(shipped: str, option: str, other: str) -> None:
    with pytest.raises(UserError, match=f"^-o {option}: has no effect with {other}; it needs"):
        translate_file(shipped, [option], 4)


def test_a_file_may_hold_what_an_option_switches_off(shipped: str) -> None:
    found = translate_file(
        shipped, ["Optimizer.lr.name=Cosine", "optim.name=adamw", "optim.betas=[0.8, 0.9]"], 4
    )
    assert (found.recipe.optim.momentum, found.recipe.optim.betas) == (0.9, (0.8, 0.9))
    text = Path(shipped).read_text()
    Path(shipped).write_text(text.replace("batch_size: 64", "batch_size: 32"))
    plain = translate_file(shipped, ["optim.scale_lr=false", "optim.schedule=constant"], 1)
    assert "reference_batch" not in as_text(plain)
    assert "milestones" not in as_text(plain)


def test_gpu_without_a_gpu_names_the_override(
    shipped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device(translate_file(shipped, ["Global.device=cpu"], 4))
    with pytest.raises(UserError, match=r"-o Global\.device=cpu"):
        check_device(translate_file(shipped, [], 4))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device(translate_file(shipped, [], 4))


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
