"""Recipes: found by name, checked across sections, compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import Layers, Section, UserError, assemble
from densekit.training.recipe import Recipe, check, differences, find, load, read, shipped

# Found --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_loads_and_passes_its_checks(name: str) -> None:
    loaded = load(name)
    check(loaded, world_size=1)
    check(loaded, world_size=4)
    first = shipped()[name].read_text().partition("\n")[0]
    assert first.startswith("# "), "a recipe begins with what it is for"


def test_options_come_after_the_file_and_the_file_after_suggestions(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {lr: 0.2}\nloop: {epochs: 7}\n")
    suggested = {"optim": {"lr": 0.3, "momentum": 0.5}}
    layers = Layers(suggested, read(str(file))[0], ["loop.epochs=9"])
    loaded = assemble(Recipe, layers)[0]
    assert (loaded.optim.lr, loaded.optim.momentum, loaded.loop.epochs) == (0.2, 0.5, 9)
    assert load(str(file)).name == "mine"


def test_an_unknown_recipe_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='did you mean "quickstart"'):
        find("quickstrat")
    with pytest.raises(UserError, match="there is no such file"):
        find(str(tmp_path / "none.yaml"))


def test_a_runs_folder_is_named_after_the_recipe() -> None:
    assert load("quickstart").output_dir == Path("runs/quickstart")
    assert load("quickstart", ["loop.output_dir=/somewhere"]).output_dir == Path("/somewhere")


# Checked ------------------------------------------------------------------------------------


def sized(batch_size: int, accumulation: int = 1) -> Recipe:
    options = [f"data.batch_size={batch_size}", f"loop.accumulation={accumulation}"]
    return load(None, options)


@given(batch=st.integers(1, 300), accumulation=st.integers(1, 5), ranks=st.integers(1, 8))
def test_the_batch_divides_or_the_nearest_sizes_are_named(
    batch: int, accumulation: int, ranks: int
) -> None:
    parts = accumulation * ranks
    if batch % parts == 0:
        check(sized(batch, accumulation), ranks)
        return
    with pytest.raises(UserError) as caught:
        check(sized(batch, accumulation), ranks)
    named = str(caught.value).partition("nearest: ")[2].split(" or ")
    for size in map(int, named):
        assert abs(size - batch) < parts
        check(sized(size, accumulation), ranks)


def test_channels_must_agree() -> None:
    with pytest.raises(UserError, match=r"model\.in_channels=3 but data\.channels=1"):
        check(load(None, ["data.channels=1", "data.mean=[0.5]", "data.std=[0.5]"]), 1)


def test_a_micro_batch_is_of_all_ranks() -> None:
    assert sized(60, 3).micro_batch_size == 20


# Compared -----------------------------------------------------------------------------------


def test_a_recipe_does_not_differ_from_itself() -> None:
    assert differences(load("quickstart"), load("quickstart")) == []


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
    (found,) = differences(load("quickstart"), load("quickstart", [option]))
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
        "data.root", "data.workers", "data.check_files", "data.on_bad_image",
        "data.max_bad_images", "data.max_pixels", "loop.output_dir", "loop.resume",
        "loop.save_every", "loop.keep", "loop.log_every", "loop.log_format",
        "loop.rank_timeout", "loop.on_nonfinite", "loop.max_skips",
    ]  # fmt: skip
