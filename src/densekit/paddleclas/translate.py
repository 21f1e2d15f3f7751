"""A PaddleClas YAML with its -o options -> a recipe, and what is otherwise than there.

`translate_file` is what the commands call; `as_text` is what `densekit translate` prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from densekit.config import (
    ConfigSource,
    Layers,
    Section,
    Tree,
    assemble,
    nearest,
    override,
    read_yaml,
    to_yaml,
)
from densekit.models.variants import VARIANTS
from densekit.paddleclas.check import check_keys
from densekit.paddleclas.idle import check_typed
from densekit.paddleclas.infer import Infer, read_infer
from densekit.paddleclas.keys import KEYS
from densekit.paddleclas.optimizer import translate_optimizer
from densekit.paddleclas.options import apply_options, is_ours
from densekit.paddleclas.transforms import EVAL, INFER, translate_mixing, translate_transforms
from densekit.paddleclas.translation import Translation
from densekit.training import recipe
from densekit.training.recipe import Recipe, name_of

SECTIONS = {"Global", "Arch", "Loss", "Optimizer", "DataLoader", "Infer", "Metric", "AMP"}
CARDS = 4  # that their recipes are made for; 8 with AdamW
LAYOUTS = {"NCHW": "contiguous", "NHWC": "channels_last"}
DEVICES = {"gpu": "cuda", "cpu": "cpu"}
ARCHS = {
    name.replace("densenet", "DenseNet"): name
    for name in VARIANTS
    if name.removeprefix("densenet").isdecimal()
}
TRAIN_LOADER, EVAL_LOADER = "DataLoader.Train", "DataLoader.Eval"
SAVED = {"best_model": "best", "latest": "last"}  # their names of what a run leaves -> ours
Use = Literal["train", "evaluate", "predict", "export"]


@dataclass(frozen=True)
class Translated:
    """A recipe and what a person should know of it."""

    layers: Layers
    """What the recipe is made of."""
    tree: Tree
    """The recipe's keys that the file decides."""
    notes: Mapping[str, str]
    """By the recipe's key: what is otherwise than there."""
    infer: Infer
    export_to: str | None
    """Global.save_inference_dir."""

    @cached_property
    def recipe(self) -> Recipe:
        return assemble(Recipe, self.layers)[0]

    @property
    def said(self) -> list[str]:
        """The notes, a sentence each."""
        return [f"{key}: {text}" for key, text in self.notes.items()]


def recognises(config: str) -> bool:
    """Whether `-c config` is a PaddleClas file: told by its sections."""
    if config in recipe.shipped() or not Path(config).is_file():
        return False
    return len(SECTIONS & read_yaml(Path(config)).tree.keys()) >= 2


def translate_file(
    config: str, options: Iterable[str], processes: int, use: Use = "train"
) -> Translated:
    """The recipe of a PaddleClas file for `processes` of one card each.

    Options of densekit's own sections, such as optim.scale_lr=false, apply to the recipe, all
    others to their tree. Raises UserError.
    """
    file = read_yaml(Path(config))
    options = list(options)
    own = [option for option in options if is_ours(option)]
    theirs = [option for option in options if option not in own]
    t = Translation(apply_options(file, theirs), processes)
    check_keys(t)
    check_typed(t)
    evaluated = INFER if use == "predict" and t.value(INFER) else EVAL
    t.attempt(_same, _device, _loop, _resume, _architecture, _layout, _start, _precision, _loss)
    t.attempt(_data, lambda t: _batch(t, Translation(file, processes)))
    t.attempt(lambda t: translate_transforms(t, evaluated), translate_mixing, translate_optimizer)
    t.raise_refusals()
    infer = read_infer(t)
    whole = override(ConfigSource(t.tree, t.places), own, Recipe)
    tree = {name: whole.tree[name] for name in Recipe.model_fields if name in whole.tree}
    layers = Layers({"name": name_of(Path(config))}, whole)
    built = assemble(Recipe, layers)[0]
    if not built.optim.scale_lr:
        del t.notes["optim.reference_batch"]
    export_to = t.text("Global.save_inference_dir") or None
    return Translated(layers, _in_effect(tree, built), t.notes, infer, export_to)


def _in_effect(tree: Tree, section: Section) -> Tree:
    """`tree` without the values that `section`, which was built of it, left at their defaults."""
    kept: Tree = {}
    for key, value in tree.items():
        built, field = getattr(section, key), type(section).model_fields[key]
        default = field.get_default(call_default_factory=True)
        if isinstance(built, Section) and isinstance(value, dict):
            kept[key] = _in_effect(value, built)
        elif built != default or (tuple(value) if isinstance(value, list) else value) == default:
            kept[key] = value
    return kept


