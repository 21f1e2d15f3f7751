"""TensorBoard, MLflow and Weights & Biases, told what log.jsonl says; each by its own library.

A tracker is told rows: of each `train` and `eval` line the numbers, in the log's order. None of
them can be trusted to hold just what it was told before a process was killed, so each says, when
it is opened, how many rows it has; one that cannot say is emptied and told everything again.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from densekit.config import UserError
from densekit.files import write_atomically
from densekit.training.recipe import Recipe

PROJECT = "densekit"  # MLflow's experiment and W&B's project, where the environment names none
ROWS = "rows"  # MLflow's metric of them
KNOWN_TO_MLFLOW, KNOWN_TO_WANDB = "mlflow.json", "wandb.json"
"""In a run's folder: the run's name there."""
WANDB_PATIENCE = 60.0  # seconds for W&B to answer, and to take the last rows
MLFLOW_PARAMS, MLFLOW_METRICS, MLFLOW_LENGTH = 100, 1000, 500  # at most in a request; of a value


@dataclass(frozen=True)
class LogRow:
    """A line of the log, for a tracker."""

    step: int
    values: dict[str, float]
    """`train/loss`, `val/auroc`, ...: each number of the line that is finite."""


def row_of(line: dict[str, Any]) -> LogRow | None:
    """Of a `train` or `eval` line; an event has none: it may name images, which stay here."""
    if line["kind"] == "event":
        return None
    side = {"train": "train", "eval": "val"}[line["kind"]]
    numbers = {k: v for k, v in line.items() if k not in ("kind", "step")}
    finite = {
        f"{side}/{name}": float(value)
        for name, value in numbers.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    return LogRow(line["step"], finite)


def parameters(recipe: Recipe) -> dict[str, str]:
    """Every option of a resolved recipe by its dotted name, as YAML has it in one line."""
    found: dict[str, str] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        else:
            found[prefix] = value if isinstance(value, str) else json.dumps(value)

    walk("", recipe.model_dump(mode="json"))
    return found


class Tracker(Protocol):
    """One library. Its methods are called by one thread, and raise whatever the library does."""

    def open(self) -> int:
        """Finds the run or makes it; how many rows it has. Called again after any failure."""

    def send(self, rows: Sequence[LogRow]) -> None:
        """The rows that follow."""

    def close(self, finished: bool) -> None:
        """Nothing follows now; `finished`: nor ever."""


class TensorBoard:
    """Event files in the run's folder. What a killed process left in its queue is lost, so they are
    written anew from the log; a viewer that is open takes back what it had."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._new_writer = SummaryWriter
        self._folder, self._recipe = folder / "tensorboard", recipe
        self._writer: SummaryWriter | None = None

    def open(self) -> int:
        if self._writer is not None:
            self._writer.close()
        for file in self._folder.glob("events.out.tfevents.*"):
            os.truncate(
                file, 0
            )  # a viewer that reads it goes on to the next, as it would not after
            # one that is gone
        self._writer = self._new_writer(str(self._folder), purge_step=0)
        rows = (f"| {name} | `{value}` |" for name, value in parameters(self._recipe).items())
        self._writer.add_text("recipe", "\n".join(["| option | value |", "|---|---|", *rows]), 0)
        return 0

    def send(self, rows: Sequence[LogRow]) -> None:
        assert self._writer is not None
        for row in rows:
            for name, value in row.values.items():
                self._writer.add_scalar(name, value, row.step)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        assert self._writer is not None
        self._writer.close()


