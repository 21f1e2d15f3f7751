"""weights/pickles.py: nothing in a pickle is run, imported or believed."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import pickletools
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densekit.config import UserError
from densekit.weights import paddle_file, pickles, weights_file
from densekit.weights.pickles import Record


def load(data: bytes) -> Any:
    return pickles.load_pickle(io.BytesIO(data))


# Values -------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner)
    | st.dictionaries(st.text() | st.integers(), inner),
)  # fmt: skip


@given(plain, st.integers(2, 5))
def test_plain_values_are_read_as_python_reads_them(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    if b"_codecs" not in data and b"__builtin__" not in data:  # protocol 2: bytes are a call
        assert load(data) == value


def test_calls_are_written_down_and_not_done() -> None:
    found = load(pickle.dumps(collections.OrderedDict(a=1), 2))
    assert isinstance(found, Record)
    assert found.name == "collections.OrderedDict"
    assert found.items == {"a": 1}


def test_several_pickles_stand_one_after_another() -> None:
    file = io.BytesIO(pickle.dumps(1, 2) + pickle.dumps("two", 2) + b"rest")
    assert (pickles.load_pickle(file), pickles.load_pickle(file), file.read()) == (
        1,
        "two",
        b"rest",
    )


# Malice -------------------------------------------------------------------------------------


class Calls:
    """What a pickle can make Python's own unpickler do."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


ATTACKS = {
    "posix.system": Calls(os.system, "touch harmed"),
    ".eval": Calls(eval, "open('harmed', 'w')"),
    ".getattr": Calls(getattr, "", "join"),
    "shutil.rmtree": Calls(shutil.rmtree, "harmed"),
    "importlib": Calls(__import__("importlib").import_module, "antigravity"),
    "load": Calls(np.load, "harmed.npy"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("named", ATTACKS)
def test_what_could_run_code_is_refused_by_name(
    named: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = {"first": np.ones(3), "second": ATTACKS[named]}
    with pytest.raises(UserError, match=rf"names \S*{named}.*could run code"):
        load(pickle.dumps(weights, protocol))
    assert list(tmp_path.iterdir()) == []


class Stateful:
    """Writes down all that is done with it."""

    done: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.done.append("__init__")
        self.weights = np.ones(3)

    def __setstate__(self, state: object) -> None:
        self.done.append("__setstate__")

    def __reduce__(self) -> tuple[Any, ...]:
        return Stateful, (), {"weights": self.weights}


def test_objects_beside_the_weights_are_not_made() -> None:
    data = pickle.dumps({"args": Namespace(lr=0.1), "own": Stateful(), "w": np.ones(3)}, 2)
    pickle.loads(data)
    assert "__setstate__" in Stateful.done  # what Python's own unpickler does
    Stateful.done.clear()
    found = load(data)
    assert Stateful.done == []
    assert found["own"].name.endswith("Stateful")
    assert found["args"].state == {"lr": 0.1}


def test_no_module_is_imported() -> None:
    assert "this" not in sys.modules  # Python's own, which prints when it is imported
    assert load(b"\x80\x02cthis\ns\n)R.").name == "this.s"
    assert "this" not in sys.modules


@pytest.mark.parametrize("name", sorted(pickles.HARMFUL | pickles.HARMFUL_NAMES))
def test_every_harmful_name_is_refused(name: str) -> None:
    module, name = (name, "x") if name in pickles.HARMFUL else ("anything", name)
    for program in (f"c{module}\n{name}\n.", f"c{module}.inner\n{name}\n)R."):
        with pytest.raises(UserError, match="could run code"):
            load(b"\x80\x02" + program.encode())


# Why not torch.load(weights_only=True) --------------------------------------------------------


class Attributes(dict[str, Any]):
    """As Lightning's AttributeDict, yacs' CfgNode, EasyDict."""


def legacy_module(file: io.BytesIO) -> None:
    torch.save(torch.nn.Linear(2, 2), file, _use_new_zipfile_serialization=False)


KEPT = {
    "a whole module in the old container": legacy_module,
    "a subclass of dict": lambda f: torch.save({"w": torch.ones(2), "x": Attributes(a=1)}, f),
    "protocol 4": lambda f: torch.save({"w": torch.ones(2)}, f, pickle_protocol=4),
    "a numpy array, as Paddle's": lambda f: pickle.dump({"w": np.ones(2)}, f, 4),
}  # fmt: skip


@pytest.mark.parametrize("what", KEPT)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_what_torchs_own_restricted_reader_does_not_read(what: str, tmp_path: Path) -> None:
    """If torch learns to, this reader may go."""
    written = io.BytesIO()
    KEPT[what](written)
    stand_in = type("StandIn", (), {"__init__": lambda self, *_: None})
    safe = [
        (stand_in, f"{cls.__module__}.{cls.__qualname__}")
        for cls in (Attributes, torch.nn.Linear, np.ndarray, np.dtype)
    ]
    with torch.serialization.safe_globals(safe), pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(written.getvalue()), weights_only=True)
    (tmp_path / "w").write_bytes(written.getvalue())
    assert [n for n in weights_file.entries(tmp_path / "w").tensors if n in ("w", "weight")]


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # protocol 0
        b"\x80\x02(ios\nsystem\n.",  # INST
        b"\x80\x02\x82\x01.",  # the registry of extensions
        b"\x80\x05\x97.",  # a buffer from outside
    ],
)
def test_opcodes_that_weights_do_not_need_are_refused(data: bytes) -> None:
    with pytest.raises(UserError):
        load(data)


