"""Recipes: found by name, checked across sections, compared."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import Layers, Section, UserError, assemble, read_yaml, to_yaml
from densekit.training.recipe import (
    Recipe,
    differences,
    find_recipe,
    load_recipe,
    name_of,
    read_recipe,
    shipped,
    stored_recipe,
)
from densekit.training.recipe_checks import check


def check_for(recipe: Recipe, ranks: int) -> None:
    with mock.patch.dict(os.environ, WORLD_SIZE=str(ranks)):
        check(recipe)


# Found --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_loads_and_passes_its_checks(name: str) -> None:
    for ranks in (1, 4):
        check_for(load_recipe(name), ranks)
    first = shipped()[name].read_text().partition("\n")[0]
    assert first.startswith("# "), "a recipe begins with what it is for"


def test_options_come_after_the_file_and_the_file_after_suggestions(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {lr: 0.2}\nloop: {epochs: 7}\n")
    suggested = {"optim": {"lr": 0.3, "momentum": 0.5}}
    layers = Layers(suggested, read_recipe(str(file))[0], ["loop.epochs=9"])
    loaded = assemble(Recipe, layers)[0]
    assert (loaded.optim.lr, loaded.optim.momentum, loaded.loop.epochs) == (0.2, 0.5, 9)
    assert load_recipe(str(file)).name == "mine"


def test_an_unknown_recipe_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='did you mean "quickstart"'):
        find_recipe("quickstrat")
    with pytest.raises(UserError, match="there is no such file"):
        find_recipe(str(tmp_path / "none.yaml"))


def test_a_runs_folder_is_named_after_the_recipe() -> None:
    assert load_recipe("quickstart").output_dir == Path("runs/quickstart")
    assert load_recipe("quickstart", ["loop.output_dir=/somewhere"]).output_dir == Path(
        "/somewhere"
    )


# Checked ------------------------------------------------------------------------------------


def sized(batch_size: int, accumulation: int = 1) -> Recipe:
    options = [f"data.batch_size={batch_size}", f"loop.accumulation={accumulation}"]
    return load_recipe(None, options)


@given(batch=st.integers(1, 300), accumulation=st.integers(1, 5), ranks=st.integers(1, 8))
def test_the_batch_divides_or_the_nearest_sizes_are_named(
    batch: int, accumulation: int, ranks: int
) -> None:
    parts = accumulation * ranks
    if batch % parts == 0:
        check_for(sized(batch, accumulation), ranks)
        return
    with pytest.raises(UserError) as caught:
        check_for(sized(batch, accumulation), ranks)
    named = str(caught.value).partition("nearest: ")[2].split(" or ")
    for size in map(int, named):
        assert abs(size - batch) < parts
        check_for(sized(size, accumulation), ranks)


def test_channels_must_agree() -> None:
    with pytest.raises(UserError, match=r"model\.in_channels=3 but data\.channels=1"):
        check(load_recipe(None, ["data.channels=1", "data.mean=[0.5]", "data.std=[0.5]"]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["loop.epochs=20", "optim.milestones=[10, 20, 30]"],
         "-o optim.milestones=[10, 20, 30]: a run of loop.epochs=20 ends before 20, 30"),
        (["loop.epochs=2", "optim.warmup_epochs=3"],
         "-o optim.warmup_epochs=3: the warm-up is longer than loop.epochs=2: "
         "optim.lr is never reached"),
        (["loop.epochs=2", "loop.eval_from=3"],
         "-o loop.eval_from=3: of loop.epochs=2 only the last is evaluated"),
        (["loop.max_skips=3"],
         "-o loop.max_skips=3: has no effect with loop.on_nonfinite=stop; "
         "it needs loop.on_nonfinite=skip or rollback"),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_meant_is_refused(options: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(None, options)
    assert str(caught.value) == said


def test_a_file_whose_epochs_are_cut_short_is_said() -> None:
    """Or nobody could try a recipe for an epoch, nor run a stored one again."""
    source, named = read_recipe("cifar/densenet_40_12")
    found, notes = assemble(Recipe, Layers(named, source, ["loop.epochs=160"]))
    (note,) = notes
    assert note.endswith("optim.milestones: a run of loop.epochs=160 ends before 225")
    assert ".yaml:" in note
    assert assemble(Recipe, Layers(named, source, ["loop.epochs=300"]))[1] == ()
    stored = read_yaml(Path("recipe.yaml"), to_yaml(found.model_dump(mode="json")))
    assert assemble(Recipe, Layers(named, stored))[0] == found
    assert assemble(Recipe, Layers(options=["loop.epochs=1"]))[1] == ()  # defaults never complain


def test_a_run_is_called_by_its_files_whole_name() -> None:
    names = ("pets.v1.yaml", "pets.v2.yml", "pets.v1", "pets")
    assert [name_of(Path(name)) for name in names] == ["pets.v1", "pets.v2", "pets.v1", "pets"]


def test_a_micro_batch_is_of_all_ranks() -> None:
    assert sized(60, 3).micro_batch_size == 20


# Compared -----------------------------------------------------------------------------------


def test_a_recipe_does_not_differ_from_itself() -> None:
    assert differences(load_recipe("quickstart"), load_recipe("quickstart")) == []


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("optim.lr=0.2", "optim.lr: 0.1 -> 0.2"),
        ("loop.seed=3", "loop.seed: 0 -> 3"),
        ("loop.threads=2", "loop.threads: None -> 2"),
        ("data.batch_size=32", "data.batch_size: 64 -> 32"),
        ("data.augment.flip=0.5", "data.augment.flip: 0.0 -> 0.5"),
        ("model.drop_rate=0.2", "model.drop_rate: 0.0 -> 0.2"),
        ("model.overrides.growth_rate=8", "model.overrides: "),
    ],
)
def test_what_changes_a_number_is_said(option: str, said: str) -> None:
    (found,) = differences(load_recipe("quickstart"), load_recipe("quickstart", [option]))
    assert found.startswith(said)


def fields(section: type[Section], prefix: str = "") -> list[str]:
    """Keys of what changes no number."""
    found = []
    for key, field in section.model_fields.items():
        extra = field.json_schema_extra or {}
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += fields(field.annotation, f"{prefix}{key}.")
        elif extra.get("changes_no_number"):  # type: ignore[union-attr]
            found.append(prefix + key)
    return found


def test_what_changes_no_number_is_this_and_no_more() -> None:
    """Anything else that a resumed run changed would make another run of it."""
    assert fields(Recipe) == [
        "data.root", "data.train", "data.val", "data.workers", "data.check_files",
        "data.on_bad_image", "data.max_bad_images", "data.cache", "data.cache_dir",
        "data.cache_gib", "data.max_pixels", "loop.output_dir", "loop.resume",
        "loop.save_every", "loop.keep", "loop.log_every", "loop.log_format",
        "loop.track", "loop.report", "loop.monitor", "loop.patience", "loop.threshold",
        "loop.accept_data_change", "loop.rank_timeout", "loop.on_nonfinite",
        "loop.max_skips",
    ]  # fmt: skip


# Stored -------------------------------------------------------------------------------------

FIRST = Path(__file__).with_name("first_recipe.yaml")
"""The recipe.yaml that the first version wrote of a run of quickstart."""


def test_what_the_first_version_stored_is_todays_recipe() -> None:
    """Keys have been renamed since, and others are new: each is what there was without it."""
    resolved = [
        "data.batch_size=2000", "data.shuffle_window=0", "model.num_classes=10",
        "model.op=reference", "loop.epochs=1", "loop.device=cpu", "loop.precision=bf16",
        "loop.memory_format=contiguous", "loop.cuda_graph=off",
    ]  # fmt: skip
    assert differences(stored_recipe(FIRST), load_recipe("quickstart", resolved)) == []
    other = load_recipe("quickstart", [*resolved, "data.shuffle_window=4", "loop.cuda_graph=on"])
    assert differences(stored_recipe(FIRST), other) == [
        "data.shuffle_window: 0 -> 4", "loop.cuda_graph: off -> on"
    ]  # fmt: skip
