"""run.py, server.py, workers.py: SIGTERM and killed workers amid load lose no request."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from servers import Served, picture, serving

from densekit.infer.classifier import Classifier

PICTURES = [picture(seed) for seed in range(40)]


class Clients:
    """Threads that ask again and again, each for its own pictures.

    As a balancer does, a client whose connection breaks before an answer came asks once more (on
    a new connection: predicting changes nothing), and one that is told to close goes elsewhere.
    """

    def __init__(self, url: str, count: int, classifier: Classifier) -> None:
        rows = classifier.predict(PICTURES, topk=1)
        self._classes = [row["topk"][0]["class"] for row in rows]
        self._url, self._stop = url, threading.Event()
        self.asked: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()
        self.broken = self.wrong = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        turn = number
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._stop.is_set():
                answer = self._once(client, turn)
                if answer.headers.get("connection") == "close":
                    return
                turn += 17

    def _once(self, client: httpx.Client, turn: int) -> httpx.Response:
        place = turn % len(PICTURES)
        with self._lock:
            self.asked[turn] += 1
        files = {"a": (f"{turn}", PICTURES[place])}
        try:
            answer = client.post("/v1/predict?topk=1", files=files)
        except httpx.TransportError:
            with self._lock:
                self.broken += 1
            answer = client.post("/v1/predict?topk=1", files=files)
        (row,) = answer.json()["predictions"]
        with self._lock:
            self.answered[int(row["file"])] += 1
            self.wrong += row["topk"][0]["class"] != self._classes[place]
        return answer

    def end(self) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()


def until(what: object, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sigterm_amid_load_answers_everybody(
    network: Path, classifier: Classifier, tmp_path: Path
) -> None:
    with serving(network, tmp_path, "--drain-seconds", "1") as served:
        clients = Clients(served.url, 16, classifier)
        until(lambda: sum(clients.answered.values()) > 50)
        served.send(signal.SIGTERM)
        until(lambda: httpx.get(f"{served.url}/readyz").status_code == 503)
        clients.join()  # each is answered, and told to close
        served.process.join(60)
        assert served.process.exitcode == 0
    assert clients.asked == clients.answered
    assert clients.broken == clients.wrong == 0


def test_a_second_signal_skips_the_wait(network: Path, tmp_path: Path) -> None:
    with serving(network, tmp_path, "--drain-seconds", "3600") as served:
        served.send(signal.SIGTERM)
        until(lambda: httpx.get(f"{served.url}/readyz").status_code == 503)
        served.send(signal.SIGTERM)
        served.process.join(60)
        assert served.process.exitcode == 0


def worker_pids(served: Served) -> list[int]:
    """Of the children that serve: multiprocessing's tracker is one that does not."""
    tasks = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text()
    pids = [int(pid) for pid in tasks.split()]
    command = "spawn_main"
    return [pid for pid in pids if command in Path(f"/proc/{pid}/cmdline").read_text()]


def load_with_kills(
    network: Path, classifier: Classifier, folder: Path, seconds: float, every: float
) -> tuple[Clients, int]:
    """Clients, and how many workers were killed beside them."""
    kills = 0
    with serving(network, folder, "--workers", "2", "--drain-seconds", "1") as served:
        until(lambda: served.metric("densekit_ready") == 2)
        clients = Clients(served.url, 16, classifier)
        stop = time.monotonic() + seconds
        while time.monotonic() < stop:
            until(lambda: len(worker_pids(served)) == 2)
            until(lambda: served.metric("densekit_ready") == 2)
            os.kill(worker_pids(served)[kills % 2], signal.SIGKILL)
            kills += 1
            time.sleep(every)
        served.send(signal.SIGTERM)
        clients.join()
        served.process.join(60)
        assert served.process.exitcode == 0
        said = served.output.read_text()
    assert len(re.findall(r"a worker ended \(exit code -9\)", said)) == kills
    assert clients.asked == clients.answered  # none lost, none twice
    assert clients.wrong == 0
    assert clients.broken <= 16 * kills  # what was in a killed worker's hands
    return clients, kills


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_killed_workers_lose_no_request(
    network: Path, classifier: Classifier, tmp_path: Path
) -> None:
    clients, kills = load_with_kills(network, classifier, tmp_path, 60, 3)
    assert kills >= 3
    assert sum(clients.answered.values()) > 500


@pytest.mark.slow
def test_workers_that_cannot_live_are_given_up(network: Path, tmp_path: Path) -> None:
    """A worker that ends as it starts is not started for ever."""
    with serving(network, tmp_path, "--workers", "2") as served:
        until(lambda: served.metric("densekit_ready") == 2)
        (network_copy := tmp_path / "gone").mkdir()
        files = {file: network_copy / file.name for file in network.iterdir()}
        try:
            for file, away in files.items():
                file.rename(away)
            os.kill(worker_pids(served)[0], signal.SIGKILL)
            served.process.join(120)
            assert served.process.exitcode == 3
            assert "giving up" in served.output.read_text()
        finally:
            for file, away in files.items():
                away.rename(file)


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(network: Path, tmp_path: Path) -> None:
    with serving(network, tmp_path, "--workers", "2") as served:
        until(lambda: served.metric("densekit_ready") == 2)
        workers = worker_pids(served)
        served.process.kill()
        until(lambda: not [pid for pid in workers if is_running(pid)])


def is_running(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_metrics_are_those_of_all_workers(network: Path, tmp_path: Path) -> None:
    with serving(network, tmp_path, "--workers", "2") as served:
        until(lambda: served.metric("densekit_ready") == 2)
        for i in range(20):  # on connections of their own
            httpx.post(f"{served.url}/v1/predict", files={"a": PICTURES[i]})
        assert served.metric("densekit_images_total") == 20
