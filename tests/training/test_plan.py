"""A recipe against this machine and these images."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from densekit.config import UserError, to_yaml
from densekit.ops.lean.kernels import native
from densekit.training.loop import make_plan
from densekit.training.plan import Plan
from densekit.training.recipe import load_recipe
from runs import OPTIONS, STEPS_PER_EPOCH, TRAIN, VAL, Runs

Planned = Callable[..., Plan]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def digits(runs: Runs, tmp_path: Path) -> Path:
    """A copy of the images that a test may spoil."""
    return Path(shutil.copytree(runs.data, tmp_path / "digits"))


def plan(root: Path, **options: object) -> Plan:
    """`model__op` is model.op."""
    own = {key.replace("__", "."): value for key, value in options.items()}
    chosen = {**OPTIONS, "data.root": root, **own}
    return make_plan(load_recipe(None, [f"{key}={value}" for key, value in chosen.items()]))


def test_every_auto_is_resolved(runs: Runs) -> None:
    autos = {"loop__precision": "auto", "data__workers": "auto", "model__num_classes": "null"}
    found = plan(runs.data, loop__memory_format="auto", loop__device="auto", **autos)
    recipe = found.recipe
    text = to_yaml(recipe.model_dump(mode="json"))
    assert [row.strip() for row in text.splitlines() if row.endswith(": auto")] == ["resume: auto"]
    assert recipe.model.num_classes == 10
    assert recipe.model.op == ("lean" if lean_is_taken(found) else "reference")
    assert isinstance(recipe.data.workers, int)
    assert recipe.loop.precision == found.precision.name
    assert found.eval_precision.name == "fp32"
    assert found.precision.device == found.eval_precision.device


def lean_is_taken(found: Plan) -> bool:
    return found.environment["kernels"] == "native"


def test_without_a_compiler_auto_takes_the_reference_and_says_so(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "reason", lambda: "no C++ compiler was found")
    found = plan(runs.data)
    assert found.recipe.model.op == "reference"
    assert "model.op=auto takes the reference: no C++ compiler was found" in found.warnings
    asked = plan(runs.data, model__op="lean")
    assert (asked.environment["op"], asked.environment["kernels"]) == ("lean", "plain")


def test_what_was_given_stays(runs: Runs) -> None:
    found = plan(runs.data, loop__memory_format="contiguous", data__workers=3)
    assert found.recipe.loop.memory_format == "contiguous"
    assert found.recipe.data.workers == 3
    assert found.threads == 1 == torch.get_num_threads()
    assert found.architecture.growth_rate == 4
    assert found.architecture.image_size == 28


def test_steps_and_counts(runs: Runs) -> None:
    found = plan(runs.data)
    assert (len(found.train), len(found.val)) == (TRAIN, VAL)
    assert found.counts.sum() == TRAIN
    assert found.steps_per_epoch == STEPS_PER_EPOCH
    assert found.steps == 2 * STEPS_PER_EPOCH
    assert plan(runs.data, data__drop_last="true").steps_per_epoch == STEPS_PER_EPOCH - 1


def test_classes_have_names_or_numbers(digits: Path) -> None:
    assert plan(digits).classes == [str(label) for label in range(10)]
    (digits / "classes.txt").write_text("".join(f"{n} digit {n}\n" for n in range(10)))
    assert plan(digits).classes[7] == "digit 7"
    assert plan(digits, model__num_classes=12).classes[10:] == ["10", "11"]


def test_the_digest_is_of_both_lists(digits: Path) -> None:
    before = plan(digits).digest
    assert plan(digits).digest == before
    for name in ("train_list.txt", "val_list.txt"):
        text = (digits / name).read_text()
        first, rest = text.split("\n", 1)
        other = "0" if first.split()[1] != "0" else "1"
        for changed in (rest, f"{rest}{first}\n", f"{first.split()[0]} {other}\n{rest}"):
            (digits / name).write_text(changed)
            assert plan(digits).digest != before
        (digits / name).write_text(text)
    assert plan(digits).digest == before


def test_the_environment_is_what_bits_depend_on(runs: Runs) -> None:
    found = plan(runs.data).environment
    assert found["torch"] == torch.__version__
    assert (found["threads"], found["world_size"]) == (1, 1)
    assert (found["op"], found["kernels"]) in (("lean", "native"), ("reference", "plain"))
    assert torch.backends.cpu.get_cpu_capability() in found["machine"] or "cuda" in str(found)


def test_a_file_in_both_lists_is_refused(digits: Path) -> None:
    train = (digits / "train_list.txt").read_text()
    with (digits / "val_list.txt").open("a") as file:
        file.write(train.splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"1 files are in both .*the accuracy would mean nothing"):
        plan(digits)


def test_a_label_that_is_no_class_is_refused(digits: Path) -> None:
    with pytest.raises(UserError, match=r"model\.num_classes=4 has labels 0 to 3"):
        plan(digits, model__num_classes=4)


def test_a_class_without_images_is_a_warning(digits: Path) -> None:
    found = plan(digits, model__num_classes=11)
    assert any("1 of 11 classes have no images: 10" in text for text in found.warnings)
    assert any(text.startswith("validation: ") for text in found.warnings)


def test_an_unreadable_file_is_found_before_the_first_step(digits: Path) -> None:
    name = (digits / "train_list.txt").read_text().split()[0]
    (digits / name).write_bytes(b"not an image")
    with pytest.raises(UserError, match=rf"train_list\.txt:1: .*{name}"):
        plan(digits)
    plan(digits, data__check_files=0)


def test_ranks_must_divide_the_batch(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(UserError, match="nearest: 20 or 25"):
        plan(runs.data)
