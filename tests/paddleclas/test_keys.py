"""Every key that such a file may hold has a row in the table, and does what its row says.

EXAMPLES is the schema, written from PaddleClas' own constructors and engine: a value for each key
that asks for something else than the shipped file does, and what else must be so for it to count.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given, settings
from shipped import DENSENET121

from densekit.config import UserError
from densekit.paddleclas.keys import KEYS, PLACES, below
from densekit.paddleclas.translate import Translated, Use, translate_file

RMSPROP = {"Optimizer.name": "RMSProp"}
ADAMW = {"Optimizer.name": "AdamW"}
COSINE = {"Optimizer.lr.name": "Cosine"}
LINEAR = {"Optimizer.lr.name": "Linear"}
STEP = {"Optimizer.lr.name": "Step", "Optimizer.lr.step_size": 30}
MULTI = {"Optimizer.lr.name": "MultiStepDecay", "Optimizer.lr.milestones": [30, 60]}
AMP = {"AMP.use_amp": True}
TIMM = {"DataLoader.Train.dataset.transform_ops.*.TimmAutoAugment.config_str": "rand-m9-n3"}
ROTATED = {"DataLoader.Train.dataset.transform_ops.*.RandomRotation.degrees": 20}
ERASED = {"DataLoader.Train.dataset.transform_ops.*.RandomErasing.EPSILON": 0.25}
JITTERED = {"DataLoader.Train.dataset.transform_ops.*.ColorJitter.brightness": 0.3}
MIX = "DataLoader.Train.dataset.batch_transform_ops.*"
Context = dict[str, Any]


class Together(Context):
    """What must change with the value, not before it."""


EXAMPLES: dict[str, Any | tuple[Any, Context]] = {
    "Global.checkpoints": "another-run",
    "Global.pretrained_model": "weights/DenseNet121_pretrained",
    "Global.output_dir": "elsewhere",
    "Global.device": "cpu",
    "Global.save_interval": 5,
    "Global.eval_during_train": False,
    "Global.eval_interval": 3,
    "Global.start_eval_epoch": 20,
    "Global.epochs": 90,
    "Global.print_batch_step": 50,
    "Global.use_visualdl": True,
    "Global.seed": 7,
    "Global.update_freq": 4,
    "Global.class_num": (10, {"Arch.class_num": None}),
    "Global.image_shape": [3, 299, 299],
    "Global.save_inference_dir": "elsewhere",
    "Global.to_static": True,
    "Global.use_dali": True,
    "Global.distributed": True,
    "Global.export_for_fd": True,
    "Global.eval_mode": "retrieval",
    "Global.train_mode": "fixmatch",
    "Global.use_multilabel": True,
    "Global.retrieval_feature_from": "features",
    "Global.iter_per_epoch": 100,
    "Global.profiler_options": "batch_range=[10,20]",
    "Arch.name": "DenseNet169",
    "Arch.class_num": 37,
    "Arch.pretrained": True,
    "Arch.use_sync_bn": True,
    "Arch.dropout": 0.2,
    "Arch.bn_size": 2,
    "Arch.data_format": "NHWC",
    "Arch.use_ssld": True,
    "Arch.layers": 60,
    "Arch.is_rec": True,
    "Arch.Backbone": {"name": "DenseNet121"},
    "Arch.Neck": {"name": "FC"},
    "Arch.Head": {"name": "ArcMargin"},
    "Arch.return_patterns": ["db_conv_2"],
    "Arch.return_stages": True,
    "AMP.use_amp": True,
    "AMP.level": ("O2", AMP),
    "AMP.scale_loss": (1024.0, AMP),
    "AMP.use_dynamic_loss_scaling": (False, AMP),
    "AMP.use_fp16_test": (True, AMP),
    "AMP.use_promote": (True, AMP),
    "EMA.decay": 0.999,
    "Loss.Train.*.CELoss.weight": 0.5,
    "Loss.Train.*.CELoss.epsilon": 0.1,
    "Loss.Eval.*.CELoss.weight": 0.5,
    "Loss.Eval.*.CELoss.epsilon": 0.1,
    "Loss.Train.*.MixCELoss": {"weight": 1.0},
    "Loss.Train.*.MultiLabelLoss": {"weight": 1.0},
    "Metric.Train.*.TopkAcc.topk": [1, 3],
    "Metric.Eval.*.TopkAcc.topk": [1, 3],
    "Optimizer.name": "SGD",
    "Optimizer.momentum": 0.8,
    "Optimizer.use_nesterov": True,
    "Optimizer.rho": (0.8, RMSPROP),
    "Optimizer.epsilon": (1e-4, RMSPROP),
    "Optimizer.beta1": (0.8, ADAMW),
    "Optimizer.beta2": (0.99, ADAMW),
    "Optimizer.weight_decay": (0.05, {**ADAMW, "Optimizer.regularizer": None}),
    "Optimizer.regularizer.name": "L1",
    "Optimizer.regularizer.coeff": 0.0005,
    "Optimizer.no_weight_decay_name": ("norm bias", ADAMW),
    "Optimizer.one_dim_param_no_weight_decay": (True, ADAMW),
    "Optimizer.clip_norm": 1.0,
    "Optimizer.multi_precision": True,
    "Optimizer.lazy_mode": True,
    "Optimizer.lr.name": "Cosine",
    "Optimizer.lr.learning_rate": (0.4, COSINE),
    "Optimizer.lr.decay_epochs": [40, 60, 90],
    "Optimizer.lr.values": [0.1, 0.02, 0.001, 0.0001],
    "Optimizer.lr.milestones": ([40, 60], MULTI),
    "Optimizer.lr.step_size": (40, STEP),
    "Optimizer.lr.gamma": (0.5, STEP),
    "Optimizer.lr.eta_min": (0.001, COSINE),
    "Optimizer.lr.end_lr": (0.001, LINEAR),
    "Optimizer.lr.warmup_epoch": (5, COSINE),
    "Optimizer.lr.warmup_start_lr": (0.01, {**COSINE, "Optimizer.lr.warmup_epoch": 5}),
    "Optimizer.lr.by_epoch": (True, COSINE),
    "Optimizer.lr.power": (2.0, LINEAR),
    "Optimizer.lr.cycle": (True, LINEAR),
    "Optimizer.lr.last_epoch": (10, COSINE),
    "Optimizer.lr.verbose": True,
    "DataLoader.Train.dataset.name": "MultiLabelDataset",
    "DataLoader.Train.dataset.image_root": (
        "/x",
        Together({"DataLoader.Eval.dataset.image_root": "/x"}),
    ),
    "DataLoader.Train.dataset.cls_label_path": "other.txt",
    "DataLoader.Train.dataset.delimiter": (
        ",",
        Together({"DataLoader.Eval.dataset.delimiter": ","}),
    ),
    "DataLoader.Train.dataset.relabel": (True, Together({"DataLoader.Eval.dataset.relabel": True})),
    f"{MIX}.MixupOperator.alpha": 0.2,
    f"{MIX}.CutmixOperator.alpha": 0.2,
    f"{MIX}.FmixOperator": {"alpha": 1.0},
    f"{MIX}.OpSampler.MixupOperator.alpha": (0.4, {f"{MIX}.OpSampler.MixupOperator.prob": 0.5}),
    f"{MIX}.OpSampler.MixupOperator.prob": 0.5,
    f"{MIX}.OpSampler.CutmixOperator.alpha": (0.4, {f"{MIX}.OpSampler.CutmixOperator.prob": 0.5}),
    f"{MIX}.OpSampler.CutmixOperator.prob": 0.5,
    f"{MIX}.OpSampler.FmixOperator": {"prob": 0.5},
    "DataLoader.Train.sampler.name": "PKSampler",
    "DataLoader.Train.sampler.batch_size": 32,
    "DataLoader.Train.sampler.drop_last": True,
    "DataLoader.Train.sampler.shuffle": False,
    "DataLoader.Train.loader.num_workers": 8,
    "DataLoader.Train.loader.use_shared_memory": False,
    "DataLoader.Eval.dataset.name": "MultiLabelDataset",
    "DataLoader.Eval.dataset.image_root": (
        "/x",
        Together({"DataLoader.Train.dataset.image_root": "/x"}),
    ),
    "DataLoader.Eval.dataset.cls_label_path": "other.txt",
    "DataLoader.Eval.dataset.delimiter": (
        ",",
        Together({"DataLoader.Train.dataset.delimiter": ","}),
    ),
    "DataLoader.Eval.dataset.relabel": (True, Together({"DataLoader.Train.dataset.relabel": True})),
    "DataLoader.Eval.sampler.name": "PKSampler",
    "DataLoader.Eval.sampler.batch_size": 32,
    "DataLoader.Eval.sampler.drop_last": True,
    "DataLoader.Eval.sampler.shuffle": True,
    "DataLoader.Eval.loader.num_workers": 8,
    "DataLoader.Eval.loader.use_shared_memory": False,
    "DataLoader.UnLabelTrain": {"dataset": {}},
    "Infer.infer_imgs": "photo.jpg",
    "Infer.batch_size": 3,
    "Infer.PostProcess.name": "ThreshOutput",
    "Infer.PostProcess.topk": 3,
    "Infer.PostProcess.class_id_map_file": "names.txt",
    "Slim": {"prune": {"name": "fpgm"}},
    "Profiler": {"batch_range": [0, 1]},
    "Distillation": {"teacher": "DenseNet201"},
}
OP_EXAMPLES: dict[str, Any | tuple[Any, Context]] = {
    "DecodeImage.to_rgb": False,
    "DecodeImage.channel_first": True,
    "DecodeImage.to_np": True,
    "DecodeImage.backend": "pil",
    "DecodeImage.return_numpy": False,
    "ResizeImage.resize_short": 292,
    "ResizeImage.size": 256,
    "ResizeImage.interpolation": "bicubic",
    "ResizeImage.backend": "pil",
    "ResizeImage.return_numpy": False,
    "CropImage.size": 192,
    "RandCropImage.size": 192,
    "RandCropImage.scale": [0.2, 1.0],
    "RandCropImage.ratio": [0.5, 2.0],
    "RandCropImage.interpolation": "bicubic",
    "RandCropImage.backend": "pil",
    "RandCropImage.use_log_aspect": True,
    "RandFlipImage.flip_code": 0,
    "NormalizeImage.scale": "1.0/128.0",
    "NormalizeImage.mean": [0.5, 0.5, 0.5],
    "NormalizeImage.std": [0.5, 0.5, 0.5],
    "NormalizeImage.order": "hwc",
    "NormalizeImage.output_fp16": True,
    "NormalizeImage.channel_num": 4,
    "ToCHWImage": None,
    "AutoAugment": None,
    "RandAugment.num_layers": 3,
    "RandAugment.magnitude": 7,
    "RandAugment.fillcolor": [0, 0, 0],
    "TimmAutoAugment.config_str": "rand-m9-n3",
    "TimmAutoAugment.prob": (0.5, TIMM),
    "TimmAutoAugment.interpolation": ("nearest", TIMM),
    "TimmAutoAugment.img_size": (192, TIMM),
    "TimmAutoAugment.mean": ([0.0, 0.0, 0.0], TIMM),
    "RandomErasing.EPSILON": 0.25,
    "RandomErasing.sl": (0.05, ERASED),
    "RandomErasing.sh": ("1.0/3.0", ERASED),
    "RandomErasing.r1": (0.5, ERASED),
    "RandomErasing.mode": ("pixel", ERASED),
    "RandomErasing.mean": ([1.0, 1.0, 1.0], ERASED),
    "RandomErasing.use_log_aspect": (True, ERASED),
    "RandomErasing.attempt": (10, ERASED),
    "ColorJitter.prob": (0.5, JITTERED),
    "ColorJitter.brightness": 0.3,
    "ColorJitter.contrast": 0.3,
    "ColorJitter.saturation": 0.3,
    "ColorJitter.hue": 0.1,
    "RandomRotation.prob": (0.3, ROTATED),
    "RandomRotation.degrees": 20,
    "RandomRotation.interpolation": ("bicubic", ROTATED),
}
RESIZES = ("ResizeImage", "RandCropImage")
ALIKE = {
    *("NormalizeImage.mean", "NormalizeImage.std"),
    *(f"{name}.{key}" for name in RESIZES for key in ("interpolation", "backend")),
}
EVAL_OPS = ("DecodeImage", "ResizeImage", "CropImage", "NormalizeImage", "ToCHWImage")


def put(tree: dict, path: str, value: Any) -> None:
    """Sets `value` at a dotted path; a `*` is the item of that name, appended if there is none."""
    node: Any = tree
    head, _, last = path.rpartition(".")
    for step in head.split(".") if head else []:
        if step == "*":
            continue
        if isinstance(node, list):
            item = next((item for item in node if step in item), None)
            if item is None:
                item = {step: {}}
                node.append(item)
            node = item
        following = head.split(f"{step}.", 1)[-1]
        if node.get(step) is None:
            node[step] = [] if following.startswith("*") else {}
        node = node[step]
    if isinstance(node, list):
        node[:] = [item for item in node if last not in item] + [{last: value}]
    else:
        node[last] = value


def translated(tmp_path: Path, settings: Context, use: Use = "train") -> Translated:
    tree = yaml.safe_load(DENSENET121)
    for path, value in settings.items():
        put(tree, path, copy.deepcopy(value))
    file = tmp_path / "DenseNet121.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    (tmp_path / "another-run").mkdir(exist_ok=True)
    (tmp_path / "another-run" / "recipe.yaml").touch()
    return translate_file(str(file), [], 4, use)


def outcome(tmp_path: Path, settings: Context, use: Use = "train") -> Translated | UserError:
    try:
        return translated(tmp_path, settings, use)
    except UserError as refusal:
        return refusal


def split(example: Any) -> tuple[Any, Context]:
    return example if isinstance(example, tuple) else (example, {})


def test_every_key_has_a_row_and_every_row_a_key() -> None:
    schema = set(EXAMPLES) | {f"{place}.{op}" for place in PLACES for op in OP_EXAMPLES}
    assert schema == set(KEYS)


def test_every_key_of_the_shipped_file_has_a_row() -> None:
    def walk(node: Any, path: str) -> None:
        if path in KEYS:
            return
        if isinstance(node, dict):
            assert set(node) <= set(below(path)), path
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else key)
        elif isinstance(node, list):
            for item in node:
                walk(item, f"{path}.*")
        else:
            pytest.fail(f"{path} has no row")

    walk(yaml.safe_load(DENSENET121), "")


@pytest.mark.parametrize("path", EXAMPLES)
def test_a_key_does_what_its_row_says(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value, context = split(EXAMPLES[path])
    follows_row(tmp_path, path, {path: value}, context)


@pytest.mark.parametrize("op", OP_EXAMPLES)
@pytest.mark.parametrize("place", PLACES)
def test_an_operation_does_what_its_row_says(op: str, place: str, tmp_path: Path) -> None:
    value, context = split(OP_EXAMPLES[op])
    name, path = op.split(".")[0], f"{place}.{op}"
    use: Use = "predict" if place.startswith("Infer") else "train"
    setting = {path: value}
    if name not in EVAL_OPS and "Train" not in place:
        with pytest.raises(UserError, match=f"{name}|is not translated"):
            translated(tmp_path, setting, use)
        return
    if name in ("ResizeImage", "CropImage") and "Train" in place:
        return  # a training list without RandCropImage is cut as the evaluation's
    if op in ALIKE:  # one value for all lists, or an error that says so
        with pytest.raises(UserError, match="in another list"):
            translated(tmp_path, setting, use)
        return
    follows_row(tmp_path, path, setting, context, use)


@pytest.mark.parametrize("op", sorted(ALIKE))
def test_what_all_lists_say_alike_is_translated(op: str, tmp_path: Path) -> None:
    name, key = op.split(".")
    others = RESIZES if name in RESIZES else (name,)
    tree = yaml.safe_load(DENSENET121)
    setting = {}
    for place in PLACES:
        node: Any = tree
        for step in place.split(".")[:-1]:
            node = node[step]
        for item in node:
            for other in others:
                if other in item:
                    setting[f"{place}.{other}.{key}"] = OP_EXAMPLES[op]
    found = translated(tmp_path, setting)
    assert found.recipe != translated(tmp_path, {}).recipe


def follows_row(
    tmp_path: Path, path: str, setting: Context, context: Context, use: Use = "train"
) -> None:
    row, name = KEYS[path], path.split(".")[-1]
    before = translated(tmp_path, {} if isinstance(context, Together) else context, use)
    after = outcome(tmp_path, {**context, **setting}, use)
    if isinstance(after, UserError):
        assert name in str(after)
        assert row.kind == "refused" or path in OTHERWISE_REFUSED
        assert row.kind != "refused" or row.says in str(after)
        return
    same = (before.recipe, before.infer, before.export_to) == (
        after.recipe, after.infer, after.export_to
    )  # fmt: skip
    if row.kind == "nothing":
        assert same
        assert before.notes == after.notes
    assert row.kind != "refused"
    if row.kind == "translated" and same:
        assert path in SAID_ONLY, f"{path} changes nothing"


OTHERWISE_REFUSED = {
    "Optimizer.regularizer.name",  # L1
    *(f"{place}.NormalizeImage.scale" for place in PLACES),  # not 1/255
}
SAID_ONLY = {
    # always so in densekit, and their row and a note say how
    "Global.save_interval",
    "Global.use_visualdl",
    "Global.to_static",
    "Global.use_dali",
    "DataLoader.Eval.loader.num_workers",
    "AMP.level",
    "AMP.scale_loss",
    "AMP.use_dynamic_loss_scaling",
    "DataLoader.Train.dataset.transform_ops.*.RandomErasing.use_log_aspect",
}

anything = st.one_of(
    st.sampled_from([None, True, False, {}, {"a": 1}, [{"a": None}], "1/0", "nan"]),
    st.integers(-3, 300),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.lists(st.integers(0, 90), max_size=4),
)


@settings(max_examples=100)
@given(path=st.sampled_from(sorted(KEYS)), value=anything)
def test_any_value_is_translated_or_refused_in_a_sentence(
    path: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    _, context = split(EXAMPLES.get(path, OP_EXAMPLES.get(path.split("*.")[-1])))
    for use in ("train", "predict"):
        found = outcome(folder, {**context, path: value}, use)
        assert str(found) if isinstance(found, UserError) else found.recipe.data.batch_size >= 4
