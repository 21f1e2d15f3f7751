"""Gates of real exports: what `densekit export` measures, kept in benchmarks/results/gates.

    python benchmarks/gates.py quickstart     digits; 5 minutes on 2 cores
    python benchmarks/gates.py cifar          CIFAR-10 with a test split apart; 5 minutes
    python benchmarks/gates.py densenet121    DenseNet-121 on 500 ImageNet images; 15 minutes

Each trains its network in the folder `--work`, where it has not yet, exports it to every target or
to those of `--to`, and evaluates it and the export on images that neither training nor int8 has
seen, where there are such. NAME-TARGET.json is the export's gate.json with the commands that made
it; `--missing` makes those that are not there yet. Paths start in the work folder. The machine
should be idle while it exports. Most of the time goes into int8: where it loses too much, layers
are ranked one by one, and the network is calibrated anew up to six times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, get_args

import rows
from densekit.infer.exported import Target

RESULTS = rows.RESULTS / "gates"
COMMAND = [sys.executable, "-m", "densekit"]
ANIMALS = 398  # ImageNet's first classes are animals, all others are not
COLUMNS = (
    "Network",
    "`--to`",
    "Images",
    "Largest difference of a logit",
    "Norm of the difference",
    "Same answer",
    "Top-1 of torch and export",
    "On images held out",
    "ms of torch and export, batch 1",
    "batch 16",
)
TARGETS: tuple[str, ...] = get_args(Target)
COUNTED = ("count", "top1", "loss")  # of an evaluation


@dataclass(frozen=True)
class Network:
    """A network that is trained to be exported."""

    about: str
    recipe: str
    options: tuple[str, ...] = ()
    """-o of `densekit train`."""
    archive: str | None = None
    """Unpacked into the work folder, from the folder that DENSEKIT_TEST_DATA names."""
    prepare: Callable[[Path], None] = lambda work: None
    images: str | None = None
    """--images of `densekit export`."""
    held_out: str | None = None
    """A list of images that nothing else has seen."""


def list_animals(work: Path) -> None:
    """train.txt and val.txt in the sample's folder: animals or not, of five images one in val."""
    sample = work / "imagenet-sample"
    lines = [line.rsplit(" ", 1) for line in (sample / "val_list.txt").read_text().splitlines()]
    said = [f"{file} {int(int(label) < ANIMALS)}\n" for file, label in lines]
    val = said[::5]
    (sample / "animals.txt").write_text("".join(said))
    (sample / "val.txt").write_text("".join(val))
    (sample / "train.txt").write_text("".join(line for line in said if line not in set(val)))


def list_quarter(work: Path) -> None:
    """quarter.txt: of four training images one."""
    lines = (work / "cifar10" / "train_list.txt").read_text().splitlines(keepends=True)
    (work / "cifar10" / "quarter.txt").write_text("".join(lines[::4]))


NETWORKS = {
    "quickstart": Network("the quickstart: 5,000 real digits, 28 x 28", "quickstart"),
    "cifar": Network(
        "a small DenseNet-BC after 6 epochs of a quarter of CIFAR-10, 32 x 32",
        "cifar/densenet_bc_100_12",
        (
            "model.overrides={block_config: [3, 3, 3], num_init_features: 24}",
            "data.train=cifar10/quarter.txt",
            "data.val_fraction=0.1",
            "optim.milestones=[4, 5]",
            "loop.epochs=6",
        ),
        archive="cifar10.tar.gz",
        prepare=list_quarter,
        held_out="cifar10/val_list.txt",
    ),
    "densenet121": Network(
        "DenseNet-121 at 224 after 4 epochs of 400 images, animals or not, from random weights: "
        "its accuracy means nothing, the differences do",
        "imagenet/densenet121",
        (
            "model.num_classes=2",
            "data.train=imagenet-sample/train.txt",
            "data.val=imagenet-sample/val.txt",
            "data.batch_size=20",
            "optim.lr=0.02",
            "optim.reference_batch=20",
            "optim.milestones=[3]",
            "loop.epochs=4",
        ),
        archive="imagenet-sample.tar",
        prepare=list_animals,
        images="imagenet-sample/animals.txt",
    ),
}


