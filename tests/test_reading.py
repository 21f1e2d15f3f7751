"""docs/reading.py counts what stands in a small package, as one would by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))

import reading  # noqa: E402 (docs/reading.py)

FILES = {
    "__init__.py": "",
    "cli.py": """
from small import report
from small.options import find_options

@app.command()
def train(config=None):
    from small.fit import fit as run
    from small.recipe import load
    recipe = load(config, find_options())
    report.say("hello")
    run(recipe)
    report.goodbye()
""",
    "options.py": """
def find_options():
    return {}
""",
    "report.py": """
def say(text): ...
def goodbye(): say("bye")
""",
    "recipe.py": """
class Recipe:
    lr: float = 0.1

def load(name, options) -> Recipe:
    return find(name)

def find(name):
    return Recipe()

def unused(): ...
""",
    "learner.py": """
from dataclasses import dataclass
import torch
from small.recipe import Recipe

@dataclass
class Learner:
    recipe: Recipe
    optimizer: torch.optim.Optimizer

def create(recipe: Recipe) -> Learner:
    return Learner(recipe, rates(recipe))

def rates(recipe: Recipe) -> torch.optim.Optimizer: ...
""",
    "fit.py": """
from small import learner as learners
from small.learner import Learner

class Run:
    def __init__(self, recipe):
        self.learner = learners.create(recipe)

    def go(self):
        for step in range(3):
            advance(self.learner, step)
        self.close()

    def close(self): ...

def fit(recipe):
    run = Run(recipe)
    run.go()

def advance(learner: Learner, step: int):
    for group in learner.optimizer.param_groups:
        group["lr"] = learner.recipe.lr * step
    learner.optimizer.step()
""",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def test_the_way_its_set_up_and_nothing_else_are_counted(package: Path) -> None:
    found = reading.measure(package)
    functions = {each["name"]: each["way"] for each in found["functions"]}
    assert functions == {
        "train": True,
        "find_options": False,
        "load": False,
        "find": False,
        "fit": True,
        "Run.__init__": False,
        "create": False,
        "rates": False,
        "Run.go": True,
        "advance": True,
    }
    assert found["files"] == 5  # not report.py
    assert found["lines"] == 7 + 2 + 2 + 2 + 3 + 2 + 2 + 1 + 4 + 4


def test_names_are_functions_methods_and_classes(package: Path) -> None:
    found = reading.measure(package)
    named = {name for each in found["functions"] for name in each["names"]}
    assert named == {
        "fit",
        "find_options",
        "load",
        "say",
        "goodbye",
        "find",
        "Recipe",
        "Run",
        "Run.go",
        "Run.close",
        "create",
        "Learner",
        "rates",
        "advance",
    }
    assert found["names"] == len(named)


def test_the_rate_is_found_where_it_is_set(package: Path) -> None:
    found = reading.measure(package)
    assert found["lr"] == 2
    assert found["sets lr"] == found["computes lr"] == ["fit.py"]


def test_this_package_has_a_way() -> None:
    found = reading.measure(ROOT / "src" / "densekit")
    assert {"train", "train_step"} <= {each["name"] for each in found["functions"]}
    assert found["sets lr"] == ["training/optim.py"]
