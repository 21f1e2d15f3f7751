"""MLflow and Weights & Biases themselves, and runs that are killed: every step once, none lost.

Both are imported where they are used: each test process loads every file.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_tracking import rows, scalars

from densekit.training.recipe import load_recipe
from densekit.training.run_folder import RunFolder
from densekit.training.trackers import MLflow
from runs import FORKS, STEPS, WAIT, Options, Runs, Started, free_port, lines, numbers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from wandb.proto.wandb_internal_pb2 import Record

slow = pytest.mark.slow
Series = dict[str, list[tuple[int, float]]]
ENVIRONMENT = ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "NETRC", "WANDB_CONFIG_DIR")
TIMES = ("ips", "ips_rank", "data_wait", "eta")


def logged(folder: Path) -> Series:
    """What log.jsonl says, as a tracker should have it; without what no run does twice alike."""
    found: Series = {}
    for line in lines(folder):
        if line["kind"] != "event":
            side = "val" if line["kind"] == "eval" else "train"
            for name, value in line.items():
                if name not in ("kind", "step", *TIMES) and value is not None:
                    found.setdefault(f"{side}/{name}", []).append((line["step"], value))
    return found


def without_times(series: Series) -> Series:
    return {name: points for name, points in series.items() if name.split("/")[-1] not in TIMES}


def begin(runs: Runs, folder: Path, options: Options, stops_at: float = math.inf) -> Started:
    """A run with the environment of this moment; its training stands still at a step, while what
    follows it goes on."""
    own = {name: os.environ.get(name) for name in ENVIRONMENT}
    return runs.start(folder, options, prelude=partial(prepare, own, stops_at))


def prepare(environment: dict[str, str | None], stops_at: float) -> None:
    """A process's prelude: it is forked from a server, whose environment is an older one."""
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    log = RunFolder.log

    def waiting(self: RunFolder, line: dict[str, Any]) -> None:
        log(self, line)
        while line.get("step", 0) >= stops_at:
            time.sleep(1)

    RunFolder.log = waiting  # type: ignore[method-assign]


def finish(runs: Runs, folder: Path, options: Options) -> str:
    """A run to its end, from wherever the folder stands; what it says, without the folder."""
    started = begin(runs, folder, options)
    assert started.wait() == [0], started.output
    return started.output.replace(str(folder), "RUN")


# MLflow -------------------------------------------------------------------------------------


def client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store; making it takes MLflow ten seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    client(uri).search_experiments()
    return uri


