"""The house: which room may import which, how long a file may be, what has no place here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import densekit

ROOT = Path(densekit.__file__).parent

# A room imports only rooms that stand above it in this table, and of those the ones it names.
# `config` (the sections' base, UserError) is open to all.
ROOMS = {
    "config": "",
    "files": "",
    "peers": "",
    "signals": "",
    "options": "",
    "metrics": "",
    "curves": "files",
    "ops": "files",
    "precision": "",
    "optim": "",
    "distributed": "peers",
    "display": "distributed",
    "models": "ops",
    "data": "distributed display",
    "checkpoint": "files",
    "loop": "precision distributed metrics",
    "monitor": "loop distributed",
    "recipe": "models data optim loop",
    "bench": "models ops data loop precision optim",
    "turns": "bench precision",
    "bench_ops": "bench turns recipe models ops precision distributed display",
    "artifact": "models data files",
    "engines": "artifact models precision",
    "weights": "models artifact data files",
    "source": "recipe weights artifact models data",
    "paddleclas": "recipe models data source",
    "evaluate": "source engines data metrics distributed precision display",
    "predict": "source engines data precision",
    "run_folder": "recipe checkpoint files",
    "plan": "recipe data models ops precision distributed display",
    "learner": "plan loop optim checkpoint weights models data distributed",
    "nonfinite": "monitor data distributed files",
    "run": "plan learner loop monitor nonfinite run_folder checkpoint artifact evaluate curves "
    "display signals data optim distributed",
    "train": "recipe plan run run_folder checkpoint signals precision distributed",
    "report": "train plan recipe models optim precision distributed bench_ops",
    "inputs": "recipe paddleclas source data distributed",
    "api": "train predict inputs models weights distributed",
    "cli": "options report bench_ops train evaluate predict inputs source weights plan recipe "
    "paddleclas data precision display distributed peers",
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room_of(module: str) -> str:
    return module.split(".")[0]


def imports(file: Path) -> set[str]:
    """Our own modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "densekit":
            inside = (node.module or "").removeprefix("densekit").lstrip(".")
            found |= {inside} if inside else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            ours = (alias.name for alias in node.names if alias.name.startswith("densekit."))
            found |= {name.removeprefix("densekit.") for name in ours}
    return found


def test_the_table_lists_every_room_and_has_no_cycle() -> None:
    rooms = {room_of(".".join(f.relative_to(ROOT).with_suffix("").parts)) for f in modules()}
    assert rooms - {"__init__", "__main__"} == set(ROOMS)
    above: set[str] = set()
    for room, allowed in ROOMS.items():
        assert set(allowed.split()) <= above, room
        above.add(room)


@pytest.mark.parametrize("file", modules(), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_run_one_way(file: Path) -> None:
    room = room_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
    if room in ("__init__", "__main__"):
        return
    allowed = {room, "config", *ROOMS[room].split()}
    assert {room_of(module) for module in imports(file)} <= allowed


def test_nothing_imports_the_command_line() -> None:
    assert [f.name for f in modules() if "cli" in imports(f)] == ["__main__.py"]


@pytest.mark.parametrize("file", modules(), ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_is_one_idea(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 330
    assert file.stem not in ("utils", "helpers", "common", "misc")


def test_nothing_is_evaluated_and_nothing_registered() -> None:
    for file in modules():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        calls = {
            n.func.id
            for n in ast.walk(tree)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        assert not calls & {"eval", "exec", "compile", "__import__"}, file


def test_a_step_fits_on_a_screen() -> None:
    tree = ast.parse((ROOT / "loop.py").read_text(encoding="utf-8"))
    step = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train_step")
    body = step.body[1:]  # without the docstring
    assert body[-1].end_lineno - body[0].lineno + 1 <= 40  # type: ignore[operator]
