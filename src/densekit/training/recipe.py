"""A recipe: model + data + optim + loop in one YAML file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from densekit.config import (
    NO_NUMBER,
    ConfigSource,
    Layers,
    OutOfReach,
    PathText,
    Section,
    Tree,
    UserError,
    assemble,
    build,
    merge,
    nearest,
    read_yaml,
    when,
    when_absent,
)
from densekit.data.config import DataConfig
from densekit.models.parts import part_of, stage_names
from densekit.models.variants import ModelConfig, architecture
from densekit.precision import DeviceName, MemoryFormatName, PrecisionName
from densekit.training.optim import OptimConfig

TrackerName = Literal["tensorboard", "mlflow", "wandb"]


def _several(value: Any) -> Any:
    """One name is a list of it."""
    return [value] if isinstance(value, str) else value


def _focal(gamma: float) -> float:
    if gamma and gamma < 1:
        raise ValueError(f"expected 0, or 1 and more, where the gradient is finite; got {gamma}")
    return gamma


class LoopConfig(Section):
    """Length, loss, device and precision, states, evaluation and logging."""

    epochs: int = Field(90, ge=1)
    """Passes over the training images."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches per optimizer step: less memory at the same batch size, but BatchNorm sees
    micro-batches."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all classes; in a multilabel or binary task, over
    present and absent."""
    class_weights: Literal["balanced"] | tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Weights in the loss, one for each class: for its images, or in a multilabel or binary task
    for its positive images. balanced: images / (classes * images of the class), or negative /
    positive images of the class."""
    focal_gamma: Annotated[float, AfterValidator(_focal)] = 0.0
    """Exponent of the focal loss (Lin et al., 2017), which weights easy images less; 0: plain cross
    entropy."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the weights' exponential moving average; > 0: it is evaluated and kept as best."""
    seed: int = Field(0, ge=0)
    """Seed of initial weights, order, augmentation and dropout."""

    device: DeviceName = "auto"
    """auto: cuda, else mps, else cpu."""
    precision: PrecisionName = "auto"
    """Number format in training; auto: the table in densekit.precision."""
    eval_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of evaluation during training."""
    memory_format: MemoryFormatName = "auto"
    """auto: the table in densekit.precision."""
    cuda_graph: Literal["auto", "on", "off"] = Field("auto", json_schema_extra=when_absent("off"))
    """On a GPU: launch a step's forward and backward pass as one each; auto: off until measured."""
    threads: int | None = Field(None, ge=1)
    """CPU threads per rank; null: OMP_NUM_THREADS, else cores / local ranks."""

    output_dir: PathText | None = Field(None, json_schema_extra=NO_NUMBER)
    """The run's folder; null: runs/<recipe name>."""
    resume: PathText = Field("auto", json_schema_extra=NO_NUMBER)
    """auto: resume from the folder's newest state; never: require a new folder; or a state file or
    run folder to start a new folder from."""
    save_every: int | str = Field("10 minutes", json_schema_extra=NO_NUMBER)
    """Steps, or "N minutes", between training states; the end of each epoch saves one too."""
    keep: int = Field(2, ge=1, json_schema_extra=NO_NUMBER)
    """How many training states to keep, the newest."""
    log_every: int = Field(10, ge=1, json_schema_extra=NO_NUMBER)
    """Steps per line of log.jsonl."""
    log_format: Literal["densekit", "paddleclas"] = Field("densekit", json_schema_extra=NO_NUMBER)
    """paddleclas: each such line on the terminal, too, as PaddleClas writes it."""
    track: Annotated[tuple[TrackerName, ...], BeforeValidator(_several)] = Field(
        (), json_schema_extra=NO_NUMBER
    )
    """Trackers that also get log.jsonl's metrics, one or a list: TensorBoard (files in the run's
    folder), MLflow (at MLFLOW_TRACKING_URI), Weights & Biases (WANDB_MODE=offline: folder only)."""
    report: bool = Field(False, json_schema_extra=NO_NUMBER)
    """Write a report of the best network on the validation images to report/ in the run's folder at
    the end; costs one more evaluation."""
    eval_every: int = Field(1, ge=1)
    """Epochs between evaluations; the last epoch is always evaluated."""
    monitor: Literal["auto", "top1", "balanced_accuracy", "loss", "auroc", "f1"] = Field(
        "auto", json_schema_extra=NO_NUMBER
    )
    """The metric that chooses the best epoch; auto: balanced_accuracy (mean recall) if the training
    classes are imbalanced, else top1; auroc in a multilabel or binary task."""
    patience: int | None = Field(None, ge=1, json_schema_extra=NO_NUMBER)
    """Early stopping: end after this many evaluations in a row without a new best; null: off."""
    threshold: Annotated[
        Literal["youden", "f1"] | Annotated[float, Field(ge=0, le=1)],
        when(**{"/model.task": ("multilabel", "binary")}),
    ] = Field("youden", json_schema_extra=NO_NUMBER)
    """Probability from which a class counts as present, chosen per class at every evaluation and
    stored in the artifact. youden: maximises sensitivity + specificity on the validation images;
    f1: maximises F1; or a number for all classes."""
    eval_from: int = Field(1, ge=1)
    """The first epoch that is evaluated."""
    accept_data_change: bool = Field(False, json_schema_extra=NO_NUMBER)
    """Resume although images were added, removed or renamed; the result then differs from that of
    an uninterrupted run."""
    rank_timeout: float = Field(600, gt=0, json_schema_extra=NO_NUMBER)
    """Seconds that ranks wait for a missing one before the run stops."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = Field("stop", json_schema_extra=NO_NUMBER)
    """What to do if a loss or gradient is not finite. stop: end the run and keep the batch for
    inspection; skip: make no update; rollback: return to the newest state and leave out the
    batch."""
    max_skips: Annotated[int, when(on_nonfinite=("skip", "rollback"))] = Field(
        10, ge=0, json_schema_extra=NO_NUMBER
    )
    """Batches that may be left out before the run stops."""

    def evaluates(self, epoch: int) -> bool:
        """Whether `epoch`, from 1, ends with an evaluation."""
        due = epoch >= self.eval_from and epoch % self.eval_every == 0
        return due or epoch == self.epochs

    @property
    def save_steps(self) -> float:
        """Steps between training states; infinite where minutes decide."""
        return self.save_every if isinstance(self.save_every, int) else math.inf

    @property
    def save_minutes(self) -> float:
        """Minutes between training states; infinite where steps decide."""
        every = self.save_every
        return float(every.split()[0]) if isinstance(every, str) else math.inf

    @field_validator("save_every")
    @classmethod
    def _steps_or_minutes(cls, value: int | str) -> int | str:
        number, _, unit = str(value).partition(" ")
        if (isinstance(value, int) and value > 0) or (
            unit in ("minute", "minutes") and number.isdecimal() and int(number) > 0
        ):
            return value
        raise ValueError('loop.save_every is a number of steps or "N minutes", such as 10 minutes')


class Recipe(Section):
    """Everything that decides what a training run computes."""

    name: str = "run"
    """The run's folder is runs/<name> unless loop.output_dir says otherwise."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    loop: LoopConfig = LoopConfig()

    @property
    def output_dir(self) -> Path:
        return Path(self.loop.output_dir or f"runs/{self.name}")

    def out_of_reach(self) -> Iterator[OutOfReach]:
        """Epochs that come after the last, so that what they begin never happens."""
        optim, epochs = self.optim, self.loop.epochs
        beyond = [epoch for epoch in optim.milestones if epoch >= epochs]
        given = optim.milestones != type(optim).model_fields["milestones"].default
        if beyond and given and optim.schedule == "step":
            at = ", ".join(f"{epoch:g}" for epoch in beyond)
            why = f"a run of loop.epochs={epochs} ends before {at}"
            yield OutOfReach(("optim", "milestones"), why)
        if optim.warmup_epochs > epochs:
            why = f"the warm-up is longer than loop.epochs={epochs}: optim.lr is never reached"
            yield OutOfReach(("optim", "warmup_epochs"), why)
        last, joins = self._last_to_join()
        if optim.head_epochs and joins >= epochs:
            key = "unfreeze_epochs" if optim.head_epochs < epochs else "head_epochs"
            why = (
                f"{last} would be trained from epoch {joins + 1} on, and the run has "
                f"loop.epochs={epochs}; optim.freeze leaves out what is not to be trained at all"
            )
            yield OutOfReach(("optim", key), why)
        if self.loop.eval_from > epochs:
            why = f"of loop.epochs={epochs} only the last is evaluated"
            yield OutOfReach(("loop", "eval_from"), why)

    def _last_to_join(self) -> tuple[str, int]:
        """The first stage that is trained at all, which joins last; and in which epoch, from 0."""
        optim, blocks = self.optim, len(architecture(self.model).block_config)
        stages = stage_names(blocks)
        never = stages.index(optim.freeze) + 1 if optim.freeze in stages[:-1] else 0
        first = stages[never]
        name = "the stem" if first == "stem" else first
        return name, optim.head_epochs + optim.unfreeze_epochs * (blocks - part_of(first, blocks))

    @property
    def micro_batch_size(self) -> int:
        """Images of a micro-batch over all ranks."""
        return self.data.batch_size // self.loop.accumulation


