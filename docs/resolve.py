"""What the names in a package's source stand for, from its syntax trees: nothing is imported.

Good enough for typed code without tricks: imports and aliases, `self`, and variables, parameters
and fields whose class an annotation, a constructor or a return annotation tells. What it cannot
tell is None. A container stands for what it holds: `list[Batch]` is looked at as `Batch`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HANDS_ON = ("next", "iter", "list", "tuple", "sorted", "reversed", "enumerate", "zip")


@dataclass(eq=False)
class Module:
    name: str
    file: Path
    tree: ast.Module
    names: dict[str, Thing] = field(default_factory=dict)


@dataclass(eq=False)
class Function:
    name: str
    module: Module
    node: ast.FunctionDef
    owner: Class | None = None
    """The class, of a method."""

    @property
    def title(self) -> str:
        return f"{self.owner.name}.{self.name}" if self.owner else self.name

    @property
    def lines(self) -> int:
        assert self.node.end_lineno is not None
        return self.node.end_lineno - self.node.lineno + 1

    @property
    def is_property(self) -> bool:
        return any("property" in ast.unparse(each) for each in self.node.decorator_list)

    @property
    def arguments(self) -> list[ast.arg]:
        found = self.node.args
        return [*found.posonlyargs, *found.args, *found.kwonlyargs]


@dataclass(eq=False)
class Class:
    name: str
    module: Module
    node: ast.ClassDef
    members: dict[str, Function | Variable] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.name


@dataclass(eq=False)
class Variable:
    """A module's constant, or a field of a class."""

    name: str
    module: Module
    annotation: ast.expr | None = None
    value: ast.expr | None = None
    place: int | None = None
    """In `value`, which is a tuple."""
    within: Function | None = None
    """The method that assigns a field."""


@dataclass(frozen=True)
class Import:
    module: str
    name: str | None


@dataclass(frozen=True)
class Instance:
    of: Class


@dataclass(frozen=True)
class Several:
    """A tuple's things."""

    items: tuple[Thing, ...]


# What a name can stand for.
Thing = Module | Function | Class | Variable | Import | Instance | Several | None


def first(things: Iterable[Thing]) -> Thing:
    """The first that is known."""
    return next((thing for thing in things if thing is not None), None)


class Package:
    """The modules below a folder, and what each defines."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.modules: dict[str, Module] = {}
        self._contents: dict[Variable, Thing] = {}
        self._scopes: dict[Module | Function, Scope] = {}
        for file in sorted(folder.rglob("*.py")):
            parts = list(file.relative_to(folder.parent).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            tree = ast.parse(file.read_text(encoding="utf-8"))
            self.modules[name] = module = Module(name, file, tree)
            for node in _statements(tree.body):
                self._define(module, node)

    def place(self, module: Module) -> str:
        return module.file.relative_to(self.folder).as_posix()

    def classes(self) -> list[Class]:
        things = (thing for module in self.modules.values() for thing in module.names.values())
        return [thing for thing in things if isinstance(thing, Class)]

    def _define(self, module: Module, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef):
            module.names[node.name] = Function(node.name, module, node)
        elif isinstance(node, ast.ClassDef):
            module.names[node.name] = _define_class(module, node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module.names.update(self.imports(node))
        else:
            for target, annotation, value, place in _assignments(node):
                if isinstance(target, ast.Name):
                    variable = Variable(target.id, module, annotation, value, place)
                    module.names.setdefault(target.id, variable)

    def imports(self, node: ast.Import | ast.ImportFrom) -> dict[str, Thing]:
        """The package's own among what the statement imports."""
        if isinstance(node, ast.Import):
            return {
                alias.asname or self.name: Import(alias.name if alias.asname else self.name, None)
                for alias in node.names
                if alias.name.split(".")[0] == self.name
            }
        module = node.module or ""
        if module.split(".")[0] != self.name:
            return {}
        return {alias.asname or alias.name: Import(module, alias.name) for alias in node.names}

    def follow(self, thing: Thing) -> Thing:
        """What an import names."""
        while isinstance(thing, Import):
            module = self.modules.get(thing.module)
            if thing.name is None or module is None:
                return module
            named = module.names.get(thing.name)
            if named is None or named == thing:  # `from package import part`, in package itself
                return self.modules.get(f"{thing.module}.{thing.name}")
            thing = named
        return thing

    def scope(self, module: Module, function: Function | None = None) -> Scope:
        key = function or module
        if key not in self._scopes:
            self._scopes[key] = Scope(self, module, function)
        return self._scopes[key]

    def content(self, variable: Variable) -> Thing:
        """What the variable holds."""
        if variable not in self._contents:
            self._contents[variable] = None  # while it is looked for
            scope = self.scope(variable.module, variable.within)
            found = scope.assigned(variable.annotation, variable.value, variable.place)
            self._contents[variable] = found
        return self._contents[variable]

    def member(self, owner: Class, name: str) -> Function | Variable | None:
        if name in owner.members:
            return owner.members[name]
        for base in owner.node.bases:
            found = self.scope(owner.module).look_up(base)
            if isinstance(found, Class) and (inherited := self.member(found, name)):
                return inherited
        return None


