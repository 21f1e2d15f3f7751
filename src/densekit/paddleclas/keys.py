"""Every key that a DenseNet's PaddleClas YAML may hold, and what becomes of it: a table.

A `*` stands for an index into a list. docs/paddleclas.md is written from this table. Facts are of
PaddleClas d178931 (2024-10).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["translated", "refused", "nothing"]


@dataclass(frozen=True)
class TheirKey:
    """A row. A key that holds more keys is a row only where it is refused or ignored whole."""

    path: str
    kind: Kind
    says: str
    """translated: densekit's keys; refused: what to do; nothing: why it changes nothing here."""
    same: bool = False
    """translated: the value is taken as it is, to the one key that `says` names."""
    harmless: tuple[Any, ...] = ()
    """refused: values that ask for nothing, or for what densekit does anyway."""


def same(path: str, key: str) -> TheirKey:
    return TheirKey(path, "translated", key, same=True)


def into(path: str, keys: str) -> TheirKey:
    """Translated by a function of `translate.py` or its neighbours."""
    return TheirKey(path, "translated", keys)


def refused(path: str, remedy: str, *harmless: Any) -> TheirKey:
    return TheirKey(path, "refused", remedy, harmless=(None, *harmless))


def nothing(path: str, reason: str) -> TheirKey:
    return TheirKey(path, "nothing", reason)


GLOBAL = (
    into("Global.checkpoints", "loop.resume; the folder that output_dir names resumes by itself"),
    into("Global.pretrained_model", "model.pretrained; .pdparams is added where such a file is"),
    into("Global.output_dir", "loop.output_dir, with Arch.name below it as theirs"),
    into("Global.device", "loop.device; gpu is cuda"),
    into("Global.save_interval", "loop.keep: every epoch's end saves a state, the newest stay"),
    into("Global.eval_during_train", "loop.eval_every: False evaluates after the last epoch only"),
    same("Global.eval_interval", "loop.eval_every"),
    into("Global.start_eval_epoch", "loop.eval_from"),
    same("Global.epochs", "loop.epochs"),
    same("Global.print_batch_step", "loop.log_every"),
    into("Global.use_visualdl", "log.jsonl and curves.png, which are always written"),
    same("Global.seed", "loop.seed"),
    into("Global.update_freq", "loop.accumulation, and a factor of data.batch_size"),
    into("Global.class_num", "model.num_classes, unless Arch.class_num says it"),
    nothing("Global.image_shape", "is for their export; an artifact knows the input it needs"),
    into("Global.save_inference_dir", "densekit export's --out"),
    into("Global.to_static", "model.op, which says how blocks are computed"),
    into("Global.use_dali", "data.workers: densekit reads in processes on the CPU"),
    nothing("Global.distributed", "was set by their engine; torchrun says it"),
    nothing("Global.export_for_fd", "is for their export to FastDeploy"),
    refused("Global.eval_mode", "densekit trains classifiers; leave it out", "classification"),
    refused("Global.train_mode", "densekit has one training loop; leave it out"),
    refused("Global.use_multilabel", "densekit trains one class an image; set it to False", False),
    refused("Global.retrieval_feature_from", "is for recognition; leave it out"),
    refused("Global.iter_per_epoch", "an epoch is one pass over the list; leave it out"),
    refused("Global.profiler_options", "profile with torch.profiler or py-spy; leave it out"),
)

ARCH = (
    into("Arch.name", "model.name"),
    into("Arch.class_num", "model.num_classes; missing: the data's, where theirs takes 1000"),
    into("Arch.pretrained", "model.pretrained; True: the published weights"),
    same("Arch.use_sync_bn", "model.sync_bn"),
    into("Arch.dropout", "model.drop_rate"),
    into("Arch.bn_size", "model.overrides.bn_size"),
    into("Arch.data_format", "loop.memory_format"),
    refused("Arch.use_ssld", "there are no distilled weights of a DenseNet; leave it out", False),
    refused("Arch.layers", "Arch.name says the depth; leave it out"),
    refused("Arch.is_rec", "densekit trains classifiers, no recognition networks", False),
    refused("Arch.Backbone", "densekit trains classifiers, no recognition networks; leave it out"),
    refused("Arch.Neck", "densekit trains classifiers, no recognition networks; leave it out"),
    refused("Arch.Head", "densekit trains classifiers, no recognition networks; leave it out"),
    refused("Arch.return_patterns", "use model.forward_pyramid in Python; leave it out"),
    refused("Arch.return_stages", "use model.forward_pyramid in Python; leave it out", False),
)