def shipped() -> dict[str, Path]:
    """The recipes in the package, by name: `quickstart`, `imagenet/densenet121`, ..."""
    folder = Path(str(resources.files("densekit") / "recipes"))
    files = sorted(folder.rglob("*.yaml"))
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def find_recipe(name: str) -> Path:
    """The file of a shipped recipe's name, or the file itself."""
    if name in shipped():
        return shipped()[name]
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or path.exists():
        raise UserError(f"-c {name}: there is no such file")
    raise UserError(f"-c {name}: no shipped recipe has this name{nearest(name, shipped())}")


def read_recipe(name: str | None) -> tuple[ConfigSource, Tree]:
    """What the file or shipped recipe `name` says, and the name that its run has by default."""
    if name is None:
        return ConfigSource({}), {}
    path = find_recipe(name)
    return read_yaml(path), {"name": name_of(path)}


def name_of(file: Path) -> str:
    """The default name of a run by this recipe: `pets.v1` of pets.v1 and pets.v1.yaml."""
    return file.stem if file.suffix in (".yaml", ".yml") else file.name


def load_recipe(name: str | None = None, options: Iterable[str] = ()) -> Recipe:
    """The recipe of a file or shipped recipe, and `-o` options. Raises UserError."""
    source, named = read_recipe(name)
    return assemble(Recipe, Layers(named, source, options))[0]


def stored_recipe(file: Path) -> Recipe:
    """The recipe.yaml of a run; keys that it lacks, since they are newer, are as they were then."""
    stored = read_yaml(file)
    return build(Recipe, replace(stored, tree=merge(_as_before(Recipe), stored.tree)))


def _as_before(section: type[Section]) -> Tree:
    """What was computed before there were the fields that declare `when_absent`."""
    found: Tree = {}
    for key, field in section.model_fields.items():
        below, extra = field.annotation, field.json_schema_extra
        if isinstance(below, type) and issubclass(below, Section):
            found[key] = _as_before(below)
        elif isinstance(extra, dict) and "when_absent" in extra:
            found[key] = extra["when_absent"]
    return found


def differences(one: Section, other: Section, prefix: str = "") -> list[str]:
    """Keys whose values differ, as `a.b: 1 -> 2`; fields that change no number are passed over."""
    found: list[str] = []
    for key, field in type(one).model_fields.items():
        extra: Any = field.json_schema_extra or {}
        if extra.get("changes_no_number"):
            continue
        a, b = getattr(one, key), getattr(other, key)
        if isinstance(a, Section) and isinstance(b, Section):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a} -> {b}")
    return found
