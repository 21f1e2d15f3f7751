"""Reads pickles without running them: what a pickle would call becomes an inert Record.

Python's own unpickler imports and calls whatever a file names. This one is a stack machine over
`pickletools.genops` that has nothing to call with: a name stays a name, a call becomes a Record of
its arguments, so that a Namespace or a scheduler beside the weights is no obstacle. Sizes in a
pickle are never believed: genops reads at most what the file holds.

Kept by hand beside `torch.load(weights_only=True)`, which (with stand-ins for every class too)
refuses whole modules in the container of torch before 1.6 (TorchXRayVision's published files),
subclasses of dict, and protocols 3 to 5, and reads no Paddle file (tests/weights/test_pickles.py
shows each); and which never ends on a dict's key of nested tuples.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from densekit.config import UserError

HARMFUL = frozenset(
    (
        "os", "posix", "nt", "sys", "subprocess", "shutil", "importlib", "runpy", "socket",
        "ctypes", "multiprocessing", "threading", "signal", "pty", "code", "codeop", "pickle",
        "_pickle", "dill", "cloudpickle", "marshal", "webbrowser", "urllib", "http", "tempfile",
        "glob", "io", "_io", "pip", "setuptools", "torch.hub", "torch.jit",
    )
)  # fmt: skip
"""Modules that no weights need and whose functions act on the machine."""
HARMFUL_NAMES = frozenset(
    (
        "eval", "exec", "compile", "open", "input", "getattr", "setattr", "delattr", "globals",
        "locals", "vars", "__import__", "breakpoint", "load", "loads", "run", "system",
    )
)  # fmt: skip
"""Functions that could run what a file brings, whatever the module."""
DEEPEST = 100  # containers within containers; weights stand a few deep


@dataclass(frozen=True)
class Name:
    """A global that a pickle names; nothing is imported."""

    name: str


@dataclass(eq=False)
class Record:
    """A call or an object that a pickle asks for, not made."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    """What was set in it by key: an OrderedDict's content."""


@dataclass(frozen=True)
class Persistent:
    """A reference to what is stored outside the pickle, such as a tensor's bytes."""

    key: Any


class _Mark:
    """Where on the stack a collection begins."""


MARK = _Mark()


def load_pickle(file: io.BytesIO, stored: list[Persistent] | None = None) -> Any:
    """The value of the pickle at the file's position, which moves past it.

    From memory, since a file on disk takes memory for as many bytes as it is asked for.

    dicts, lists, tuples, str, bytes, numbers, None, Records, Names and Persistents, which are
    added to `stored` too. Raises UserError for a name of something harmful and for what is no
    pickle of protocol 2 to 5.
    """
    machine = _Machine([] if stored is None else stored)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return machine.pop()
            machine.run(opcode.name, argument)
    except UserError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"no pickle, or a corrupt one: {error}") from error
    raise UserError("a truncated pickle")


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """What stands in a tree of dicts, lists and objects, by the keys on the way joined by dots.

    A torch module's parameters, buffers and submodules stand under its own name. A container that
    is stored in two places is passed once, by the first of them.
    """
    seen: set[int] = set()
    stack: list[tuple[str, Any, int]] = [("", tree, 0)]
    while stack:
        name, node, depth = stack.pop()
        children = _children(node)
        if not children:
            yield name, node
        elif id(node) not in seen and depth < DEEPEST:
            seen.add(id(node))
            below = [(f"{name}.{key}" if name else str(key), child) for key, child in children]
            stack.extend((key, child, depth + 1) for key, child in reversed(below))


def _children(node: Any) -> list[tuple[Any, Any]] | None:
    """Of a dict, a list or an object; None for a value, which a tensor's or array's record is."""
    if isinstance(node, dict):
        return list(node.items())
    if isinstance(node, (list, tuple)):
        containers = (dict, list, tuple, Record)
        inside = [(i, child) for i, child in enumerate(node) if isinstance(child, containers)]
        return inside or None
    if not isinstance(node, Record) or not (node.items or isinstance(node.state, dict)):
        return None
    state = node.state if isinstance(node.state, dict) else {}
    spliced = [
        pair
        for key in ("_parameters", "_buffers", "_modules")
        for pair in _children(state.get(key)) or ()
        if pair[1] is not None
    ]
    attributes = [
        (key, value)
        for key, value in state.items()
        if isinstance(value, Record) and not str(key).startswith("_")
    ]
    return [*node.items.items(), *spliced, *attributes]


