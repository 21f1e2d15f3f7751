"""Whether data.decode=scaled costs accuracy: networks trained by it and by exact decoding.

    python benchmarks/scaled_accuracy.py        several minutes on 2 cores
    python benchmarks/scaled_accuracy.py --quick --results /tmp/scaled

The images are the 5,000 real digits, enlarged to large colour JPEG files and covered with texture
of several grains, so that what a decoder averages away is there. The network sees squares of 32
pixels, of crops that are always decoded at 1/8. Both networks of a seed start from the same
weights and see the same crops; test images are decoded exactly for both. scaled-accuracy.json
has top-1 of each, the paired differences, their intervals, and the commands.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import gates
import rows
from densekit.data.builtin import mnist5k
from densekit.data.listing import strata_of
from densekit.data.splits import open_examples
from densekit.files import write_atomically
from densekit.infer.bootstrap import Resampling
from densekit.precision import FLAG, resolve
from densekit.report.paired import compare_pair
from densekit.report.predictions import KeptAnswers
from densekit.report.sides import judge

RESULTS = rows.RESULTS / "scaled"
FILE = "scaled-accuracy.json"
DECODES = ("exact", "scaled")
DIGITS = 10
GRAINS = (2, 6, 20)  # pixels of an image's texture
CROP = (0.55, 1.0)  # share of an image's area
NETWORK_SIDE = 32
RECIPE = "cifar/densenet_bc_100_12"
OPTIONS = (
    "model.num_classes=10",
    "model.overrides={block_config: [2, 2, 2], num_init_features: 24}",
    "data.train=set/train.txt",
    "data.val=set/val.txt",
    f"data.image_size={NETWORK_SIDE}",
    "data.batch_size=25",
    "data.workers=0",
    "data.cache=off",
    "data.augment.crop=random_resized",
    f"data.augment.crop_scale={list(CROP)}",
    "data.augment.flip=0",
    f"data.evaluate.resize={NETWORK_SIDE}",
    "optim.reference_batch=50",
    "optim.schedule=cosine",
    "loop.eval_every=1000",
    "loop.threads=1",
)


@dataclass(frozen=True)
class Sizes:
    """Of the set and of the training."""

    train: int = 100
    """Images of each digit."""
    val: int = 2
    """Of each digit; nothing is chosen by them."""
    test: int = 100
    """Of each digit."""
    side: int = 800
    """Pixels of an image."""
    epochs: int = 20
    seeds: int = 3


QUICK = Sizes(train=5, test=5, side=400, epochs=1, seeds=2)


# The set -------------------------------------------------------------------------------------


def make_set(folder: Path, sizes: Sizes) -> None:
    """JPEG files and train.txt, val.txt and test.txt in `folder`, a function of the sizes."""
    digits = mnist5k(folder.parent / "mnist5k")
    train = by_digit(digits / "train_list.txt")
    parts = {
        "train": [each[: sizes.train] for each in train],
        "val": [each[len(each) - sizes.val :] for each in train],
        "test": [each[: sizes.test] for each in by_digit(digits / "val_list.txt")],
    }
    texture = make_texture(2 * sizes.side)
    folder.mkdir()
    for number, (part, files) in enumerate(parts.items()):
        labelled = [(file, digit) for digit in range(DIGITS) for file in files[digit]]
        draws = [np.random.default_rng((number, i)) for i in range(len(labelled))]
        with ThreadPoolExecutor() as pool:
            paint = partial(photograph, texture=texture, side=sizes.side)
            painted = pool.map(paint, [file for file, _ in labelled], draws)
            for i, image in enumerate(painted):
                image.save(folder / f"{part}-{i}.jpg", quality=90)
        lines = [f"{part}-{i}.jpg {digit}\n" for i, (_, digit) in enumerate(labelled)]
        (folder / f"{part}.txt").write_text("".join(lines))


def by_digit(list_file: Path) -> list[list[str]]:
    """The paths of each digit, in the list's order."""
    examples = open_examples(str(list_file))
    pairs = list(zip(examples.paths, examples.labels, strict=True))
    return [[path for path, label in pairs if int(label) == digit] for digit in range(DIGITS)]


