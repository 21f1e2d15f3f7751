"""What one reads to follow `densekit train` from the command to `optimizer.step`.

python docs/reading.py                           the functions in reading order, and four counts
python docs/reading.py --names                   with the names that each is the first to mention
python docs/reading.py --json                    the same for a program
python docs/reading.py --src OTHER/src/densekit  of another tree

Counted from the source text alone (the syntax tree; nothing is imported), by these rules:

- The way: every function on a call path from the function of the `train` command to the one that
  calls `optimizer.step()` or `scaler.step(optimizer)`. An `if` that ends in `return` or `raise`,
  such as that of a dry run, is a side exit: no path goes through it.
- The set-up: functions that a function of the way calls before it calls the next one of the way,
  and whatever those call in turn, as far as they
  - stand in the same file as their caller, or
  - are called for a value by the command's own function: what opens the recipe, or
  - make what the step is given: they return, or are the constructor of, a class that the step's
    function takes as an argument, a class that one of those is a field of or that holds one, or an
    optimizer.
- A function counts whole, from `def` to its end, docstring included. Lines are theirs; files are
  those that they stand in.
- Names: the different functions, methods and classes of the package that these functions mention.
  Fields, constants, modules and local variables are not counted.
- lr: the files in which `lr` is a name, a word of one (`set_lr`) or a key (`line["lr"]`).

A call is followed through imports and aliases, `self`, and variables, parameters and fields whose
class an annotation, a constructor or a return annotation tells; a function that is only handed on
counts as called. What is behind a registry, a string or a library's callback is not seen.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resolve import Class, Function, Instance, Package, Scope, Variable

ROOT = Path(__file__).resolve().parent.parent
CONSTRUCTING = ("__init__", "__post_init__", "__enter__", "__exit__")
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
Named = Function | Class


@dataclass(eq=False)
class Walk:
    """The first-party calls from the command on."""

    package: Package
    calls: dict[Function, list[Function]] = field(default_factory=dict)
    """In the order of the text."""
    onward: dict[Function, list[Function]] = field(default_factory=dict)
    """The same without what stands in side exits."""
    names: dict[Function, list[Named]] = field(default_factory=dict)
    asked: set[Function] = field(default_factory=set)
    """Those that the command's function calls for a value."""

    def start(self, function: Function) -> None:
        self.asked = called_for_a_value(self.package, function)
        todo = [function]
        while todo:
            each = todo.pop()
            if each not in self.calls:
                found = mentions(self.package, each)
                self.names[each] = [name for _, name in found]
                self.calls[each] = called_functions(self.package, self.names[each])
                exits = side_exits(each)
                onward = [name for line, name in found if line not in exits]
                self.onward[each] = called_functions(self.package, onward)
                todo += self.calls[each]

    def way(self, start: Function) -> set[Function]:
        """Those between `start` and the optimizer's step."""
        leads = {each for each in self.calls if steps_the_optimizer(each)}
        while more := {each for each in self.calls if leads & set(self.onward[each])} - leads:
            leads |= more
        way, todo = set(), [start]
        while todo:
            each = todo.pop()
            if each in leads and each not in way:
                way.add(each)
                todo += self.onward[each]
        return way

    def set_up(self, start: Function, way: set[Function]) -> set[Function]:
        """What the way calls before it goes on, as far as the step needs it; see above."""
        needed = needed_classes(self.package, {each for each in way if steps_the_optimizer(each)})
        found: set[Function] = set()
        todo = list(way)
        while todo:
            caller = todo.pop()
            callees = self.calls[caller]
            if caller in way:
                callees = self.onward[caller]
                ahead = [i for i, callee in enumerate(callees) if callee in way]
                callees = callees[: ahead[0]] if ahead else callees
            for callee in callees:
                if callee in way or callee in found:
                    continue
                asked = caller is start and callee in self.asked
                if asked or callee.module is caller.module or makes(self.package, callee, needed):
                    found.add(callee)
                    todo.append(callee)
        return found

    def order(self, start: Function, read: set[Function]) -> list[tuple[int, Function]]:
        """Depth and function, as a reader meets them."""
        met: dict[Function, int] = {}

        def visit(function: Function, depth: int) -> None:
            if function in read and function not in met:
                met[function] = depth
                for callee in self.calls[function]:
                    visit(callee, depth + 1)

        visit(start, 0)
        return [(depth, function) for function, depth in met.items()]


