"""Fixtures that several rooms' tests share, and the rule on skipped tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:  # pytest-xdist's main process runs no test: it need not import torch
    from runs import Runs

# OpenMP's threads that wait for one another spin, and so take the core that the awaited one needs
# when more of them compute than there are cores: small networks took 20 times as long. Read when
# torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# no timing assertions: a machine under load draws and runs examples slowly
hypothesis.settings.register_profile(
    "densekit",
    deadline=None,
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(  # of kernels that are slow, or compiled for each
    "few", hypothesis.settings.get_profile("densekit"), max_examples=10
)
hypothesis.settings.load_profile("densekit")

GPU_SECONDS = 30  # that a test on a GPU may take

SKIPPED: list[tuple[str, str]] = []


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder that DENSEKIT_TEST_DATA names; tests that need it are skipped without it."""
    folder = os.environ.get("DENSEKIT_TEST_DATA")
    if not folder:
        pytest.skip("DENSEKIT_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Starts real runs; what is still alive at the end is killed."""
    from runs import Runs, write_digits

    made = Runs(write_digits(tmp_path_factory.mktemp("digits")), tmp_path_factory.mktemp("runs"))
    yield made
    made.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked gpu are neither run nor reported as skipped where there is no CUDA device, nor
    are those marked interpreted without Triton's interpreter.

    Files that start runs come first: pytest-xdist deals files out in this order, and a long one at
    the end would leave the other processes idle.
    """
    import torch

    can = {
        "gpu": torch.cuda.is_available(),
        "interpreted": os.environ.get("TRITON_INTERPRET") == "1",
    }
    for mark in (mark for mark, possible in can.items() if not possible):
        left_out = [item for item in items if item.get_closest_marker(mark)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker(mark)]
    starting = {item.path for item in items if "runs" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in starting)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test on a GPU has a time limit of its own: time on one is short."""
    if item.get_closest_marker("gpu") is None:
        return (yield)

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {GPU_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(GPU_SECONDS)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple | list):
        SKIPPED.append((report.nodeid, str(report.longrepr[2]).removeprefix("Skipped: ")))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With DENSEKIT_ALLOWED_SKIPS=FILE, a skip for a reason that the file does not list fails.

    Of pytest-xdist's processes the one that collects the reports judges.
    """
    file = os.environ.get("DENSEKIT_ALLOWED_SKIPS")
    if not file or hasattr(session.config, "workerinput"):
        return
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    allowed = {line for line in lines if line and not line.startswith("#")}
    surprises = [f"{test}: {reason}" for test, reason in SKIPPED if reason not in allowed]
    if surprises:
        print(f"\nskipped, and not on the list in {file}:", *surprises, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