def _same(t: Translation) -> None:
    """The keys whose value is taken as it is."""
    for key in KEYS.values():
        if key.same and t.value(key.path) is not None:
            t.set(key.says, t.value(key.path), key.path)


def _device(t: Translation) -> None:
    device = t.text("Global.device", "gpu")
    if device not in DEVICES:
        t.fail("Global.device", f"{device!r}: densekit runs on {' and '.join(DEVICES)}")
    t.set("loop.device", DEVICES[device], "Global.device")


def _output_dir(t: Translation) -> Path:
    return Path(t.text("Global.output_dir", "./output/")) / t.text("Arch.name")


def _loop(t: Translation) -> None:
    t.set("loop.log_format", "paddleclas")
    t.set("loop.output_dir", str(_output_dir(t)), "Global.output_dir")
    if not t.is_on("Global.eval_during_train", True):
        t.set("loop.eval_every", t.whole("Global.epochs", 1), "Global.eval_during_train")
        t.note("loop.eval_every", "the last epoch is evaluated, theirs never")
    first = int(t.number("Global.start_eval_epoch", 0))
    t.set("loop.eval_from", max(1, first), "Global.start_eval_epoch",
          "of equal top-1 the earlier epoch stays the best, theirs takes the later")  # fmt: skip
    t.set("loop.keep", 2, "", "theirs keeps the weights of every save_interval epochs for ever")
    if t.is_on("Global.use_visualdl"):
        t.note("loop.output_dir", "curves.png and log.jsonl in it are what VisualDL would show")
    if t.value("EMA.decay"):
        t.note("loop.ema", "the average is what is evaluated; theirs evaluates both")
    if t.is_on("Global.use_dali"):
        t.note("data.workers", "processes on the CPU read the images, not DALI on the GPU")


def _resume(t: Translation) -> None:
    if t.value("Global.checkpoints") is None:
        return
    prefix = t.text("Global.checkpoints")
    place = t.place("Global.checkpoints")
    if (place / "recipe.yaml").is_file():
        t.set("loop.resume", prefix, "Global.checkpoints")
    elif place.name == "latest" and (place.parent / "recipe.yaml").is_file():
        own = place.parent.absolute() == _output_dir(t).absolute()
        t.set("loop.resume", "auto" if own else str(place.parent), "Global.checkpoints")
    else:
        t.fail("Global.checkpoints", f"{prefix} is no run of densekit's, and Paddle's optimizer "
               f"state cannot be gone on from; to start from its weights: -o "
               f"Global.checkpoints=null -o Global.pretrained_model={prefix}")  # fmt: skip


def _architecture(t: Translation) -> None:
    name = t.text("Arch.name")
    if name not in ARCHS:
        hint = nearest(name, ARCHS)
        t.fail("Arch.name", f"{name!r} is no DenseNet that densekit has{hint}")
    t.set("model.name", ARCHS[name], "Arch.name")
    classes = t.value("Arch.class_num", t.value("Global.class_num"))
    if classes is not None:
        t.set("model.num_classes", classes, "Arch.class_num")
    if t.number("Arch.dropout", 0.0):
        t.set("model.drop_rate", t.value("Arch.dropout"), "Arch.dropout",
              "scaled up in training; theirs is scaled down in evaluation")  # fmt: skip
    if t.value("Arch.bn_size") is not None:
        t.set("model.overrides", {"bn_size": t.value("Arch.bn_size")}, "Arch.bn_size")


def _layout(t: Translation) -> None:
    if t.is_on("Global.to_static"):
        t.set("model.op", "auto", "", "densekit's choice; Paddle would compile its graph")
    if t.value("Arch.data_format") is not None:
        layout = t.text("Arch.data_format")
        if layout not in LAYOUTS:
            t.fail("Arch.data_format", f"{layout!r}: it is {' or '.join(LAYOUTS)}")
        t.set("loop.memory_format", LAYOUTS[layout], "Arch.data_format")


def _start(t: Translation) -> None:
    weights, path = t.value("Arch.pretrained", False), "Arch.pretrained"
    if t.value("Global.pretrained_model") is not None:
        weights, path = t.value("Global.pretrained_model"), "Global.pretrained_model"
    if weights:
        t.set("model.pretrained", "paddle" if weights is True else _weights(t, path), path)


