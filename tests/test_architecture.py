"""The house: which room may import which, how long a file may be, what has no place here."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import densekit

ROOT = Path(densekit.__file__).parent
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))

import reading  # noqa: E402 (docs/reading.py)

# A room imports only rooms that stand above it in this table, and of those the ones it names.
# `config` (the sections' base, UserError) is open to all.
ROOMS = {
    "config": "",
    "files": "",
    "remote": "",
    "precision": "",
    "distributed": "",
    "stop": "",
    "progress": "distributed",
    "native_code": "files progress",
    "ops": "native_code progress",
    "data": "files remote native_code distributed progress",
    "models": "ops data files",
    "weights": "models data files",
    "infer": "weights models data files remote precision distributed progress",
    "hub": "models",
    "explain": "infer models data files",
    "export": "infer models data files precision progress",
    "score": "infer models data files precision distributed progress stop",
    "training": "infer weights models data ops files precision distributed progress stop",
    "report": "training explain infer models data files precision distributed progress",
    "serve": "explain infer models data precision distributed progress",
    "paddleclas": "training infer weights models data distributed",
    "bench": "training models data ops precision distributed progress",
    "cli": "serve report explain hub score export training infer bench weights models data "
    "paddleclas precision distributed progress",
    "api": "report training infer weights models paddleclas data distributed",
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
    outside = [f for f in modules() if f.parent.name != "cli"]
    found = {f.name for f in outside if any(room_of(m) == "cli" for m in imports(f))}
    assert found == {"__main__.py"}


def test_no_file_is_a_drawer() -> None:
    assert not {f.stem for f in modules()} & {"utils", "helpers", "common", "misc"}


def top_names(file: Path) -> set[str]:
    """Public names that a module gives to something of its own; a type variable has none."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("_") and len(name) > 1}


# A function that each kernel library has; what a command, the API and the loop do alike.
SAME_MEANING = {
    "dense_block",
    "norm_relu",
    "train",
    "evaluate",
    "convert",
    "batch_sums",
    "summary",
    "report",
    "resampled",
}
KERNELS = ROOT / "ops/lean/kernels"  # the same functions several times


def test_a_name_has_one_meaning_in_the_package() -> None:
    seen: dict[str, Path] = {}
    for file in modules():
        for name in top_names(file) - SAME_MEANING:
            other = seen.setdefault(name, file)
            if not all(KERNELS in each.parents for each in (file, other)):
                assert other == file, f"{name}: {other.relative_to(ROOT)}, {file.relative_to(ROOT)}"


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
    tree = ast.parse((ROOT / "training" / "step.py").read_text(encoding="utf-8"))
    step = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train_step")
    body = step.body[1:]  # without the docstring
    assert body[-1].end_lineno - body[0].lineno + 1 <= 40  # type: ignore[operator]


def test_the_way_to_the_optimizer_gets_no_longer() -> None:
    """What one reads from the command to `optimizer.step`, by docs/reading.py's rules.

    Before the package had rooms it was 12 files, 740 lines and 166 names.
    """
    found = reading.measure(ROOT)
    assert found["files"] <= 6
    assert found["lines"] <= 320
    assert found["names"] <= 60


def test_one_module_computes_and_sets_the_learning_rate() -> None:
    found = reading.measure(ROOT)
    assert found["computes lr"] == found["sets lr"] == ["training/optim.py"]