@pytest.fixture
def store(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    return database


def in_mlflow(uri: str, folder: Path) -> Series:
    known = MLflow(folder, load_recipe("quickstart"))._known.read()
    assert known is not None
    told = client(uri)
    return {
        name: sorted((each.step, each.value) for each in told.get_metric_history(run, name))
        for run in [known["run"]]
        for name in told.get_run(run).data.metrics
        if name != "rows"
    }


@contextlib.contextmanager
def mlflow_server(uri: str, port: int) -> Iterator[None]:
    """MLflow's own server of a store, on loopback, in a process of its own."""
    process = FORKS.Process(target=serve, args=(uri, port))
    process.start()
    try:
        deadline = time.monotonic() + WAIT
        while not answers(port):
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.join()


def serve(uri: str, port: int) -> None:
    os.environ["_MLFLOW_SERVER_FILE_STORE"] = uri
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = "mlflow-artifacts:/"
    from mlflow.server import app
    from werkzeug.serving import make_server

    make_server("127.0.0.1", port, app, threaded=True).serve_forever()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@slow
def test_mlflow_has_the_rows_the_recipe_and_the_state(store: str, tmp_path: Path) -> None:
    recipe, log = load_recipe("quickstart"), rows(300)
    tracker = MLflow(tmp_path, recipe)
    assert tracker.open() == 0
    tracker.send(log[:200])
    again = MLflow(tmp_path, load_recipe("quickstart", ["loop.epochs=41"]))
    assert again.open() == 200
    again.send(log[200:])
    again.close(finished=True)
    assert in_mlflow(store, tmp_path) == {"train/loss": [(n, 1 / n) for n in range(1, 301)]}
    run = client(store).get_run(again._run)
    assert run.info.status == "FINISHED"
    assert run.data.params["data.batch_size"] == str(recipe.data.batch_size)
    assert run.data.params["loop.epochs"] == str(recipe.loop.epochs)
    assert run.data.tags["loop.epochs"] == "41"
    assert run.data.params["folder"] == str(tmp_path)


@slow
def test_a_run_that_was_deleted_in_mlflow_is_made_anew(store: str, tmp_path: Path) -> None:
    tracker = MLflow(tmp_path, load_recipe("quickstart"))
    tracker.open()
    tracker.send(rows(3))
    tracker._client.delete_run(tracker._run)
    assert tracker.open() == 0


@slow
def test_a_run_killed_with_mlflow_ahead_of_its_state_goes_on(
    store: str, runs: Runs, tmp_path: Path
) -> None:
    folder, options = tmp_path / "run", {"loop.track": "mlflow", "loop.save_every": 4}
    for step in (3, 7):
        started = begin(runs, folder, options, stops_at=step)
        assert started.until(lambda step=step: told(store, folder) >= step), started.output
        started.kill()
    assert "mlflow" not in finish(runs, folder, options)
    assert without_times(in_mlflow(store, folder)) == logged(folder)
    assert numbers(folder) == numbers(runs.whole())
    assert len(in_mlflow(store, folder)["train/loss"]) == STEPS


def told(uri: str, folder: Path) -> int:
    """Steps that MLflow has."""
    if not (folder / "mlflow.json").exists():
        return 0
    return max((step for step, _ in in_mlflow(uri, folder).get("train/loss", [])), default=0)


@slow
def test_a_server_that_goes_away_and_returns_has_every_step(
    database: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run begins with it, ends without it, and the same command tells it the rest."""
    port, folder, options = free_port(), tmp_path / "run", {"loop.track": "mlflow"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with mlflow_server(database, port):
        started = begin(runs, folder, options, stops_at=4)
        assert started.until(lambda: told(database, folder) >= 4), started.output
        started.kill()
    said = finish(runs, folder, options)
    assert "loop.track=mlflow:" in said
    assert "the run goes on" in said
    assert "it may lack the last rows of log.jsonl" in said
    assert "Traceback" not in said
    with mlflow_server(database, port):
        assert "is finished: nothing to train" in finish(runs, folder, options)
    assert without_times(in_mlflow(database, folder)) == logged(folder)


@slow
def test_a_server_that_is_not_there_is_refused_before_the_first_step(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    started = begin(runs, tmp_path / "run", {"loop.track": "mlflow"})
    assert started.wait() == [2], started.output
    assert "loop.track=mlflow: " in started.output
    assert "Traceback" not in started.output
    runs.train(tmp_path / "run", {"loop.track": "tensorboard"})  # its folder is not claimed


# Weights & Biases ---------------------------------------------------------------------------


def records(file: Path) -> Iterator[Record]:
    """Of W&B's own file: blocks of 32 KiB, in them pieces with checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, whole = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        whole += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def offline_file(folder: Path) -> Path:
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    return file


def in_wandb(folder: Path) -> Series:
    """What `wandb sync` would upload of a run."""
    found: Series = {}
    for record in records(offline_file(folder)):
        values = {
            (item.key or ".".join(item.nested_key)): json.loads(item.value_json)
            for item in record.history.item
        }
        for name, value in values.items():
            if name not in ("step", "_step", "_runtime", "_timestamp"):
                found.setdefault(name, []).append((values["step"], value))
    return found


@slow
def test_a_run_killed_with_wandb_offline_is_whole_in_one_file(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, options = tmp_path / "run", {"loop.track": "wandb", "loop.save_every": 4}
    for step in (3, 9):
        started = begin(runs, folder, options, stops_at=step)
        assert started.until_step(step), started.output
        started.kill()
    assert "wandb" not in finish(runs, folder, options)
    assert in_wandb(folder).keys() >= logged(folder).keys()
    assert without_times(in_wandb(folder)) == logged(folder)
    assert numbers(folder) == numbers(runs.whole())
    names = "".join(map(str, records(offline_file(folder))))
    assert "optim.lr" in names
    assert ".png" not in names


def test_wandb_without_a_key_is_refused_and_never_asked_for(
    tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    started = begin(runs, tmp_path / "run", {"loop.track": "wandb"})
    assert started.wait() == [2], started.output
    said = " ".join(started.output.split())
    assert "loop.track=wandb: not logged in: run `wandb login`, or set WANDB_MODE=offline" in said


# TensorBoard --------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_is_whole_in_tensorboard(runs: Runs, tmp_path: Path, ranks: int) -> None:
    folder, options = tmp_path / "run", {"loop.track": "tensorboard", "loop.save_every": 4}
    for step in (3, 9):
        runs.kill(folder, step, options, ranks)
    runs.train(folder, options, ranks)
    shown = scalars(folder)
    expected = logged(folder)
    assert shown.keys() >= expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in shown[name]] == [step for step, _ in points]
        assert [v for _, v in shown[name]] == pytest.approx([v for _, v in points], rel=1e-6)
    assert numbers(folder) == numbers(runs.whole(None, ranks))