# Sizes --------------------------------------------------------------------------------------

BOMBS = {
    "8 GB of bytes": b"\x80\x04\x8e" + (8 << 30).to_bytes(8, "little") + b"few.",
    "a bytearray": b"\x80\x05\x96" + (8 << 30).to_bytes(8, "little") + b"few.",
    "a text": b"\x80\x04\x8d" + (8 << 30).to_bytes(8, "little") + b"few.",
    "a number": b"\x80\x02\x8b" + (2_000_000_000).to_bytes(4, "little") + b"\x01.",
    "a frame": b"\x80\x04\x95" + (1 << 60).to_bytes(8, "little") + b"N.",
    "a memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "nested": b"\x80\x02)" + b"q\x00h\x00h\x00\x86" * 60 + b".",
    "nested in a name": b"\x80\x04]" + b"\x94h\x00h\x00\x86" * 60 + b"\x93.",
    "nested in a key": b"\x80\x02})" + b"q\x00h\x00h\x00\x86" * 60 + b"Ns.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_takes_little_memory(bomb: str) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status").read_text().splitlines()
    used = int(next(line for line in status if line.startswith("VmData")).split()[1])
    resource.setrlimit(resource.RLIMIT_DATA, ((used << 10) + (1 << 30), hard))
    try:
        load(BOMBS[bomb])
    except UserError:
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


# Fuzz ---------------------------------------------------------------------------------------


def weights() -> bytes:
    return pickle.dumps({"a": np.ones((2, 3), np.float32), "b": np.arange(4.0)}, 4)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    read_or_refuse(b"\x80\x04" + data)


@given(st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(weights())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))


OPCODES = [code.code.encode("latin-1") for code in pickletools.opcodes]


@given(st.lists(st.sampled_from(OPCODES) | st.binary(max_size=3), max_size=40))
def test_any_program_is_read_or_refused(parts: list[bytes]) -> None:
    read_or_refuse(b"\x80\x04" + b"".join(parts) + b".")


def read_or_refuse(data: bytes) -> None:
    with contextlib.suppress(UserError):
        entries = paddle_file.read_paddle(load(data), len(data))
        assert sum(read().nbytes for read in entries.tensors.values()) <= len(data)
