"""How the C++ kernels come to be: compiled once, kept, and done without where they cannot be.

Most tests have a compiler that copies a library which was compiled beforehand, and notes its calls.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from seen import SMALL, images
from torch import Tensor

from densekit.files import cache_folder
from densekit.models.densenet import DenseNet
from densekit.native_code import find_compiler
from densekit.ops.lean import kernels
from densekit.ops.lean.kernels import native, plain
from runs import Runs

FLOAT32 = torch.float32
CPU = torch.device("cpu")


def forget() -> None:
    """As a new process."""
    native._library.cache_clear()
    native.reason.cache_clear()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where kernels are kept in this test."""
    monkeypatch.setenv("DENSEKIT_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache" / "kernels"
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="module")
def compiled() -> Path:
    """The library, by this machine's compiler; from the user's cache, where other tests put it."""
    assert native.reason() is None
    return cache_folder() / "kernels" / f"native-{native._code().key(find_compiler())}.so"


@dataclass
class Compiler:
    """A script that stands in for one."""

    script: Path
    log: Path
    environment: pytest.MonkeyPatch

    def does(self, command: str, version: str = "1.0") -> None:
        """`command` sees the file to be written as $out. It is $CXX from now on."""
        self.script.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo {version}; exit; fi\n'
            f'for out; do :; done\necho "$@" >> {self.log}\n{command}\n'
        )
        self.script.chmod(0o755)
        self.environment.setenv("CXX", str(self.script))
        forget()

    @property
    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: Path) -> Compiler:
    made = Compiler(tmp_path / "compiler", tmp_path / "calls", monkeypatch)
    made.does(f'cp {compiled} "$out"')
    return made


def computes() -> None:
    """A kernel, by what `kernels_for` takes, as the plain one does."""
    x, norm = torch.randn(6, 5), torch.rand(4, 5)
    found, expected = torch.empty(6, 5), torch.empty(6, 5)
    kernels.kernels_for(x).norm_relu(x, norm, found)
    plain.norm_relu(x, norm, expected)
    torch.testing.assert_close(found, expected)


# Built once ---------------------------------------------------------------------------------


def test_this_machines_compiler_builds_what_is_called(compiled: Path) -> None:
    library = ctypes.CDLL(str(compiled))
    for name in native.ARGUMENTS:
        assert hasattr(library, f"{name}_f32")
        assert hasattr(library, f"{name}_bf16") == (name not in native.VECTORS)