AMP = (
    into("AMP.use_amp", "loop.precision: fp16 on a GPU, bf16 on a CPU that has it; else fp32"),
    into("AMP.level", "loop.precision: O2 is computed as O1"),
    into("AMP.scale_loss", "loop.precision: torch's scaler finds its own start"),
    into("AMP.use_dynamic_loss_scaling", "loop.precision: fp16 always scales dynamically"),
    into("AMP.use_fp16_test", "loop.eval_precision"),
    nothing("AMP.use_promote", "how Paddle mixes dtypes in one operation; torch promotes always"),
    same("EMA.decay", "loop.ema"),
)

LOSS = (
    refused(
        "Loss.Train.*.CELoss.weight", "densekit has one loss of weight 1; scale Optimizer.lr", 1.0
    ),
    into("Loss.Train.*.CELoss.epsilon", "loop.label_smoothing"),
    nothing("Loss.Eval.*.CELoss.weight", "evaluation reports the plain cross entropy"),
    nothing("Loss.Eval.*.CELoss.epsilon", "evaluation reports the plain cross entropy"),
    refused("Loss.Train.*.MixCELoss", "write CELoss, which takes mixed labels as they are"),
    refused("Loss.Train.*.MultiLabelLoss", "densekit trains one class an image; use CELoss"),
    refused("Metric.Train.*.TopkAcc.topk", "top-1 and top-5 are reported", 1, 5, [1], [5], [1, 5]),
    refused("Metric.Eval.*.TopkAcc.topk", "top-1 and top-5 are reported", 1, 5, [1], [5], [1, 5]),
)

OPTIMIZER = (
    into("Optimizer.name", "optim.name"),
    into("Optimizer.momentum", "optim.momentum"),
    into("Optimizer.use_nesterov", "optim.nesterov"),
    into("Optimizer.rho", "optim.alpha"),
    into("Optimizer.epsilon", "optim.eps"),
    into("Optimizer.beta1", "optim.betas"),
    into("Optimizer.beta2", "optim.betas"),
    into("Optimizer.weight_decay", "optim.weight_decay"),
    into("Optimizer.regularizer.name", "optim.weight_decay: L2 of every parameter; no L1"),
    into("Optimizer.regularizer.coeff", "optim.weight_decay"),
    into("Optimizer.no_weight_decay_name", "optim.no_weight_decay, of the same parameters"),
    into("Optimizer.one_dim_param_no_weight_decay", "optim.no_weight_decay: norms and biases"),
    into("Optimizer.clip_norm", "optim.clip_norm"),
    nothing("Optimizer.multi_precision", "densekit's weights are always in fp32"),
    nothing("Optimizer.lazy_mode", "is for sparse gradients, which a DenseNet has none of"),
    into("Optimizer.lr.name", "optim.schedule"),
    into("Optimizer.lr.learning_rate", "optim.lr; typed with -o, Piecewise's values follow it"),
    into("Optimizer.lr.decay_epochs", "optim.milestones"),
    into("Optimizer.lr.values", "optim.lr and optim.values, or optim.gamma where that says it"),
    into("Optimizer.lr.milestones", "optim.milestones"),
    into("Optimizer.lr.step_size", "optim.milestones"),
    into("Optimizer.lr.gamma", "optim.gamma"),
    into("Optimizer.lr.eta_min", "optim.min_lr_ratio"),
    into("Optimizer.lr.end_lr", "optim.min_lr_ratio"),
    same("Optimizer.lr.warmup_epoch", "optim.warmup_epochs"),
    into("Optimizer.lr.warmup_start_lr", "optim.warmup_start"),
    same("Optimizer.lr.by_epoch", "optim.by_epoch"),
    refused("Optimizer.lr.power", "densekit's Linear is a straight line; leave it out", 1.0),
    refused("Optimizer.lr.cycle", "densekit's schedules fall once; set it to False", False),
    refused("Optimizer.lr.last_epoch", "a run resumes by itself; leave it out", -1),
    nothing("Optimizer.lr.verbose", "prints the rate; every line of the log has it"),
)