class MLflow:
    """A run of an experiment, on MLFLOW_TRACKING_URI or where MLflow itself keeps runs.

    How many rows it has stands in it, as the metric `rows`: MLflow writes a request's metrics in
    one transaction.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # its own retries take minutes, in which nobody is told; a follower tries again anyway
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._mlflow = mlflow
        self._folder, self._recipe = folder, recipe
        self._known = KnownAs(folder, KNOWN_TO_MLFLOW)
        self._client: Any = None
        self._run = ""
        self._rows = 0

    def open(self) -> int:
        known = self._known.read()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        uri = uri or (known["uri"] if known else self._mlflow.get_tracking_uri())
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        run = self._find(known["run"]) if known and known["uri"] == uri else None
        if run is None:
            run = self._new_run()
            self._known.write({"run": run.info.run_id, "uri": uri})
        self._run = run.info.run_id
        self._client.update_run(self._run, status="RUNNING")
        self._tell_recipe(run.data.params)
        self._rows = int(run.data.metrics.get(ROWS, 0))
        return self._rows

    def _find(self, run_id: str) -> Any | None:
        """None where somebody has deleted it."""
        try:
            run = self._client.get_run(run_id)
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _new_run(self) -> Any:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        return self._client.create_run(number, run_name=self._folder.resolve().name)

    def _tell_recipe(self, told: dict[str, str]) -> None:
        """A parameter keeps its first value, so what was changed since (loop.epochs) is a tag."""
        from mlflow.entities import Param, RunTag

        options = {**parameters(self._recipe), "folder": str(self._folder.resolve())}
        options = {key: value[:MLFLOW_LENGTH] for key, value in options.items()}
        new = [Param(key, value) for key, value in options.items() if key not in told]
        changed = [RunTag(k, v) for k, v in options.items() if told.get(k, v) != v]
        for start in range(0, len(new), MLFLOW_PARAMS):
            self._client.log_batch(self._run, params=new[start : start + MLFLOW_PARAMS])
        self._client.log_batch(self._run, tags=changed[:MLFLOW_PARAMS])

    def send(self, rows: Sequence[LogRow]) -> None:
        from mlflow.entities import Metric

        now, batch = int(time.time() * 1000), list[Metric]()
        for row in rows:
            self._rows += 1
            found = [Metric(name, value, now, row.step) for name, value in row.values.items()]
            found.append(Metric(ROWS, self._rows, now, self._rows))
            if len(batch) + len(found) > MLFLOW_METRICS:
                self._client.log_batch(self._run, metrics=batch)
                batch = []
            batch += found
        self._client.log_batch(self._run, metrics=batch)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


class WandB:
    """A run of W&B. W&B's own step counts rows, and `step` is the axis.

    A server says how many rows it has. Offline nobody does, and what a killed process left is
    incomplete: its files are written anew from the log.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self._folder, self._recipe = folder, recipe
        self._known = KnownAs(folder, KNOWN_TO_WANDB)
        self._run: Any = None
        self._sent = False

    def open(self) -> int:
        if self._run is not None and not (self._run.offline and self._sent):
            return self._run.step
        if self._run is not None:
            self._run.finish()
        known = self._known.read() or {"run": secrets.token_hex(4)}
        self._known.write(known)
        settings = self._settings()
        offline = self._log_in(settings)
        if offline:
            for files in (self._folder / "wandb").glob("offline-run-*"):
                shutil.rmtree(files)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=known["run"],
            name=self._folder.resolve().name,
            dir=str(self._folder),
            config={**parameters(self._recipe), "folder": str(self._folder.resolve())},
            resume=None if offline else "allow",
            settings=settings,
        )
        self._run.define_metric("*", step_metric="step")
        self._sent = False
        return self._run.step

    def _settings(self) -> Any:
        """No output on the terminal; nothing of the machine, the code or the user's command."""
        return self._wandb.Settings(
            silent=True, console="off", symlink=False, reinit="create_new",
            allow_val_change=True, save_code=False, disable_code=True, disable_git=True,
            x_disable_meta=True, x_disable_stats=True, x_save_requirements=False,
            init_timeout=WANDB_PATIENCE, finish_timeout=WANDB_PATIENCE, finish_timeout_raises=True,
        )  # fmt: skip

    def _log_in(self, settings: Any) -> bool:
        """Whether W&B is offline; without a key it would ask on the terminal. Raises UserError."""
        session = self._wandb.setup(self._wandb.Settings(silent=True)).settings
        if session.mode in ("offline", "dryrun", "disabled"):
            return session.mode != "disabled"
        if not self._wandb.login(prompt=False, verify=False):
            raise UserError("not logged in: run `wandb login`, or set WANDB_MODE=offline")
        return False

    def send(self, rows: Sequence[LogRow]) -> None:
        self._sent = True
        for row in rows:
            self._run.log({**row.values, "step": row.step})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class KnownAs:
    """Under which name a tracker has the run: a file in the run's folder."""

    def __init__(self, folder: Path, file: str) -> None:
        self._file = folder / file

    def read(self) -> dict[str, str] | None:
        """None: it has none yet."""
        if not self._file.exists():
            return None
        try:
            return json.loads(self._file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self._file}: cannot be read: {error}; remove it") from error

    def write(self, known: dict[str, str]) -> None:
        write_atomically(self._file, (json.dumps(known) + "\n").encode())
