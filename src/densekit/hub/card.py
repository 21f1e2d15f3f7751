"""An artifact's model card: README.md as Hugging Face's hub reads it, from config.json alone."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import PurePath
from typing import Any

from densekit.models.artifact import ArtifactConfig, Task

Z = 1.959964  # standard deviations: 95 % of a normal distribution
CLASSES_NAMED = 50  # classes listed on a card
RATES = {"top1": "accuracy (top-1)", "top5": "top-5 accuracy"}
"""Metrics that are shares of the images, with their names on a card."""
TASKS: dict[Task, str] = {
    "multiclass": "one class for each image (softmax over the classes)",
    "multilabel": "any number of classes for each image (a sigmoid for each class)",
    "binary": "yes or no for each image (a sigmoid)",
}
SEAL = re.compile(r"<!-- densekit's own card, sha256 ([0-9a-f]{64}) -->\n\Z")


def hub_card(config: ArtifactConfig, repository: str, licence: str | None) -> str:
    """The whole README.md. Needs huggingface_hub."""
    version = config.provenance.versions.get("densekit", "")
    parts = [
        f"---\n{_front_matter(config, repository, licence)}\n---\n",
        f"# {repository.rpartition('/')[2]}\n",
        f"A DenseNet ({config.model.name}, {config.model.architecture.parameter_count:,} "
        f"parameters) for images, made with densekit {version}.\n",
        *_task(config),
        *_measured(config),
        *_preprocessing(config),
        *_use(repository),
        *_provenance(config),
        "## Licence\n",
        f"{licence}\n" if licence else "None is stated; ask whoever published it.\n",
    ]
    text = "\n".join(parts)
    return f"{text}\n<!-- densekit's own card, sha256 {_sha256(text)} -->\n"


def is_untouched(text: str) -> bool:
    """Whether a README.md was written by `hub_card` and not edited since."""
    seal = SEAL.search(text)
    return seal is not None and _sha256(text[: seal.start() - 1]) == seal[1]


def wilson(rate: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent cases (Wilson, 1927)."""
    middle = (rate + Z**2 / (2 * count)) / (1 + Z**2 / count)
    reach = Z * math.sqrt(rate * (1 - rate) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _front_matter(config: ArtifactConfig, repository: str, licence: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    name, data = repository.rpartition("/")[2], _data_name(config)
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data,
            dataset_name=data,
            metric_type="accuracy",
            metric_name=RATES[key],
            metric_value=config.metrics[key],
        )
        for key in RATES
        if key in config.metrics
    ]
    card = ModelCardData(
        license=licence,
        library_name="densekit",
        pipeline_tag="image-classification",
        tags=["densenet", "image-classification", "densekit"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return card.to_yaml().rstrip("\n")


def _task(config: ArtifactConfig) -> list[str]:
    names = [_cell(name) for name in config.classes[:CLASSES_NAMED]]
    more = len(config.classes) - len(names)
    rest = f", and {more:,} more, which `config.json` names" if more else ""
    said = TASKS[config.task]
    return ["## Task\n", f"{said}. {len(config.classes):,} classes: {', '.join(names)}{rest}.\n"]


def _measured(config: ArtifactConfig) -> list[str]:
    metrics = {
        key: value
        for key, value in config.metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    count = int(metrics.pop("count", 0))
    if not metrics:
        return ["## Measured\n", "Nothing was measured of these weights.\n"]
    lines = ["| Metric | Value | 95 % interval |", "|---|---|---|"]
    for key, value in metrics.items():
        interval = "-"
        if key in RATES and count:
            interval = "{:.4f} to {:.4f}".format(*wilson(value, count))
        lines.append(f"| {RATES.get(key, key)} | {value:.4f} | {interval} |")
    return [
        "## Measured\n",
        f"On {count:,} validation images of its training's data, {_data_name(config)}. Where a run "
        f"chose its best epoch by these images, new ones may do a little worse.\n",
        "\n".join(lines) + "\n",
        "Intervals are Wilson's, of a share of that many independent images; they say nothing of "
        "images of another kind.\n",
    ]


def _preprocessing(config: ArtifactConfig) -> list[str]:
    steps = config.preprocessing.model_dump(mode="json")
    lines = ["| Step | Value |", "|---|---|"]
    lines += [f"| {key} | {_cell(str(value))} |" for key, value in steps.items()]
    said = "densekit does all of it; `crop` is the side in pixels of what the network sees.\n"
    return ["## Preprocessing\n", said, "\n".join(lines) + "\n"]


def _use(repository: str) -> list[str]:
    return [
        "## Use\n",
        "```\n"
        'pip install "densekit[hub]"\n'
        f"densekit predict hf-hub:{repository} photo.jpg\n"
        "```\n"
        "```python\n"
        "import densekit\n\n"
        f'classifier = densekit.load("hf-hub:{repository}")\n'
        'classifier.predict(["photo.jpg"], topk=3)\n'
        "```\n",
    ]


def _provenance(config: ArtifactConfig) -> list[str]:
    origin = config.provenance
    lines = [f"- {name} {version}" for name, version in origin.versions.items()]
    lines += [f"- densekit's commit {origin.commit}"] if origin.commit else []
    lines += [f"- {key}: {_cell(value)}" for key, value in origin.source.items()]
    if origin.recipe is not None:
        name = _cell(str(origin.recipe.get("name", "")))
        lines.append(f"- recipe {name}: `provenance.recipe` of `config.json` has every option")
    lines.append(f"- data: {_data_name(config)}")
    return ["## Provenance\n", "\n".join(lines) + "\n"]


def _data_name(config: ArtifactConfig) -> str:
    """The name of the training's images, without the machine's folders."""
    data: dict[str, Any] = config.data
    place = str(
        data.get("root") or data.get("train") or data.get("val") or "data that is not named"
    )
    return _cell(place.removeprefix("builtin:") if ":" in place else PurePath(place).name or place)


def _cell(text: str) -> str:
    """On one line, with Markdown's column, tag and code characters escaped or removed."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'").split())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