def make_texture(side: int) -> np.ndarray:
    """Noise of several grains about 0, int16 [side, side]."""
    draw = np.random.default_rng(0)
    whole = np.zeros((side, side), np.int16)
    for grain in GRAINS:
        coarse = draw.integers(0, 256, (side // grain,) * 2, dtype=np.uint8)
        fine = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        whole += np.asarray(fine, np.int16) - 128
    return whole // 3


def photograph(
    file: str, draw: np.random.Generator, *, texture: np.ndarray, side: int
) -> Image.Image:
    """The digit, enlarged smoothly, under a piece of the texture and between two drawn colours."""
    with Image.open(file) as image:
        large = image.convert("L").resize((side, side), Image.Resampling.BICUBIC)
    top, left = draw.integers(0, texture.shape[0] - side, 2)
    piece = texture[top : top + side, left : left + side]
    shade = (64 + np.asarray(large, np.int16) // 2 + piece).clip(0, 255).astype(np.uint8)
    dark, light = draw.integers(0, 100, 3), draw.integers(155, 256, 3)
    plane = Image.fromarray(shade)
    bands = [
        plane.point([int(low + (high - low) * value / 255) for value in range(256)])
        for low, high in zip(dark, light, strict=True)
    ]
    return Image.merge("RGB", bands)


# Training and comparing ----------------------------------------------------------------------


def train_words(decode: str, seed: int, epochs: int) -> list[str]:
    """Of `densekit train`."""
    own = (f"data.decode={decode}", f"loop.seed={seed}", f"loop.epochs={epochs}")
    options = (*OPTIONS, *own, f"loop.output_dir={decode}-{seed}")
    return ["train", "-c", RECIPE, *(word for option in options for word in ("-o", option))]


def top1(answers: KeptAnswers) -> float:
    return float(answers.right().mean())


def compare(pairs: Sequence[tuple[KeptAnswers, KeptAnswers]]) -> dict[str, Any]:
    """Of each seed's exact and scaled network: top-1, differences, and their mean with its interval
    over test images, drawn again for all seeds at once."""
    resampling = Resampling()
    seeds = []
    for exact, scaled in pairs:
        found = compare_pair(exact, scaled, resampling)
        seeds.append(
            {
                "exact": top1(exact),
                "scaled": top1(scaled),
                "difference": found["differences"]["top1"],
                "mcnemar": found["mcnemar"][0],
            }
        )
    aligned = [(exact.right(), scaled.aligned(exact).right()) for exact, scaled in pairs]
    gained = np.mean([scaled.astype(float) - exact for exact, scaled in aligned], 0)
    first = pairs[0][0]
    assert all(np.array_equal(first.files, exact.files) for exact, _ in pairs)
    ends = resampling.intervals(
        lambda weights: {"mean": weights @ gained / len(gained)}, strata_of(first.labels)
    )
    return {
        "images": len(gained),
        "seeds": seeds,
        "mean_difference": {"value": float(gained.mean()), "interval": ends["mean"].tolist()},
    }


def measure(sizes: Sizes, work: Path) -> dict[str, Any]:
    """Makes the set, trains all networks at once, a thread each, and compares them."""
    work.mkdir(parents=True)
    make_set(work / "set", sizes)
    words = [
        train_words(decode, seed, sizes.epochs) for seed in range(sizes.seeds) for decode in DECODES
    ]
    started = [
        subprocess.Popen([*gates.COMMAND, *each], cwd=work, stdout=subprocess.DEVNULL)
        for each in words
    ]
    for each, code in zip(words, [process.wait() for process in started], strict=True):
        if code:
            sys.exit(f"{gates.readable(each)}: exit code {code}")
    formats = resolve("cpu", "fp32", typed=FLAG)

    def answers(decode: str, seed: int) -> KeptAnswers:
        run, test = str(work / f"{decode}-{seed}"), str(work / "set" / "test.txt")
        kept = judge(run, formats, test, workers=0).predictions
        assert kept is not None
        return kept

    pairs = [(answers("exact", seed), answers("scaled", seed)) for seed in range(sizes.seeds)]
    commands = [gates.readable(each) for each in words]
    machine = rows.machine().model_dump(mode="json")
    where = {"machine": machine, "commit": rows.commit(), "date": date.today().isoformat()}
    return {"sizes": asdict(sizes), **compare(pairs), "commands": commands, **where}


def summary(kept: dict[str, Any]) -> str:
    """A line of it for people."""
    parts = []
    for decode in DECODES:
        found = [seed[decode] for seed in kept["seeds"]]
        parts.append(f"{decode} {np.mean(found):.4f} ({min(found):.4f} - {max(found):.4f})")
    mean = kept["mean_difference"]
    low, high = mean["interval"]
    return (
        f"top-1 on {kept['images']:,} images, {len(kept['seeds'])} seeds: {', '.join(parts)}; "
        f"scaled minus exact {mean['value']:+.4f} (95 % {low:+.4f} to {high:+.4f})"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes; needs --results")
    parser.add_argument("--results", type=Path, help=f"where {FILE} goes; {RESULTS}")
    work = rows.ROOT / "runs" / "scaled"
    parser.add_argument("--work", type=Path, default=work, help="a new folder for set and runs")
    arguments = parser.parse_args()
    if arguments.quick and arguments.results is None:
        parser.error("--quick: give --results, too; its numbers mean nothing")
    if arguments.work.exists():
        parser.error(f"{arguments.work}: is there already; give another folder with --work")
    return arguments


def main(arguments: argparse.Namespace) -> None:
    kept = measure(QUICK if arguments.quick else Sizes(), arguments.work)
    folder = arguments.results or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FILE, (json.dumps(kept, indent=2) + "\n").encode())
    print(summary(kept))


if __name__ == "__main__":
    main(parse_arguments())