def _define_class(module: Module, node: ast.ClassDef) -> Class:
    made = Class(node.name, module, node)
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            made.members[item.name] = Function(item.name, module, item, made)
        for target, annotation, value, place in _assignments(item):
            if isinstance(target, ast.Name):
                made.members[target.id] = Variable(target.id, module, annotation, value, place)
    for method in [each for each in made.members.values() if isinstance(each, Function)]:
        for within in _in_order(method.node):
            for target, annotation, value, place in _assignments(within):
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    variable = Variable(target.attr, module, annotation, value, place, method)
                    made.members.setdefault(target.attr, variable)
    return made


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Also those below `if` and `try`."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            yield from _statements(node.body + node.orelse)


def _in_order(node: ast.AST) -> list[ast.AST]:
    found = [each for each in ast.walk(node) if hasattr(each, "lineno")]
    return sorted(found, key=lambda each: (each.lineno, each.col_offset))  # type: ignore[attr-defined]


Assignment = tuple[ast.expr, ast.expr | None, ast.expr | None, int | None]


def _assignments(node: ast.AST) -> list[Assignment]:
    """(target, annotation, value, place in the value where the target takes only a part)."""
    if isinstance(node, ast.AnnAssign):
        return [(node.target, node.annotation, node.value, None)]
    if isinstance(node, ast.Assign):
        return [found for target in node.targets for found in _unpacked(target, node.value)]
    if isinstance(node, ast.NamedExpr):
        return _unpacked(node.target, node.value)
    if isinstance(node, ast.For):
        return _unpacked(node.target, node.iter)
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        return [f for each in node.generators for f in _unpacked(each.target, each.iter)]
    if isinstance(node, ast.With):
        return [
            found
            for item in node.items
            if item.optional_vars is not None
            for found in _unpacked(item.optional_vars, item.context_expr)
        ]
    return []


def _unpacked(target: ast.expr, value: ast.expr) -> list[Assignment]:
    if not isinstance(target, ast.Tuple):
        return [(target, None, value, None)]
    if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
        pairs = zip(target.elts, value.elts, strict=True)
        return [found for one, other in pairs for found in _unpacked(one, other)]
    return [(one, None, value, place) for place, one in enumerate(target.elts)]