MIXERS = "DataLoader.Train.dataset.batch_transform_ops.*"
DATA = (
    refused(
        "DataLoader.Train.dataset.name", "densekit reads ImageNetDataset's lists", "ImageNetDataset"
    ),
    into("DataLoader.Train.dataset.image_root", "data.root"),
    same("DataLoader.Train.dataset.cls_label_path", "data.train"),
    into("DataLoader.Train.dataset.delimiter", "data.delimiter"),
    same("DataLoader.Train.dataset.relabel", "data.relabel"),
    into(f"{MIXERS}.MixupOperator.alpha", "data.augment.mixup = 1, data.augment.mixup_alpha"),
    into(f"{MIXERS}.CutmixOperator.alpha", "data.augment.cutmix = 1, data.augment.cutmix_alpha"),
    refused(f"{MIXERS}.FmixOperator", "densekit has MixupOperator and CutmixOperator"),
    into(f"{MIXERS}.OpSampler.MixupOperator.alpha", "data.augment.mixup_alpha"),
    into(f"{MIXERS}.OpSampler.MixupOperator.prob", "data.augment.mixup"),
    into(f"{MIXERS}.OpSampler.CutmixOperator.alpha", "data.augment.cutmix_alpha"),
    into(f"{MIXERS}.OpSampler.CutmixOperator.prob", "data.augment.cutmix"),
    refused(f"{MIXERS}.OpSampler.FmixOperator", "densekit has MixupOperator and CutmixOperator"),
    refused(
        "DataLoader.Train.sampler.name",
        "densekit draws each image once an epoch, as DistributedBatchSampler does",
        "DistributedBatchSampler",
        "BatchSampler",
    ),
    into("DataLoader.Train.sampler.batch_size", "data.batch_size, times the number of processes"),
    same("DataLoader.Train.sampler.drop_last", "data.drop_last"),
    refused("DataLoader.Train.sampler.shuffle", "every epoch has an order of its own", True),
    same("DataLoader.Train.loader.num_workers", "data.workers"),
    nothing("DataLoader.Train.loader.use_shared_memory", "how a batch leaves a worker; always so"),
    refused(
        "DataLoader.Eval.dataset.name", "densekit reads ImageNetDataset's lists", "ImageNetDataset"
    ),
    into("DataLoader.Eval.dataset.image_root", "data.root, which Train and Eval share"),
    same("DataLoader.Eval.dataset.cls_label_path", "data.val"),
    into("DataLoader.Eval.dataset.delimiter", "data.delimiter, which Train and Eval share"),
    into("DataLoader.Eval.dataset.relabel", "data.relabel, which Train and Eval share"),
    refused(
        "DataLoader.Eval.sampler.name", "densekit counts each image once",
        "DistributedBatchSampler", "BatchSampler",
    ),
    same("DataLoader.Eval.sampler.batch_size", "data.evaluate.batch_size"),
    refused("DataLoader.Eval.sampler.drop_last", "every image is counted; set it to False", False),
    nothing("DataLoader.Eval.sampler.shuffle", "the order of an evaluation changes no number"),
    into("DataLoader.Eval.loader.num_workers", "data.workers, Train's; a line if they differ"),
    nothing("DataLoader.Eval.loader.use_shared_memory", "how a batch leaves a worker; always so"),
    refused("DataLoader.UnLabelTrain", "densekit trains on labelled images; leave it out"),
)  # fmt: skip

INFER = (
    into("Infer.infer_imgs", "densekit predict's files, where it is given none"),
    into("Infer.batch_size", "densekit predict's batch size"),
    refused("Infer.PostProcess.name", "densekit predict gives the top answers", "Topk"),
    into("Infer.PostProcess.topk", "densekit predict's --topk"),
    into("Infer.PostProcess.class_id_map_file", "the classes' names, where they fit the outputs"),
    refused("Slim", "densekit does not quantise or prune; leave it out"),
    refused("Profiler", "profile with torch.profiler or py-spy; leave it out"),
    refused("Distillation", "densekit does not distil; leave it out"),
)

