"""The rooms of src/densekit, what each is for, and which imports which, from the source itself.

python docs/rooms.py    prints both, as docs/architecture.md has them
"""

from __future__ import annotations

import ast
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src" / "densekit"
PURPOSES = {
    "api": "what a notebook calls: `create_model`, `load`, `train`, `list_models`",
    "bench": "`densekit bench`: speed and memory of the ops, measured in rounds",
    "cli": "the commands, a file each, beside what they print; exit codes",
    "config": "sections (the frozen base of all options), YAML, `-o` overrides, `UserError`",
    "data": "lists, folders and shards, image transforms, augmentation, mixing, the loader",
    "distributed": "processes: start, stop, rank, sums; which one failed and why",
    "explain": "what an answer rests on: maps over images, feature reuse",
    "files": "files that are whole or not there",
    "remote": "files in other places: S3, Google, Azure, https, the hub",
    "hub": "an artifact and its model card to Hugging Face's hub",
    "infer": "opens what commands take; evaluation, prediction, exact metrics",
    "models": "the DenseNet, which reads like the paper; the table of variants; the artifact",
    "native_code": "C++ that is compiled on this machine when it is first needed",
    "ops": "how dense blocks are computed: `reference`, `recompute`, `lean`; what `auto` takes",
    "paddleclas": "PaddleClas' YAML, `-o` and lists to a recipe; nothing else knows PaddleClas",
    "precision": "device, number format, memory format: one table, used by every command",
    "progress": "progress bars on the terminal",
    "export": "a network out of torch: files for other engines, int8, the gate that measures both",
    "report": "`evaluate --report` and `compare`: a page, figures, every answer, paired tests",
    "serve": "`densekit serve`: HTTP, dynamic batches, limits, metrics, KServe's protocol, page",
    "score": "`predict --out`: millions of images in parts, on this machine or Ray; resumes",
    "stop": "SIGTERM and Ctrl-C as a question, for what keeps what is done",
    "training": "recipe, set-up, loop, step, learning rate, states, log, the run's folder",
    "weights": "other libraries' weights: found, read, mapped, converted; whole or refused",
}


def room_of(file: Path) -> str:
    return file.relative_to(SRC).with_suffix("").parts[0]


def imports() -> dict[str, set[str]]:
    """Room -> the rooms that its files import, inside functions too."""
    found: dict[str, set[str]] = {}
    for file in sorted(SRC.rglob("*.py")):
        room = room_of(file)
        if room in ("__init__", "__main__"):
            continue
        named = found.setdefault(room, set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules: list[str] = []
            if isinstance(node, ast.ImportFrom) and node.module == SRC.name:
                modules = [f"{SRC.name}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            parts = [module.split(".") for module in modules]
            named |= {p[1] for p in parts if p[0] == SRC.name and len(p) > 1}
        named.discard(room)
    return {room: named & found.keys() for room, named in found.items()}


def table() -> str:
    """A line for each room, those that import nothing of ours first."""
    used = imports()
    lines = ["| Room | What it is for | Imports |", "|---|---|---|"]
    for room in in_order(used):
        others = ", ".join(sorted(used[room] - {"config"})) or "-"
        lines.append(f"| `{room}` | {PURPOSES[room]} | {others} |")
    return "\n".join(lines) + "\n"


def in_order(used: dict[str, set[str]]) -> list[str]:
    """Every room after those that it imports. Raises ValueError for a circle."""
    order: list[str] = []
    while len(order) < len(used):
        ready = sorted(r for r in used if r not in order and used[r] <= set(order))
        if not ready:
            raise ValueError(f"imports in a circle among {sorted(set(used) - set(order))}")
        order += ready
    return order


def picture() -> str:
    """A Mermaid graph. `config` is left out, which all import, and so is an arrow from a room to
    one that it reaches by other arrows as well."""
    used = {room: others - {"config"} for room, others in imports().items() if room != "config"}
    reached: dict[str, set[str]] = {}
    for room in in_order(used):
        reached[room] = used[room].union(*(reached[other] for other in used[room]))
    lines = ["```mermaid", "graph TD"]
    for room in reversed(in_order(used)):
        beyond = set().union(*(reached[other] for other in used[room]))
        lines += [f"  {room} --> {other}" for other in sorted(used[room] - beyond)]
    return "\n".join([*lines, "```", ""])


if __name__ == "__main__":
    print(table())
    print(picture())
