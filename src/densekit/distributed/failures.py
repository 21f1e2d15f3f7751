"""Ranks meet in a store, and each keeps a sign of life there for the others to read.

When a rank dies, the others notice only that a collective broke, or waited too long. The store
that torchrun keeps holds each rank's pulse and last words, so that they can say whose fault it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

PULSE = 1.0  # seconds
PATIENCE = 3.0 * PULSE  # a pulse unchanged for so long has stopped


class PeerFailed(Exception):  # noqa: N818 (what happened, not a mistake of this rank)
    """This rank cannot go on because another one failed; the message says which, and how."""


def meet(store: dist.Store, rank: int, world_size: int, timeout: float) -> str:
    """A name that all ranks of this attempt know, and none of an earlier one's.

    `torchrun --max-restarts` keeps one store for all attempts: under the same keys a rank that is
    early would read where a dead one listened. The restart count is no such name, for each node
    counts its own. So rank 0 makes a name up, every rank signs it with one of its own, and rank 0
    publishes the signatures: who does not find its own there has read an old name, and looks again.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("name", own)
        signatures = [f"{own}/{other}" for other in range(1, world_size)]
        store.wait(signatures, timedelta(seconds=timeout))
        store.set(own, " ".join(store.get(signature).decode() for signature in signatures))
        return own
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if store.check(["name"]):
            name = store.get("name").decode()
            store.set(f"{name}/{rank}", own)
            if store.check([name]) and own in store.get(name).decode().split():
                return name
        time.sleep(0.02)
    raise dist.DistStoreError(f"rank {rank} waited {timeout:.0f} s for rank 0 to start")


class Peers:
    """The pulses of `world_size` ranks in a store; a thread beats this rank's."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.step = 0
        self._ended = threading.Event()
        self._beat(0)
        self._thread = threading.Thread(target=self._run, name="densekit-pulse", daemon=True)
        self._thread.start()

    def close(self, failed: bool = False) -> None:
        """Ends this rank's pulse.

        After a failure rank 0, in whose process the store is unless a launcher keeps it, first
        waits for the others to have read whose fault it was.
        """
        others = [f"left/{rank}" for rank in self._others()]
        with contextlib.suppress(dist.DistError, RuntimeError):  # the store is gone already
            self.store.set(f"left/{self.rank}", "yes")
            deadline = time.monotonic() + 2 * PATIENCE
            while failed and self.rank == 0 and not _launcher_keeps_the_store():
                if self.store.check(others) or time.monotonic() > deadline:
                    break
                time.sleep(PULSE / 10)
        self._ended.set()
        self._thread.join()

    def say(self, last_words: str) -> None:
        """Leaves why this rank stops; nobody hears it where the store is gone too."""
        with contextlib.suppress(dist.DistError, RuntimeError):
            self.store.set(f"last words/{self.rank}", last_words)

    def culprit(self) -> str | None:
        """A sentence on the rank that broke a collective; None if all seem well.

        In this order: a rank that left last words, one whose pulse has stopped, one that is
        steps behind. Where the store is gone, so is the process that kept it.
        """
        try:
            return self._culprit()
        except (dist.DistError, RuntimeError):  # RuntimeError: of torch before DistNetworkError
            if _launcher_keeps_the_store():
                return "the launcher died: its store does not answer"
            return "rank 0 died: the store in its process does not answer"

    def _culprit(self) -> str | None:
        before, deadline = self._pulses(), time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for rank in self._others():
                if self.store.check([f"last words/{rank}"]):
                    return f"rank {rank} failed: {self.store.get(f'last words/{rank}').decode()}"
            time.sleep(PULSE / 10)
        now = self._pulses()
        silent = [rank for rank in self._others() if now[rank] == before[rank]]
        if silent:
            step = now[silent[0]]["step"]
            return f"rank {silent[0]} died, or stands still, in step {step}"
        behind = min(self._others(), key=lambda rank: now[rank]["step"])
        if now[behind]["step"] < self.step:
            return f"rank {behind} is stuck in step {now[behind]['step']}"
        return None

    def _others(self) -> list[int]:
        return [rank for rank in range(self.world_size) if rank != self.rank]

    def _run(self) -> None:
        beat = 0
        while not self._ended.wait(PULSE):
            beat += 1
            try:
                self._beat(beat)
            except RuntimeError:  # the store's process is gone, and the run with it
                return

    def _beat(self, beat: int) -> None:
        self.store.set(f"pulse/{self.rank}", json.dumps({"beat": beat, "step": self.step}))

    def _pulses(self) -> dict[int, dict[str, int]]:
        return {
            rank: json.loads(self.store.get(f"pulse/{rank}")) for rank in range(self.world_size)
        }


def _launcher_keeps_the_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