PLACES = (
    "DataLoader.Train.dataset.transform_ops.*",
    "DataLoader.Eval.dataset.transform_ops.*",
    "Infer.transforms.*",
)
BACKENDS = "data.antialias: cv2 resizes without, pil with"
OPERATIONS = (
    refused("DecodeImage.to_rgb", "their published weights and densekit's are of RGB images", True),
    refused("DecodeImage.channel_first", "the order in memory is densekit's own", False),
    nothing("DecodeImage.to_np", "the order in memory is densekit's own"),
    nothing("DecodeImage.backend", "PIL reads a JPEG as cv2 does"),
    nothing("DecodeImage.return_numpy", "the order in memory is densekit's own"),
    into("ResizeImage.resize_short", "data.evaluate.resize, data.evaluate.rounding"),
    refused("ResizeImage.size", "stretches the image; use resize_short"),
    into("ResizeImage.interpolation", "data.interpolation"),
    into("ResizeImage.backend", BACKENDS),
    nothing("ResizeImage.return_numpy", "the order in memory is densekit's own"),
    into("CropImage.size", "data.image_size"),
    into(
        "RandCropImage.size", "data.augment.crop_size where it is not CropImage's, data.image_size"
    ),
    into("RandCropImage.scale", "data.augment.crop_scale"),
    into("RandCropImage.ratio", "data.augment.crop_ratio"),
    into("RandCropImage.interpolation", "data.interpolation"),
    into("RandCropImage.backend", BACKENDS),
    into("RandCropImage.use_log_aspect", "data.augment.crop_distribution"),
    refused("RandFlipImage.flip_code", "densekit flips left and right only: set it to 1", 1),
    into("NormalizeImage.scale", "must be 1/255"),
    into("NormalizeImage.mean", "data.mean"),
    into("NormalizeImage.std", "data.std"),
    nothing("NormalizeImage.order", "the order in memory is densekit's own"),
    nothing("NormalizeImage.output_fp16", "loop.precision says what the network computes in"),
    refused("NormalizeImage.channel_num", "a fourth channel of zeros adds nothing; set it to 3", 3),
    nothing("ToCHWImage", "the order in memory is densekit's own"),
    into("AutoAugment", "data.augment.auto_augment"),
    into("RandAugment.num_layers", "data.augment.rand_augment"),
    into("RandAugment.magnitude", "data.augment.rand_augment_magnitude, of 30 instead of 10"),
    refused("RandAugment.fillcolor", "what moves in is data.mean; leave it out", [128, 128, 128]),
    into("TimmAutoAugment.config_str", "data.augment.rand_augment or data.augment.auto_augment"),
    into("TimmAutoAugment.prob", "data.augment.policy_prob"),
    refused(
        "TimmAutoAugment.interpolation", "densekit turns and shears bilinearly; leave it out",
        "bilinear", "bicubic", "random",
    ),
    nothing("TimmAutoAugment.img_size", "shifts are shares of the image's own size"),
    refused(
        "TimmAutoAugment.mean", "what moves in is data.mean; leave it out", [0.485, 0.456, 0.406]
    ),
    into("RandomErasing.EPSILON", "data.augment.erase"),
    into("RandomErasing.sl", "data.augment.erase_scale"),
    into("RandomErasing.sh", "data.augment.erase_scale"),
    into("RandomErasing.r1", "data.augment.erase_ratio"),
    into("RandomErasing.mode", "data.augment.erase_with"),
    refused("RandomErasing.mean", "erases with the data's mean: leave it out", [0.0, 0.0, 0.0]),
    into("RandomErasing.use_log_aspect", "data.augment.erase_ratio, which is log-uniform"),
    nothing("RandomErasing.attempt", "ten tries; the first almost always fits"),
    into("ColorJitter.prob", "data.augment.color_jitter_prob"),
    into("ColorJitter.brightness", "data.augment.color_jitter"),
    into("ColorJitter.contrast", "data.augment.color_jitter"),
    into("ColorJitter.saturation", "data.augment.color_jitter"),
    into("ColorJitter.hue", "data.augment.color_jitter"),
    into("RandomRotation.prob", "data.augment.affine_prob"),
    into("RandomRotation.degrees", "data.augment.affine_degrees"),
    refused(
        "RandomRotation.interpolation", "densekit turns bilinearly; leave it out",
        "nearest", "bilinear",
    ),
)  # fmt: skip

KEYS = {
    key.path: key
    for key in (
        *GLOBAL, *ARCH, *AMP, *LOSS, *OPTIMIZER, *DATA, *INFER,
        *(replace(op, path=f"{place}.{op.path}") for place in PLACES for op in OPERATIONS),
    )
}  # fmt: skip


def below(prefix: str) -> list[str]:
    """The keys that stand directly below `prefix`; "" is the top."""
    depth, start = (prefix.count(".") + 1, f"{prefix}.") if prefix else (0, "")
    return list(dict.fromkeys(p.split(".")[depth] for p in KEYS if p.startswith(start)))
