"""Files of weights and artifacts with damage: none of them takes long, and nothing of them runs."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import SMALL, small, write_keras_by_order
from test_weights_file import FORMS

from densekit.config import UserError
from densekit.data.transforms import Preprocessing
from densekit.models import artifact
from densekit.models.artifact import ArtifactConfig, Described
from densekit.weights import weights_file

T = TypeVar("T")
SECONDS = 60  # far above what any of these files takes
RUN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect",
       "pickle.find_class", "shutil.rmtree", "os.remove")  # fmt: skip
"""What Python tells its audit hooks before it does it."""

seen: list[str] = []
watching = [False]


def watch(event: str, _: object) -> None:
    if watching[0] and event in RUN:
        seen.append(event)


sys.addaudithook(watch)


@contextlib.contextmanager
def nothing_runs() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    seen.clear()
    watching[0] = True
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        watching[0] = False
        if hasattr(signal, "SIGALRM"):
            signal.alarm(0)
    assert seen == []


def keras_archive(file: Path) -> None:
    inner = file.with_suffix(".h5")
    write_keras_by_order(inner, small())
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.write(inner, "model.weights.h5")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A valid file for each reader."""
    folder, files = tmp_path_factory.mktemp("whole"), {}
    for name, write in FORMS.items():
        write(folder / name, small())
        files[name] = (folder / name).read_bytes()
    keras_archive(folder / "model.keras")
    return files | {"model.keras": (folder / "model.keras").read_bytes()}


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with some of it flipped, overwritten, cut out, repeated or inserted."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # headers and directories lie at the two ends, where damage tells most
        span = min(len(damaged), draw(st.sampled_from([64, 2048, len(damaged)])))
        at = draw(st.integers(0, max(span - 1, 0)))
        at = at if draw(st.booleans()) else len(damaged) - 1 - at
        size = draw(st.integers(1, 64))
        match draw(st.sampled_from(["flip", "overwrite", "cut", "repeat", "insert", "truncate"])):
            case "flip" if damaged:
                damaged[at] ^= 1 << draw(st.integers(0, 7))
            case "overwrite":
                damaged[at : at + size] = draw(st.binary(min_size=size, max_size=size))
            case "cut":
                del damaged[at : at + size]
            case "repeat":
                damaged[at:at] = damaged[at : at + size]
            case "insert":
                damaged[at:at] = draw(st.binary(min_size=1, max_size=size))
            case "truncate":
                del damaged[at:]
    return bytes(damaged)


def read_or_refuse(name: str, read: Callable[[], T]) -> T | None:
    """What is read; None where it is refused with the name of the file."""
    refusal = ""
    with nothing_runs():
        try:
            return read()
        except UserError as error:
            refusal = str(error)
    assert name in refusal
    return None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.mark.parametrize("name", [*FORMS, "model.keras"])
@given(st.data())
def test_a_file_of_weights(
    name: str, whole: dict[str, bytes], place: Path, data: st.DataObject
) -> None:
    damaged = data.draw(damage(whole[name]))
    (place / name).write_bytes(damaged)
    found = read_or_refuse(name, lambda: weights_file.read_weights(place / name))
    if found is not None:
        assert sum(tensor.nbytes for tensor in found.tensors.values()) <= len(damaged)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("artifact")
    config = ArtifactConfig(
        model=Described(name="small", architecture=SMALL),
        preprocessing=Preprocessing(),
        classes=tuple("abcde"),
    )
    artifact.write_artifact(folder, config, small())
    return {name: (folder / name).read_bytes() for name in (artifact.WEIGHTS, artifact.CONFIG)}


@pytest.mark.parametrize("name", [artifact.WEIGHTS, artifact.CONFIG])
@given(st.data())
def test_an_artifact(
    name: str, written: dict[str, bytes], place: Path, data: st.DataObject
) -> None:
    for other, content in written.items():
        (place / other).write_bytes(content)
    damaged = data.draw(damage(written[name]))
    (place / name).write_bytes(damaged)
    found = read_or_refuse(name, lambda: artifact.read_artifact(place))
    if found is None:
        return
    # what was read is what was written, whatever the damage: a checksum stands over it
    stored = small()
    assert found.state_dict.keys() == stored.keys()
    assert all(tensor.equal(stored[key]) for key, tensor in found.state_dict.items())
    assert found.config.classes == tuple("abcde")


def test_the_watch_sees_what_runs() -> None:
    """Or the tests above prove nothing."""
    import pickle

    with pytest.raises(AssertionError), nothing_runs():
        pickle.load(io.BytesIO(b"\x80\x02ccollections\nOrderedDict\n."))