def called_for_a_value(package: Package, function: Function) -> set[Function]:
    """Not as a statement of its own, nor by `with`."""
    scope = package.scope(function.module, function)
    aside: set[ast.AST] = set()
    for node in ast.walk(function.node):
        if isinstance(node, ast.Expr):
            aside.add(node.value)
        elif isinstance(node, ast.withitem):
            aside.add(node.context_expr)
    calls = [n for n in ast.walk(function.node) if isinstance(n, ast.Call) and n not in aside]
    found = (scope.look_up(call.func) for call in calls)
    return {thing for thing in found if isinstance(thing, Function)}


def side_exits(function: Function) -> set[int]:
    """The lines of each `if` that ends in `return` or `raise`: there the way does not go on."""
    return {
        line
        for node in ast.walk(function.node)
        if isinstance(node, ast.If) and isinstance(node.body[-1], (ast.Return, ast.Raise))
        for line in range(node.body[0].lineno, (node.body[-1].end_lineno or 0) + 1)
    }


def mentions(package: Package, function: Function) -> list[tuple[int, Named]]:
    """The functions, methods and classes of the package that the text names, with the line."""
    scope = package.scope(function.module, function)
    found: list[tuple[int, int, Named]] = []
    for node in ast.walk(function.node):
        if not isinstance(node, (ast.Name, ast.Attribute)):
            continue
        if isinstance(node, ast.Name) and scope.is_variable(node.id):
            continue
        thing = scope.look_up(node)
        if isinstance(thing, (Function, Class)) and thing is not function:
            found.append((node.end_lineno or 0, node.end_col_offset or 0, thing))
    return [(line, thing) for line, _, thing in sorted(found, key=lambda each: each[:2])]


def called_functions(package: Package, names: Iterable[Named]) -> list[Function]:
    """A class stands for what constructing it, and a `with` around it, calls."""
    found: list[Function] = []
    for thing in names:
        if isinstance(thing, Function):
            found.append(thing)
        else:
            members = (package.member(thing, name) for name in CONSTRUCTING)
            found += [each for each in members if isinstance(each, Function)]
    return list(dict.fromkeys(found))


def steps_the_optimizer(function: Function) -> bool:
    """`optimizer.step()`, `x.optimizer.step()`, `scaler.step(x.optimizer)`."""
    for node in ast.walk(function.node):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "step"
        ):
            texts = map(ast.unparse, [node.func.value, *node.args])
            if any(text.split(".")[-1] == "optimizer" for text in texts):
                return True
    return False


def needed_classes(package: Package, steps: set[Function]) -> set[Class]:
    """Those of the step's arguments, of their fields, and those that hold one of these."""
    everything = package.classes()
    holds = {each: field_classes(package, each) for each in everything}
    needed: set[Class] = set()
    for step in steps:
        scope = package.scope(step.module)
        for argument in step.arguments:
            needed |= classes_in(scope, argument.annotation)
    while more := {held for each in needed for held in holds.get(each, ())} - needed:
        needed |= more
    while more := {each for each in everything if holds[each] & needed} - needed:
        needed |= more
    return needed


def field_classes(package: Package, owner: Class) -> set[Class]:
    found: set[Class] = set()
    for member in owner.members.values():
        if isinstance(member, Variable):
            scope = package.scope(owner.module, member.within)
            found |= classes_in(scope, member.annotation)
            content = scope.assigned(None, member.value, member.place)
            if isinstance(content, Instance):
                found.add(content.of)
    return found


def classes_in(scope: Scope, annotation: ast.expr | None) -> set[Class]:
    if annotation is None:
        return set()
    nodes = [n for n in ast.walk(annotation) if isinstance(n, (ast.Name, ast.Attribute))]
    return {found for node in nodes if isinstance(found := scope.look_up(node), Class)}


def makes(package: Package, function: Function, needed: set[Class]) -> bool:
    if function.name in CONSTRUCTING:
        return function.owner in needed
    returns = function.node.returns
    scope = package.scope(function.module)
    return returns is not None and (
        bool(classes_in(scope, returns) & needed) or "Optimizer" in ast.unparse(returns)
    )