class Scope:
    """The names that a module's top level, or one of its functions, sees."""

    def __init__(self, package: Package, module: Module, function: Function | None = None) -> None:
        self.package, self.module = package, module
        self.local: dict[str, Thing] = {}
        self.assignments: dict[str, list[Assignment]] = {}
        """Of the names that are not in `local` yet."""
        if function is not None:
            self._bind(function)

    def is_variable(self, name: str) -> bool:
        """A function's own name, not one that it imports."""
        if name in self.assignments:
            return True
        return name in self.local and not isinstance(self.local[name], Import)

    def _bind(self, function: Function) -> None:
        for item in _in_order(function.node):
            if isinstance(item, (ast.Import, ast.ImportFrom)):
                self.local.update(self.package.imports(item))
            elif isinstance(item, ast.arg):
                name = ast.Name(item.arg)
                self.assignments.setdefault(item.arg, []).append(
                    (name, item.annotation, None, None)
                )
            elif isinstance(item, ast.FunctionDef) and item is not function.node:
                self.local[item.name] = None
            elif isinstance(item, ast.ExceptHandler) and item.name and item.type:
                caught = self.look_up(item.type)
                self.local[item.name] = Instance(caught) if isinstance(caught, Class) else None
            for found in _assignments(item):
                if isinstance(found[0], ast.Name):
                    self.assignments.setdefault(found[0].id, []).append(found)
        if function.owner and function.arguments:
            self.local[function.arguments[0].arg] = Instance(function.owner)

    def _local(self, name: str) -> Thing:
        if name not in self.local:
            self.local[name] = None  # while it is looked for, as in `x = x.next`
            found = (self.assigned(*each[1:]) for each in self.assignments[name])
            self.local[name] = first(found)
        return self.local[name]

    def assigned(
        self, annotation: ast.expr | None, value: ast.expr | None, place: int | None
    ) -> Thing:
        found = self.annotated(annotation) or self.value(self.look_up(value))
        if place is None:
            return found
        if isinstance(found, Several) and place < len(found.items):
            return found.items[place]
        return None

    def annotated(self, node: ast.expr | None) -> Thing:
        """What a name with this annotation stands for."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.annotated(ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.BinOp):
            return self.annotated(node.left) or self.annotated(node.right)
        if isinstance(node, ast.Subscript):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            found = [self.annotated(part) for part in parts]
            is_tuple = ast.unparse(node.value) == "tuple" and "..." not in ast.unparse(node.slice)
            return Several(tuple(found)) if is_tuple else first(found)
        if not isinstance(node, (ast.Name, ast.Attribute)):
            return None
        named = self.look_up(node)
        if isinstance(named, Variable):  # an alias of a type
            return self.package.scope(named.module).annotated(named.value)
        return Instance(named) if isinstance(named, Class) else None

    def look_up(self, node: ast.AST | None) -> Thing:
        """What an expression names, or the class of its value."""
        if isinstance(node, ast.Name):
            if node.id in self.local or node.id in self.assignments:
                return self.package.follow(self._local(node.id))
            return self.package.follow(self.module.names.get(node.id))
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Subscript):
            found = self.value(self.look_up(node.value))
            if isinstance(found, Several) and isinstance(node.slice, ast.Constant):
                place = node.slice.value
                return found.items[place] if place in range(len(found.items)) else None  # type: ignore[index]
            return found
        if isinstance(node, ast.IfExp):
            return self._first(node.body, node.orelse)
        if isinstance(node, ast.BoolOp):
            return self._first(*node.values)
        if isinstance(node, (ast.Starred, ast.NamedExpr)):
            return self.look_up(node.value)
        if isinstance(node, ast.Tuple):
            return Several(tuple(self.value(self.look_up(each)) for each in node.elts))
        return None

    def _first(self, *nodes: ast.expr) -> Thing:
        return first(self.value(self.look_up(node)) for node in nodes)

    def _attribute(self, node: ast.Attribute) -> Thing:
        owner = self.value(self.look_up(node.value))
        if isinstance(owner, Module):
            submodule = self.package.modules.get(f"{owner.name}.{node.attr}")
            return self.package.follow(owner.names.get(node.attr, submodule))
        if isinstance(owner, Instance):
            owner = owner.of
        return self.package.member(owner, node.attr) if isinstance(owner, Class) else None

    def value(self, thing: Thing) -> Thing:
        """What a mentioned thing holds: a variable's content, a property's result."""
        if isinstance(thing, Variable):
            return self.package.content(thing)
        if isinstance(thing, Function) and thing.is_property:
            return self._returned(thing)
        return thing

    def _returned(self, function: Function) -> Thing:
        return self.package.scope(function.module).annotated(function.node.returns)

    def _call(self, node: ast.Call) -> Thing:
        if isinstance(node.func, ast.Name) and node.func.id in HANDS_ON:
            return self._first(*node.args)
        called = self.value(self.look_up(node.func))
        if isinstance(called, Class):
            return Instance(called)
        if not isinstance(called, Function):
            return None
        found = self._returned(called)
        if found is None and node.args:  # such as from_main(lambda: ...), from_main(make)
            first = node.args[0]
            if isinstance(first, ast.Lambda):
                return self.value(self.look_up(first.body))
            handed = self.value(self.look_up(first))
            return self._returned(handed) if isinstance(handed, Function) else None
        return found