def test_it_is_compiled_once_and_kept(
    compiler: Compiler, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says so: it takes a while."""
    for _ in range(3):
        assert native.reason() is None
        computes()
        forget()
    assert compiler.calls == 1
    assert capsys.readouterr().err.count("compiling densekit's C++ kernels") == 1
    (kept,) = cache.iterdir()
    assert re.fullmatch(r"native-[0-9a-f]{16}\.so", kept.name)


def ready(answers: multiprocessing.Queue[str | None]) -> None:
    answers.put(native.reason())


def in_processes(count: int) -> list[str | None]:
    """`reason()` of new processes that start at once."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=ready, args=(answers,)) for _ in range(count)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return found


def test_another_process_does_not_compile_again(compiler: Compiler) -> None:
    assert in_processes(1) == [None]
    assert in_processes(1) == [None]
    assert native.reason() is None
    assert compiler.calls == 1


def test_processes_that_compile_at_once_do_not_disturb_one_another(
    compiler: Compiler, cache: Path, compiled: Path
) -> None:
    compiler.does(f'sleep 0.5; cp {compiled} "$out"')
    assert in_processes(3) == [None, None, None]
    assert len(list(cache.iterdir())) == 1
    assert native.reason() is None
    computes()


# Built again --------------------------------------------------------------------------------


def other_source(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    file = folder / "changed.cpp"
    file.write_text(native.SOURCE.read_text() + "\n// changed\n")
    monkeypatch.setattr(native, "SOURCE", file)


def other_header(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    *others, last = native.HEADERS
    file = folder / last.name
    file.write_text(last.read_text() + "\n// changed\n")
    monkeypatch.setattr(native, "HEADERS", [*others, file])


def other_flags(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-g"))


def other_cpu(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    read_text = Path.read_text

    def read(file: Path, *arguments: str, **options: str) -> str:
        text = read_text(file, *arguments, **options)
        return text.replace("flags", "flags avx1024") if str(file) == "/proc/cpuinfo" else text

    monkeypatch.setattr(Path, "read_text", read)


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, Path], None]] = {
    "source": other_source,
    "header": other_header,
    "flags": other_flags,
    "cpu": other_cpu,
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_key_is_compiled_again(
    change: str, compiler: Compiler, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert native.reason() is None
    CHANGES[change](monkeypatch, tmp_path)
    forget()
    assert native.reason() is None
    assert compiler.calls == 2
    assert len(list(cache.iterdir())) == 2


def test_another_compiler_compiles_again(compiler: Compiler, cache: Path, compiled: Path) -> None:
    assert native.reason() is None
    compiler.does(f'cp {compiled} "$out"', version="1.1")
    assert native.reason() is None
    assert compiler.calls == 2
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(("machine", "width"), [("x86_64", True), ("aarch64", False)])
def test_a_compiler_gets_what_its_machine_has(
    machine: str, width: bool, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GCC for ARM stops at an option that it does not know."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert native.reason() is None
    (call,) = compiler.log.read_text().splitlines()
    assert ("-mprefer-vector-width=512" in call.split()) == width
    assert "-march=native" in call.split()


# Not to be had ------------------------------------------------------------------------------


def runs_plain() -> None:
    """float32 on this CPU is lean's by plain kernels, and auto's by the reference."""
    assert kernels.implementation(CPU, FLOAT32) == "plain"
    computes()


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    said = "no C++ compiler was found (c++, g++, clang++); install g++"
    assert native.reason() == said
    runs_plain()


def test_the_compiler_that_is_asked_for_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other is taken in its place."""
    monkeypatch.setenv("CXX", "nonsense++")
    assert native.reason() == "no C++ compiler was found (nonsense++); install g++"
    runs_plain()


def test_a_compiler_that_fails(compiler: Compiler, cache: Path) -> None:
    compiler.does('echo "native.cpp:1: note" >&2; echo "native.cpp:9: error: why" >&2; exit 1')
    said = f"{compiler.script} cannot compile the kernels: native.cpp:9: error: why"
    assert native.reason() == said
    runs_plain()
    assert list(cache.iterdir()) == []


def test_a_compiler_that_cannot_be_run(compiler: Compiler) -> None:
    compiler.script.write_text("#!/nowhere/sh\n")
    forget()
    reason = native.reason()
    assert reason is not None
    assert "\n" not in reason
    runs_plain()


def test_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert native.reason() == "C++ is compiled on Linux only, not on darwin"


# Not to be kept -----------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands where its folder would; root may write anywhere else."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("DENSEKIT_CACHE", str(tmp_path / "file"))
    assert native.reason() is None
    computes()
    assert compiler.calls == 1


def test_a_kept_library_that_is_broken(compiler: Compiler, cache: Path) -> None:
    kept = cache / f"native-{native._code().key(str(compiler.script))}.so"
    cache.mkdir(parents=True)
    kept.write_bytes(b"\x7fELF, but no more")
    assert native.reason() is None
    computes()
    assert compiler.calls == 1


def test_a_compiler_whose_library_cannot_be_loaded(compiler: Compiler) -> None:
    compiler.does('echo nothing > "$out"')
    reason = native.reason()
    assert reason is not None
    assert reason.startswith("the compiled kernels cannot be kept or loaded: ")
    runs_plain()


# A machine without a compiler ---------------------------------------------------------------

OWN_LOOP = """
import torch
from densekit.models.densenet import DenseNet
from densekit.native_code import find_compiler
from densekit.ops.lean import kernels
from seen import SMALL, Seen, images
assert kernels.implementation(torch.device("cpu"), torch.float32) == "plain"
found = {}
for op in ("lean", "auto", "reference"):
    torch.manual_seed(0)
    model = DenseNet(SMALL, op=op)
    with Seen() as seen:
        model(images()).square().sum().backward()
    found[op] = [p.grad for p in model.parameters()]
    print(op, seen.lean)
torch.save(found, OUT)
"""


def bare(tmp_path: Path) -> dict[str, str]:
    """The environment, without a compiler and with nothing kept."""
    kept = {name: value for name, value in os.environ.items() if name != "CXX"}
    path = os.pathsep.join([str(Path(__file__).parents[1]), kept.get("PYTHONPATH", "")])
    return {**kept, "PATH": "", "PYTHONPATH": path, "DENSEKIT_CACHE": str(tmp_path)}


@pytest.mark.slow
def test_a_process_without_a_compiler_has_lean_on_plain_kernels(tmp_path: Path) -> None:
    script = OWN_LOOP.replace("OUT", repr(str(tmp_path / "found.pt")))
    done = subprocess.run(
        [sys.executable, "-c", script], env=bare(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lean, auto, reference = done.stdout.splitlines()
    assert lean == "lean {'densekit::dense_block': 2, 'densekit::norm_relu': 2}"
    assert (auto, reference) == ("auto {}", "reference {}")
    found: dict[str, list[Tensor]] = torch.load(tmp_path / "found.pt")
    for ours, auto_took, expected in zip(*found.values(), strict=True):
        assert torch.equal(auto_took, expected)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_run_without_a_compiler_says_so_in_a_line(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = runs.arguments(folder, {"loop.epochs": 1, "model.op": "auto"})
    done = subprocess.run(
        [sys.executable, "-m", "densekit", *command],
        env=bare(tmp_path), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    line = "model.op=auto takes the reference: no C++ compiler was found (c++, g++, clang++)"
    assert said.count(line) == 1
    assert "op: reference" in (folder / "recipe.yaml").read_text()


def test_plain_kernels_and_native_ones_are_the_same_op(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To rounding: output and every gradient of a network."""
    found = []
    for path in (os.environ["CXX"], "nonsense++"):
        monkeypatch.setenv("CXX", path)
        forget()
        torch.manual_seed(0)
        model = DenseNet(SMALL, op="lean")
        y = model(images())
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), list(model.parameters()))])
    for ours, plains in zip(*found, strict=True):
        torch.testing.assert_close(ours, plains, rtol=1e-3, atol=1e-4)