def train_command(package: Package) -> Function:
    for module in package.modules.values():
        for thing in module.names.values():
            if isinstance(thing, Function) and thing.name == "train":
                decorators = [ast.unparse(each) for each in thing.node.decorator_list]
                if any("command" in each for each in decorators) or "cli" in module.name:
                    return thing
    raise SystemExit(f"{package.folder}: no function named train is decorated as a command")


# The learning rate --------------------------------------------------------------------------


def rate_places(package: Package) -> dict[str, dict[str, list[int]]]:
    """Of each file in which `lr` is a name: the lines that compute it, set it, and name it."""
    found: dict[str, dict[str, list[int]]] = {}
    for module in package.modules.values():
        uses: dict[str, set[int]] = {"computes": set(), "sets": set(), "names": set()}
        for node in ast.walk(module.tree):
            if is_rate(node):
                uses["names"].add(getattr(node, "lineno", 0))
            if isinstance(node, (ast.Assign, ast.AugAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(map(sets_rate, targets)):
                    uses["sets"].add(node.lineno)
            if isinstance(node, ast.BinOp) and isinstance(node.op, ARITHMETIC):
                parts = [node.left, node.right]
                uses["computes"].update(node.lineno for each in parts if is_rate(each))
        if any(uses.values()):
            name = package.place(module)
            found[name] = {use: sorted(lines) for use, lines in uses.items()}
    return found


def is_rate(node: ast.AST) -> bool:
    """`lr`, `x.lr`, `lr=`, `x["lr"]`, and names with that word in them, such as `set_lr`."""
    if isinstance(node, ast.Constant):
        return node.value == "lr"
    kinds = {ast.Name: "id", ast.Attribute: "attr", ast.FunctionDef: "name"}
    name = getattr(node, kinds.get(type(node), "arg"), None)
    return isinstance(name, str) and "lr" in name.split("_")


def sets_rate(target: ast.expr) -> bool:
    """`group["lr"] = ...`: how a rate gets into an optimizer."""
    return (
        isinstance(target, ast.Subscript)
        and isinstance(target.slice, ast.Constant)
        and target.slice.value == "lr"
    )


# What is printed ----------------------------------------------------------------------------


def measure(folder: Path) -> dict[str, Any]:
    """The counts and the functions, in reading order."""
    package = Package(folder)
    start = train_command(package)
    walk = Walk(package)
    walk.start(start)
    way = walk.way(start)
    if start not in way:
        raise SystemExit(f"{folder}: no way from the train command to optimizer.step was found")
    read = way | walk.set_up(start, way)
    rates = rate_places(package)
    return {
        "files": len({each.module.file for each in read}),
        "lines": sum(each.lines for each in read),
        "names": len({id(name) for each in read for name in walk.names[each]}),
        "lr": sum(bool(uses["names"]) for uses in rates.values()),
        "computes lr": [file for file, uses in rates.items() if uses["computes"]],
        "sets lr": [file for file, uses in rates.items() if uses["sets"]],
        "functions": [
            {
                "place": f"{package.place(each.module)}:{each.node.lineno}",
                "name": each.title,
                "lines": each.lines,
                "depth": depth,
                "way": each in way,
                "names": sorted({name.title for name in walk.names[each]}),
            }
            for depth, each in walk.order(start, read)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--src", type=Path, default=ROOT / "src" / "densekit")
    parser.add_argument("--names", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.src.resolve())
    if options.json:
        print(json.dumps(found, indent=1))
        return
    known: set[str] = set()
    for each in found["functions"]:
        mark = "*" if each["way"] else " "
        name = "  " * each["depth"] + each["name"]
        print(f"{each['lines']:4} {mark} {name:44} {each['place']}")
        new = [title for title in each["names"] if title not in known]
        known.update(new)
        if options.names and new:
            print(f"{'':7}{'  ' * each['depth']}{len(new)}: {', '.join(new)}")
    print("(* on the way itself, the rest its set-up)\n")
    print(
        f"{found['files']} files, {found['lines']} lines, {found['names']} names; "
        f"lr is a name in {found['lr']} files\n"
        f"computed in {', '.join(found['computes lr'])}; set in {', '.join(found['sets lr'])}"
    )


if __name__ == "__main__":
    main()
