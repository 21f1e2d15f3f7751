"""`make parity`: every converter against the library that it reads, network by network.

Builds two environments beside .venv (parity/.envs, minutes on the first run; they take torch from
.venv), has each library make random weights and its own logits of them, converts both ways, and
writes the differences into docs/weights.md. PARITY_ENVS names another folder for environments.

    python parity/run.py [LIBRARY ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tables import write_docs

from densekit.config import to_yaml
from densekit.infer import model as source
from densekit.weights.convert import ConvertOptions, convert
from training import train_rows

HERE = Path(__file__).parent
ENVIRONMENTS = {  # what pip installs in each, and without its dependencies
    "torch": (["timm", "keras>=3.5", "h5py", "monai", "torchxrayvision"], []),
    "paddle": (["paddlepaddle>=3.0"], ["paddleclas==2.6.0"]),
}
BOUND = 2e-5  # of the logits' largest magnitude


@dataclass(frozen=True)
class Peer:
    """A library: who runs it, what it makes, what it takes back."""

    environment: str
    script: str
    depths: tuple[int, ...]
    made: tuple[str, ...]
    taken: tuple[str, ...] = ()
    channels: int = 3


PEERS = {
    "paddle": Peer("paddle", "peer_paddle.py", (121, 161, 169, 201, 264),
                   ("weights.pdparams", "protocol2.pdparams"), (".pdparams",)),
    "torchvision": Peer("torch", "peer_torch.py", (121, 161, 169, 201),
                        ("weights.pth", "weights_2017.pth", "checkpoint.pth.tar"), (".pth",)),
    "timm": Peer("torch", "peer_torch.py", (121, 161, 169, 201),
                 ("weights.pth", "model.safetensors"), (".pth", ".safetensors")),
    "keras": Peer("torch", "peer_keras.py", (121, 169, 201), ("model.h5", "model.weights.h5"),),
    "monai": Peer("torch", "peer_torch.py", (121, 169, 201, 264), ("weights.pth",), channels=1),
    "torchxrayvision": Peer("torch", "peer_torch.py", (121,), ("module.pt", "module_2019.pt"),
                            channels=1),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A file of one network, converted one way."""

    library: str
    model: str
    file: str
    direction: str
    difference: float
    """Largest, over the largest logit."""


@dataclass(frozen=True)
class Trained:
    """Something of a network after training steps in Paddle and here."""

    model: str
    what: str
    difference: float
    bound: float


def main(libraries: list[str]) -> int:
    """Prints and writes every row; 1 if one is over its bound."""
    rows: list[Row] = []
    trained: list[Trained] = []
    versions: dict[str, str] = {}
    for library in libraries or list(PEERS):
        for depth in PEERS[library].depths:
            with tempfile.TemporaryDirectory() as folder:
                made, versions[library] = compare(library, depth, Path(folder))
                rows += made
                if library == "paddle":
                    trained += compare_training(depth, Path(folder))
    if not libraries:
        write_docs(rows, trained, versions, BOUND)
    over = [r for r in rows if not r.difference <= BOUND]
    over_trained = [r for r in trained if not r.difference <= r.bound]
    for row in [*over, *over_trained]:
        print(f"over its bound: {row}")
    return 1 if over or over_trained else 0


def compare_training(depth: int, folder: Path) -> list[Trained]:
    run_peer("paddle", "train", str(depth), str(folder))
    rows = [Trained(f"densenet{depth}", *row) for row in train_rows(depth, folder)]
    for row in rows:
        print(f"paddle training  {row.model} {row.what} {row.difference:.1e} (bound {row.bound:g})")
    return rows


def compare(library: str, depth: int, folder: Path) -> tuple[list[Row], str]:
    """The rows of one network, and the library's version."""
    peer, model, rows = PEERS[library], f"densenet{depth}", []
    version = run_peer(library, "make", str(depth), str(folder))
    images = torch.from_numpy(np.load(folder / "images.npy"))
    theirs = np.load(folder / "logits.npy")
    for file in peer.made:
        artifact = folder / file.replace(".", "_")
        convert(str(folder / file), str(artifact), _options(folder, peer))
        opened = source.open_path(str(artifact))
        assert opened.name == model, f"{file} of {model} was taken for {opened.name}"
        with torch.inference_mode():
            ours = opened.model(images).numpy()
        rows.append(_row(library, model, file, "in", ours, theirs))
    for suffix in peer.taken:
        back = folder / f"back{suffix}"
        convert(str(artifact), str(back), ConvertOptions(force=True))
        run_peer(library, "check", str(depth), str(back), str(folder))
        again = np.load(folder / "again.npy")
        rows.append(_row(library, model, back.name, "out", again, theirs))
    return rows, version


def _row(
    library: str, model: str, file: str, way: str, found: np.ndarray, wanted: np.ndarray
) -> Row:
    assert wanted.std() > 1e-3, "logits that do not depend on the image prove nothing"
    difference = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    print(
        f"{library:16} {model} {file:20} {way:4} {difference:.1e} (bound {BOUND:.0e})", flush=True
    )
    return Row(library, model, file, way, difference)


def _options(folder: Path, peer: Peer) -> ConvertOptions:
    """What a file of random weights cannot say."""
    preprocessing, classes = folder / "preprocessing.yaml", folder / "classes.txt"
    one = {"channels": peer.channels, "mean": [0.5], "std": [0.25]}
    preprocessing.write_text(to_yaml(one), encoding="utf-8")
    classes.write_text("".join(f"{i} class{i}\n" for i in range(10)), encoding="utf-8")
    return ConvertOptions(preprocessing=str(preprocessing), classes=str(classes), force=True)


# Environments -------------------------------------------------------------------------------


def run_peer(library: str, action: str, *arguments: str) -> str:
    """Runs a library's script in its environment; returns its first line, the version."""
    peer = PEERS[library]
    command = [python_of(peer.environment), HERE / peer.script, action, library, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout.split()[0]


def python_of(name: str) -> Path:
    """The interpreter of an environment, which is made if it is not there."""
    folder = Path(os.environ.get("PARITY_ENVS") or HERE / ".envs") / name
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not (folder / "ready").exists():
        print(f"making {folder}: a few minutes", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        own = subprocess.check_output([python, "-c", ask], text=True).strip()
        shared = sysconfig.get_paths()["purelib"]  # where torch is, five gigabytes of it
        (Path(own) / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
        packages, alone = ENVIRONMENTS[name]
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.check_call([*pip, *packages])
        if alone:
            subprocess.check_call([*pip, "--no-deps", *alone])
        (folder / "ready").touch()
    return python


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
