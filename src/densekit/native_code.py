"""C++ that is compiled on this machine when it is first needed, and kept in the user's cache.

The cached library's name is a hash of all that it depends on: the source, the compiler, its flags
and the CPU's instructions.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from densekit.files import cache_folder
from densekit.progress import waiting

COMPILERS = ("c++", "g++", "clang++")


@functools.cache
def has_triton() -> bool:
    """Whether there is Triton, which compiles for NVIDIA's GPUs; it comes with torch on Linux."""
    return importlib.util.find_spec("triton") is not None


class Unavailable(Exception):  # noqa: N818 (not a mistake)
    """Why there is no native code here; the message says it in a line."""


@dataclass(frozen=True)
class NativeCode:
    """One shared library's source."""

    what: str
    """Its name in messages, and its folder in the cache."""
    files: tuple[Path, ...]
    """What is compiled, and the headers that it includes."""
    flags: tuple[str, ...]

    def load(self) -> ctypes.CDLL:
        """The library, compiled if need be. Raises Unavailable."""
        if sys.platform != "linux":
            raise Unavailable(f"C++ is compiled on Linux only, not on {sys.platform}")
        compiler = find_compiler()
        try:
            key = self.key(compiler)
        except OSError as error:
            raise Unavailable(f"{compiler} cannot be run: {error}") from error
        file = cache_folder() / self.what.replace(" ", "-") / f"native-{key}.so"
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(file))
        try:
            self._compile(compiler, file)
            return ctypes.CDLL(str(file))
        except OSError:  # a home that cannot be written, or whose files cannot be run
            return self._load_private(compiler)

    def key(self, compiler: str) -> str:
        """A hash of everything that the compiled code depends on."""
        command = [compiler, "--version"]
        version = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        cpu = Path("/proc/cpuinfo").read_text()
        named = ("flags", "Features")  # on x86, on ARM
        instructions = next((line for line in cpu.splitlines() if line.startswith(named)), "")
        parts = [*(file.read_text() for file in self.files), version, *self.flags, instructions]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def _compile(self, compiler: str, file: Path) -> None:
        """Compiles next to `file` and renames, so that processes may do it at the same time."""
        file.parent.mkdir(parents=True, exist_ok=True)
        said = (
            f"compiling densekit's C++ {self.what}, once for this machine (seconds, up to a minute)"
        )
        with waiting(said, line=True), tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            fresh = Path(scratch, file.name)
            done = subprocess.run(
                [compiler, *self.flags, str(self.files[0]), "-o", str(fresh)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                why = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr)
                raise Unavailable(f"{compiler} cannot compile the {self.what}: {why.strip()}")
            fresh.replace(file)

    def _load_private(self, compiler: str) -> ctypes.CDLL:
        """The library from a folder that lasts as long as loading it takes."""
        try:
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch, "native.so")
                self._compile(compiler, file)
                return ctypes.CDLL(str(file))
        except OSError as error:
            why = f"the compiled {self.what} cannot be kept or loaded: {error}"
            raise Unavailable(why) from error


def find_compiler() -> str:
    """$CXX, or the first of COMPILERS that is there. Raises Unavailable."""
    asked = os.environ.get("CXX")
    found = next(filter(None, map(shutil.which, [asked] if asked else COMPILERS)), None)
    if found is None:
        raise Unavailable(
            f"no C++ compiler was found ({asked or ', '.join(COMPILERS)}); install g++"
        )
    return found