def _weights(t: Translation, path: str) -> str:
    """The file or folder that a Paddle prefix means, theirs or what a run of densekit's left."""
    prefix, place = t.text(path), t.place(path)
    if "://" in prefix or place.exists():
        return prefix
    ours = place.with_name(SAVED.get(place.name, place.name))
    return str(ours) if ours.is_dir() else f"{prefix.removesuffix('.pdparams')}.pdparams"


def _precision(t: Translation) -> None:
    on = t.is_on("AMP.use_amp", t.value("AMP") is not None)
    gpu = t.text("Global.device", "gpu") == "gpu"
    mixed = "fp16" if gpu else "auto"
    t.set("loop.precision", mixed if on else "fp32", "AMP.use_amp")
    if on and t.value("AMP.level") == "O2":
        t.note("loop.precision", "O2 is computed as O1: weights and BatchNorm in fp32")
    if on and gpu:
        t.note("loop.precision", "torch's own dynamic loss scaling, from 65536")
    if on and gpu and t.is_on("AMP.use_fp16_test"):
        t.set("loop.eval_precision", "fp16", "AMP.use_fp16_test")


def _loss(t: Translation) -> None:
    losses = len(t.value("Loss.Train", []))
    if losses != 1:
        t.fail("Loss.Train", f"densekit trains by one CELoss, got {losses} losses")
    epsilon = t.number("Loss.Train.0.CELoss.epsilon", 0.0)
    t.set("loop.label_smoothing", epsilon, "Loss.Train.0.CELoss.epsilon")


def _data(t: Translation) -> None:
    """Lists that are the same file system's and the same form's for both splits."""
    train, val = f"{TRAIN_LOADER}.dataset", f"{EVAL_LOADER}.dataset"
    t.set("data.root", t.value(f"{train}.image_root"), f"{train}.image_root")
    for name, default in (("image_root", None), ("delimiter", " "), ("relabel", False)):
        here, there = t.value(f"{train}.{name}", default), t.value(f"{val}.{name}", default)
        if str(here).rstrip("/") != str(there).rstrip("/"):
            t.fail(f"{val}.{name}", f"{there!r} here and {here!r} in Train; densekit has one for "
                   f"both lists: make them alike")  # fmt: skip
    t.note("data.train", "an unreadable image stops the run and is named; theirs takes another")
    if t.processes > 1 and not t.is_on(f"{TRAIN_LOADER}.sampler.drop_last"):
        t.note("data.drop_last", "no image twice in an epoch; theirs repeats some for even shares")
    workers = [t.value(f"{where}.loader.num_workers") for where in (TRAIN_LOADER, EVAL_LOADER)]
    if None not in workers and workers[0] != workers[1]:
        t.note("data.workers", f"Train's, in evaluation too, where theirs takes {workers[1]}")
    delimiter = t.text(f"{train}.delimiter", " ")
    if delimiter != " ":
        t.set("data.delimiter", delimiter.replace("\\t", "\t"), f"{train}.delimiter")


def _batch(t: Translation, file: Translation) -> None:
    """Images per card -> images over all ranks; the reference is the batch that the file means."""
    path = f"{TRAIN_LOADER}.sampler.batch_size"
    per_card, freq = t.whole(path, 1), t.whole("Global.update_freq", 1)
    batch = per_card * t.processes * freq
    t.set("data.batch_size", batch, path, f"{per_card} per card x {t.processes} process(es)"
          + (f" x update_freq {freq}" if freq > 1 else ""))  # fmt: skip
    t.set("loop.accumulation", freq, "Global.update_freq")
    cards = 8 if t.text("Optimizer.name") == "AdamW" else CARDS
    meant = cards * file.whole(path, per_card) * file.whole("Global.update_freq", 1)
    scaled = "" if batch == meant else f", so it is multiplied by {batch / meant:g}"
    t.set("optim.reference_batch", meant, "", f"the file's rate is for {cards} cards; densekit "
          f"scales it with the batch{scaled}, theirs does not: optim.scale_lr=false stops it"
          )  # fmt: skip


def as_text(translated: Translated) -> str:
    """The recipe as YAML, with a comment on each line that behaves otherwise than theirs."""
    lines: list[str] = []
    path: list[str] = []
    for line in to_yaml(translated.tree).splitlines():
        indent = len(line) - len(line.lstrip())
        path = [*path[: indent // 2], line.strip().partition(":")[0]]
        note = translated.notes.get(".".join(path))
        lines.append(f"{line}  # {note}" if note else line)
    return "\n".join(lines) + "\n"