class _Machine:
    """One pickle's stack and memo."""

    def __init__(self, stored: list[Persistent]) -> None:
        self.stored = stored
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, opcode: str, argument: Any) -> None:
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _PUTS:
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif opcode in _GETS:
            self.stack.append(self.memo[argument])
        elif opcode in _STEPS:
            _STEPS[opcode](self, argument)
        elif opcode not in _NOTHING:
            raise UserError(f"holds {opcode}, which no file of weights needs; it is not read")

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """What stands above the last mark."""
        start = len(self.stack) - 1
        while self.stack[start] is not MARK:
            start -= 1
            if start < 0:
                raise ValueError("a collection without a beginning")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    # What opcodes do ------------------------------------------------------------------------

    def collect(self, kind: Callable[[list[Any]], Any], count: int | None = None) -> None:
        """The last `count` values, or those above the mark, as one."""
        items = self.pop_mark() if count is None else [self.pop() for _ in range(count)][::-1]
        self.stack.append(kind(items))

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        _fill(target.items if isinstance(target, Record) else target, pairs)

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Record):
            raise TypeError("an append to what is no list")

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        full = f"{module}.{name}"
        of = full.split(".")
        if of[0] in HARMFUL or ".".join(of[:2]) in HARMFUL or of[-1] in HARMFUL_NAMES:
            raise UserError(
                f"names {full}, which is no part of a network's weights and could run code where "
                "other programs load this file; nothing of it was run, and it is not read"
            )
        self.stack.append(Name(full))

    def call(self) -> None:
        """A call or a new object, as a record."""
        arguments, called = self.pop(), self.pop()
        if not isinstance(arguments, tuple):
            raise TypeError("a call without arguments")
        self.stack.append(Record(called.name if isinstance(called, Name) else "?", arguments))

    def build(self) -> None:
        state = self.pop()
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state

    def refer(self) -> None:
        """To a storage; or to a class, beside which torch stored its source."""
        key = self.pop()
        if isinstance(key, tuple) and len(key) > 1 and key[0] == "module":
            self.stack.append(key[1])
            return
        self.stored.append(Persistent(key))
        self.stack.append(self.stored[-1])


def _fill(target: dict[Any, Any], pairs: list[Any]) -> None:
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(key, (str, int, float, bytes, type(None))):
            key = f"({type(key).__name__})"  # hashing nested tuples can take for ever
        target[key] = value


def _dict(pairs: list[Any]) -> dict[Any, Any]:
    filled: dict[Any, Any] = {}
    _fill(filled, pairs)
    return filled


def _call_with_keywords(machine: _Machine, _: Any) -> None:
    machine.pop()
    machine.call()


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": MARK,
                              "EMPTY_TUPLE": ()}  # fmt: skip
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING",
    "SHORT_BINSTRING",
}  # fmt: skip
_PUTS = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"BINGET", "LONG_BINGET"}
_NOTHING = {"PROTO", "FRAME"}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_SET": lambda m, _: m.stack.append(Record("builtins.set")),
    "TUPLE": lambda m, _: m.collect(tuple),
    "TUPLE1": lambda m, _: m.collect(tuple, 1),
    "TUPLE2": lambda m, _: m.collect(tuple, 2),
    "TUPLE3": lambda m, _: m.collect(tuple, 3),
    "LIST": lambda m, _: m.collect(list),
    "DICT": lambda m, _: m.collect(_dict),
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "ADDITEMS": lambda m, _: m.append(m.pop_mark()),
    "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "GLOBAL": lambda m, argument: m.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "NEWOBJ_EX": _call_with_keywords,
    "FROZENSET": lambda m, _: m.collect(lambda items: Record("builtins.frozenset", (items,))),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.refer(),
}
