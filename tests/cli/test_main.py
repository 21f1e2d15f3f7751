"""The commands: what they print where, and how they exit.

All but the first tests' are forked from a server that has torch imported (runs.densekit).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densekit.data.transforms import Preprocessing
from densekit.models import artifact, variants
from densekit.models.artifact import ArtifactConfig, Described
from densekit.models.densenet import DenseNet, DenseNetConfig
from runs import densekit


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six 16 x 16 images, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir()
        for i in range(6):
            pixels = draw.integers(0, 128, (16, 16, 3)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "best"
    config = DenseNetConfig(
        growth_rate=4, block_config=(1, 1), num_init_features=8, stem="cifar", num_classes=2
    )
    torch.manual_seed(0)
    artifact.write_artifact(
        folder,
        ArtifactConfig(
            model=Described(name="densenet121", architecture=config),
            preprocessing=Preprocessing(resize=None, crop=16),
            classes=("cat", "dog"),
        ),
        DenseNet(config).state_dict(),
    )
    return folder


def test_help_loads_neither_torch_nor_pydantic() -> None:
    code = (
        "import sys; sys.argv = ['densekit', '--help']\n"
        "from densekit.cli.main import main\n"
        "try: main()\n"
        "finally: print([m for m in ('torch', 'pydantic', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "train" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_python_m_densekit_is_the_command(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "densekit", "evaluate", "none"]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == densekit("evaluate", "none", cwd=tmp_path).stderr
    assert "none: there is no such file or folder" in " ".join(result.stderr.split())
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "-c", "quickstrat"], 'has this name; did you mean "quickstart"?'),
        (["train", "-c", "none.yaml"], "none.yaml: there is no such file"),
        (["train", "-c", "quickstart", "-o", "optim.lrr=1"], 'key "lrr"; did you mean "lr"?'),
        (["train", "-c", "quickstart", "-o", "optim.lr=fast"], "-o optim.lr=fast: expected"),
        (["train"], "no training images: set data.train"),
        (["train", "--data", "none"], "there is no file or folder"),
        (["evaluate"], "give either SOURCE"),
        (["evaluate", "none"], "there is no such file or folder"),
        (["predict", "none", "x.png"], "there is no such file or folder"),
        (["predict", "9" * 300, "x.png"], "a path too long for any disk"),
        (["train", "-c", "9" * 300], "a path too long for any disk"),
    ],
)  # fmt: skip
def test_a_users_mistake_is_a_sentence_and_exit_2(
    words: list[str], sentence: str, tmp_path: Path
) -> None:
    result = densekit(*words, cwd=tmp_path)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def broken() -> None:
    """A process's prelude: a bug in a command."""

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    assert callable(variants.describe_variant)
    variants.describe_variant = fails


def test_a_bug_keeps_its_traceback_and_exits_3() -> None:
    result = densekit("models", prelude=broken)
    assert result.returncode == 3
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError: ours" in result.stderr
    assert "this is a bug in densekit" in result.stderr


def two_variants() -> None:
    """A process's prelude: describing them all takes seconds; test_variants.py looks at each."""
    names = ("densenet121", "densenet264")
    variants.VARIANTS = {name: variants.VARIANTS[name] for name in names}  # type: ignore[misc]


def test_models_as_json_and_as_a_table() -> None:
    rows = json.loads(densekit("models", "--json", prelude=two_variants).stdout)
    assert [row["name"] for row in rows] == ["densenet121", "densenet264"]
    assert rows[0]["parameters"] == 7_978_856
    assert rows[0]["multiply_adds"] == pytest.approx(2.83e9, rel=0.01)
    table = densekit("models", prelude=two_variants).stdout
    (row,) = [line for line in table.splitlines() if "densenet121" in line]
    assert row.split() == ["densenet121", "7,978,856", "2.83", "G", "224", "x", "224", "1,000"]
    assert "densenet264" in table


def test_evaluate_counts_every_image(images: Path, trained: Path) -> None:
    result = densekit(
        "evaluate", str(trained), "--data", str(images), "--json", "--batch-size", "5"
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["count"] == 12
    assert found["precision"] == "fp32"
    assert [row["count"] for row in found["per_class"]] == [6, 6]
    assert np.sum(found["confusion"]) == 12
    people = densekit("evaluate", str(trained), "--data", str(images))
    assert f"{found['top1']:.4f}" in people.stdout
    assert "preprocessing: " in people.stdout
    assert "None" not in people.stdout


def test_predict_keeps_order_and_exits_1_for_an_unreadable_file(
    images: Path, trained: Path
) -> None:
    files = [str(images / "dog" / "3.png"), str(images / "none.png"), str(images / "cat")]
    result = densekit("predict", str(trained), *files, "--json", "--topk", "1")
    assert result.returncode == 1
    rows = json.loads(result.stdout)
    cats = [str(images / "cat" / f"{i}.png") for i in range(6)]
    assert [row["file"] for row in rows] == [*files[:2], *cats]
    assert "there is no such file" in rows[1]["error"]
    assert all(len(row["topk"]) == 1 for row in rows if row["error"] is None)
    table = densekit("predict", str(trained), *files, "--csv")
    assert table.stdout.splitlines()[0] == "file,class1,label1,prob1,class2,label2,prob2,error"
    assert densekit("predict", str(trained), files[0]).returncode == 0


def test_a_dry_run_writes_nothing(images: Path, tmp_path: Path) -> None:
    result = densekit("train", "--data", str(images), "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "nothing was trained" in result.stdout
    assert "densenet_bc_100_12" in result.stdout
    assert "val_fraction=0.2" in result.stderr
    assert list(tmp_path.iterdir()) == []
    plan = json.loads(
        densekit("train", "--data", str(images), "--dry-run", "--json", cwd=tmp_path).stdout
    )
    assert plan["train"] + plan["val"] == 12
    assert plan["recipe"]["model"]["num_classes"] == 2


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ("{} models >&-", 0, ""),
        ("{} models --json > /dev/full", 2, "stdout cannot be written: No space left on device"),
        ("{} models --json | head -n 1", 0, ""),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_stdout_that_is_closed_full_or_left(shell: str, code: int, said: str) -> None:
    command = shell.format(f"{sys.executable} -m densekit") + "; exit ${PIPESTATUS[0]}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
