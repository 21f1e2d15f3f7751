"""Options without effect: refused where the user set them, silent where they are defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest

from densekit.config import (
    OFF,
    ON,
    ConfigSource,
    Section,
    UserError,
    build_effective,
    merge,
    override,
    read_yaml,
    to_yaml,
    when,
)


class Optim(Section):
    name: Literal["sgd", "adamw", "rmsprop"] = "sgd"
    momentum: Annotated[float, when(name="sgd"), when(name="rmsprop")] = 0.9
    schedule: Literal["step", "cosine"] = "step"
    values: Annotated[tuple[float, ...], when(schedule="step")] = ()
    gamma: Annotated[float, when(schedule="step", values=OFF)] = 0.1
    warmup: float = 0.0
    warmup_start: Annotated[float, when(warmup=ON)] = 0.0


class Whole(Section):
    optim: Optim = Optim()


def built(text: str = "", options: tuple[str, ...] = (), suggested: dict | None = None) -> Optim:
    file = read_yaml(Path("r.yaml"), text)
    tree = merge(merge(Whole().model_dump(), suggested or {}), file.tree)
    return build_effective(
        Whole, override(ConfigSource(tree, file.places), options), file.tree
    ).optim


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["optim.name=adamw", "optim.momentum=0.8"],
         "-o optim.momentum=0.8: has no effect with optim.name=adamw; "
         "it needs optim.name=sgd, or optim.name=rmsprop"),
        (["optim.gamma=0.5", "optim.schedule=cosine"],
         "-o optim.gamma=0.5: has no effect with optim.schedule=cosine; "
         "it needs optim.schedule=step and no optim.values"),
        (["optim.gamma=0.5", "optim.values=[1, 0.1]"],
         "-o optim.gamma=0.5: has no effect with optim.values=[1.0, 0.1]; "
         "it needs optim.schedule=step and no optim.values"),
        (["optim.warmup_start=0.5"],
         "-o optim.warmup_start=0.5: has no effect with optim.warmup=0.0; it needs optim.warmup"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused(options: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        built(options=tuple(options))
    assert str(caught.value) == said


def test_all_of_them_are_shown_with_their_places() -> None:
    with pytest.raises(UserError) as caught:
        built("optim:\n  schedule: cosine\n  gamma: 0.5\n", ("optim.warmup_start=0.5",))
    first, second = str(caught.value).splitlines()
    assert first.startswith("r.yaml:3: optim.gamma: has no effect with optim.schedule=cosine")
    assert second.startswith("-o optim.warmup_start=0.5: ")


def test_an_option_that_has_its_effect_passes() -> None:
    assert built(options=("optim.name=rmsprop", "optim.momentum=0.5")).momentum == 0.5
    assert built("optim: {warmup: 5, warmup_start: 0.1}").warmup_start == 0.1


def test_what_a_later_layer_makes_idle_goes_back_to_its_default() -> None:
    file = "optim: {gamma: 0.5, values: []}\n"
    assert built(file, ("optim.schedule=cosine",)).gamma == 0.1
    assert built(file, suggested={"optim": {"warmup_start": 0.5}}).warmup_start == 0.0


def test_an_earlier_layer_is_no_excuse() -> None:
    with pytest.raises(UserError, match=r"-o optim\.gamma=0\.5: has no effect"):
        built("optim: {schedule: cosine}", ("optim.gamma=0.5",))


def test_a_stored_file_with_every_default_passes() -> None:
    """A run's recipe.yaml holds all options, of which most are defaults without effect."""
    for options in ((), ("optim.name=adamw", "optim.schedule=cosine"), ("optim.values=[1, 2]",)):
        first = built(options=options)
        stored = to_yaml({"optim": first.model_dump(mode="json")})
        assert built(stored) == first
        assert built(options=("optim.momentum=0.9", "optim.name=adamw")).momentum == 0.9