def trained(name: str, network: Network, work: Path) -> list[str]:
    """Trains it in the work folder, if it has not been; returns the command."""
    words = ["train", "-c", network.recipe, *(t for o in network.options for t in ("-o", o))]
    words += ["-o", f"loop.output_dir={name}"]
    work.mkdir(parents=True, exist_ok=True)
    if network.archive and not (work / network.archive.partition(".")[0]).exists():
        with tarfile.open(Path(os.environ["DENSEKIT_TEST_DATA"]) / network.archive) as archive:
            archive.extractall(work, filter="data")
    network.prepare(work)
    densekit(words, work)  # a run that is over says so
    return words


@dataclass(frozen=True)
class Counts:
    """Of an evaluation on images held out, and its command."""

    command: str
    found: dict[str, float]


def held_out(folder: str, images: str, work: Path) -> Counts:
    words = ["evaluate", folder, "--data", images, "--bootstrap", "0"]
    measured = json.loads(densekit([*words, "--json"], work))
    return Counts(readable(words), {key: measured[key] for key in COUNTED})


def gate(
    name: str, network: Network, to: str, work: Path, train: list[str], tested: Counts | None
) -> dict[str, Any]:
    """Exports the trained network; what is kept of it. `tested`: torch on the images held out."""
    export = ["export", f"{name}/best", "--to", to, "--out", f"{name}/{to}", "--replace"]
    export += ["--images", network.images] if network.images else []
    found = json.loads(densekit([*export, "--json"], work).replace(f"{work.resolve()}/", ""))
    kept: dict[str, Any] = {
        "name": f"{name}-{to}",
        "about": network.about,
        "commands": [readable(train), readable(export)],
        "gate": {key: value for key, value in found.items() if key != "folder"},
    }
    if network.held_out and tested:
        exported = held_out(f"{name}/{to}", network.held_out, work)
        kept["commands"] += [tested.command, exported.command]
        kept["held_out"] = {"torch": tested.found, "exported": exported.found}
    machine, commit = rows.machine().model_dump(mode="json"), rows.commit()
    return {**kept, "machine": machine, "commit": commit, "date": date.today().isoformat()}


def densekit(words: Sequence[str], work: Path) -> str:
    """What the command prints, run in the work folder."""
    print(readable(words), file=sys.stderr)
    done = subprocess.run([*COMMAND, *words], cwd=work, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{readable(words)}: exit code {done.returncode}")
    return done.stdout


def readable(words: Sequence[str]) -> str:
    return " ".join(["densekit", *(f'"{word}"' if " " in word else word for word in words)])


# The table of docs/export.md -----------------------------------------------------------------


def markdown(folder: Path = RESULTS) -> str:
    """What was kept, a line for each export."""
    kept = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    lines = ["| " + " | ".join(row) + " |\n" for row in (COLUMNS, *map(cells, kept))]
    return "".join([lines[0], "|" + "---|" * len(COLUMNS) + "\n", *lines[1:]])


def cells(kept: dict[str, Any]) -> tuple[str, ...]:
    """Of one export, as COLUMNS has them."""
    gate, held_out = kept["gate"], kept.get("held_out")
    network, difference = kept["name"].removesuffix(f"-{gate['to']}"), gate["difference"]
    return (
        network,
        gate["to"],
        f"{gate['images']['count']:,}",
        f"{difference['max']:.2g}",
        f"{difference['relative_norm']:.2g}",
        f"{difference['agreement']:.2%}",
        f"{gate['torch']['top1']:.4f}, {gate['exported']['top1']:.4f}",
        f"{held_out['torch']['top1']:.4f}, {held_out['exported']['top1']:.4f}" if held_out else "-",
        *(f"{row['torch_ms']:.3g}, {row['exported_ms']:.3g}" for row in gate["latency"]),
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=NETWORKS)
    parser.add_argument("--to", action="append", choices=TARGETS, help="a target; all of them")
    parser.add_argument("--work", type=Path, default=rows.ROOT / "runs" / "gates")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files go")
    parser.add_argument("--missing", action="store_true", help="only what --results lacks")
    parser.add_argument("--train", action="store_true", help="no more than the training")
    return parser.parse_args()


def main(arguments: argparse.Namespace) -> None:
    name, network = arguments.name, NETWORKS[arguments.name]
    files = {to: arguments.results / f"{name}-{to}.json" for to in arguments.to or TARGETS}
    if arguments.missing:
        files = {to: file for to, file in files.items() if not file.exists()}
    train = trained(name, network, arguments.work)
    if arguments.train:
        return
    images = network.held_out
    tested = held_out(f"{name}/best", images, arguments.work) if images else None
    for to, file in files.items():
        kept = gate(name, network, to, arguments.work, train, tested)
        arguments.results.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main(parse_arguments())
