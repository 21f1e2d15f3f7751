"""`densekit predict --out`: kills, signals and workers change no row."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scene import Scene, parts_of, write_network

from densekit.infer.classifier import Classifier, load
from densekit.infer.inputs import listed_names
from runs import WAIT, begin_densekit, densekit

slow = pytest.mark.slow


def at_batch(number: int, act: Callable[[], None]) -> None:
    """A process's prelude: `act` before the network sees its batch `number`."""
    answers, seen = Classifier.answers, []

    def counting(*arguments: object) -> object:
        seen.append(1)
        if len(seen) == number:
            act()
        return answers(*arguments)  # type: ignore[arg-type]

    Classifier.answers = counting  # type: ignore[method-assign, assignment]


def signal_self(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_rows_are_predicts(scene: Scene, whole: Path) -> None:
    table = pq.read_table(whole)  # as any reader takes the folder: the parts, in order
    classifier = load(scene.network, device="cpu")
    rows = table.to_pylist()
    assert {answer.pop("positive") for row in rows for answer in row["topk"]} == {None}
    assert rows == classifier.predict(list(listed_names(Path(scene.images))), 2, batch_size=8)
    errors = [row["error"] for row in table.to_pylist() if row["error"]]
    assert errors[0] == "there is no such file"
    assert errors[1].startswith("cannot be read as an image: ")
    assert errors[2] == "is a folder; name its images"
    assert len(errors) == 3


def test_a_killed_run_goes_on_to_the_same_bytes(scene: Scene, whole: Path, tmp_path: Path) -> None:
    command = scene.command(tmp_path / "results")
    killed = densekit(*command, prelude=partial(at_batch, 11, partial(signal_self, signal.SIGKILL)))
    assert killed.returncode == -signal.SIGKILL
    left = parts_of(tmp_path / "results")
    assert [*left] == ["_inputs.parquet", "part-000000.parquet", "part-000001.parquet"]
    done = densekit(*command, "--json")
    assert done.returncode == 1
    assert "64 of 176 images are done already" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["scored"] == 112
    assert summary["done"] == {"parts": 6, "images": 176, "failed": 3}
    assert parts_of(tmp_path / "results") == parts_of(whole)
    assert not [*(tmp_path / "results").glob(".*.tmp")]
    again = densekit(*command)
    assert again.returncode == 1
    assert "176 of 176 images in 6 files, 3 with an error; 0 in 0 s" in again.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_it_says_how_to_go_on(
    scene: Scene, whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = scene.command(tmp_path / "results")
    stopped = densekit(*command, prelude=partial(at_batch, 6, partial(signal_self, number)))
    assert stopped.returncode == 75, stopped
    assert "stopped: asked to stop; run the same command to resume" in stopped.stderr
    assert "32 of 176 images in 1 files" in stopped.stdout
    done = json.loads((tmp_path / "results" / "_manifest.json").read_text())["done"]
    assert done == {"parts": 1, "images": 32, "failed": 0}
    assert densekit(*command).returncode == 1
    assert parts_of(tmp_path / "results") == parts_of(whole)


def test_what_decides_the_rows_may_not_change(scene: Scene, whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "results"))
    refused = densekit(*scene.command(out), "--topk", "3")
    assert refused.returncode == 2
    assert f"--out {out}: was begun with topk=2, not topk=3; leave these" in refused.stderr
    network = write_network(tmp_path / "network", seed=4)
    refused = densekit(*Scene(network, scene.images).command(out))
    assert refused.returncode == 2
    assert "was begun with network=" in refused.stderr
    images = Path(shutil.copyfile(scene.images, tmp_path / "list.txt"))
    mine = Scene(scene.network, images)
    assert densekit(*mine.command(tmp_path / "mine")).returncode == 1
    images.write_text(images.read_text() + "\nmore.png\n")
    refused = densekit(*mine.command(tmp_path / "mine"))
    assert refused.returncode == 2
    assert "was begun with lists=" in refused.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--workers", "2"), "--workers: needs --out FOLDER"),
        (("--on", "ray"), "--on: needs --out FOLDER"),
        (("--out", "{tmp}/r", "--csv"), "--csv: goes to stdout"),
        (("--out", "{tmp}/r", "--on", "spark"), "--on spark: unknown"),
        (("--out", "{tmp}/r", "--precision", "fp7"), "--precision fp7: unknown"),
        (("--out", "{tmp}/empty.txt"), "cannot be made"),
    ],
)
def test_mistakes_are_sentences(
    scene: Scene, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    (tmp_path / "empty.txt").touch()
    words = [word.format(tmp=tmp_path) for word in options]
    done = densekit("predict", scene.network, scene.images, *words)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "r").exists(), "nothing is begun"


def without_pyarrow() -> None:
    for name in [n for n in sys.modules if n.startswith(("pyarrow", "densekit.score"))]:
        del sys.modules[name]
    sys.modules["pyarrow"] = None  # type: ignore[assignment]


def test_a_missing_extra_is_named(scene: Scene, tmp_path: Path) -> None:
    done = densekit(*scene.command(tmp_path / "results"), prelude=without_pyarrow)
    assert done.returncode == 2
    assert 'pip install "densekit[score]"' in done.stderr


# Processes ----------------------------------------------------------------------------------


@slow
def test_two_workers_give_the_same_bytes(scene: Scene, whole: Path, tmp_path: Path) -> None:
    done = densekit(*scene.command(tmp_path / "results"), "--workers", "2")
    assert done.returncode == 1, done
    assert parts_of(tmp_path / "results") == parts_of(whole)


def children(pid: int) -> list[int]:
    """The processes of the pool: what multiprocessing has spawned, less its resource tracker."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(file.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (file.parent / "cmdline").read_bytes():
                found.append(int(file.parent.name))
        except OSError:  # it has ended
            continue
    return found


@slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux")
def test_workers_end_with_a_killed_main_process(scene: Scene, whole: Path, tmp_path: Path) -> None:
    command = [*scene.command(tmp_path / "results"), "--workers", "2"]
    started = begin_densekit(*command, output=tmp_path / "output.txt")
    pid = started.processes[0].pid
    assert pid
    assert started.until(lambda: len(children(pid)) == 2), started.output
    workers = children(pid)
    started.kill()
    deadline = time.monotonic() + WAIT
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert densekit(*command).returncode == 1
    assert parts_of(tmp_path / "results") == parts_of(whole)


@slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux")
def test_a_killed_worker_is_a_sentence_and_costs_its_parts(
    scene: Scene, whole: Path, tmp_path: Path
) -> None:
    command = scene.command(tmp_path / "results")
    started = begin_densekit(*command, "--workers", "2", output=tmp_path / "output.txt")
    pid = started.processes[0].pid
    assert pid
    assert started.until(lambda: len(children(pid)) == 2), started.output
    os.kill(children(pid)[0], signal.SIGKILL)
    assert started.wait() == [2], started.output
    assert "a process of --workers 2 was killed, most often because memory" in started.output
    assert densekit(*command).returncode == 1
    assert parts_of(tmp_path / "results") == parts_of(whole)
