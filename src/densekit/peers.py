"""Which rank failed: each rank keeps a sign of life where the others can read it.

When a rank dies, the others notice only that a collective broke, or waited too long. The store
that torchrun keeps holds each rank's pulse and last words, so that they can say whose fault it was.
"""

from __future__ import annotations

import json
import threading
import time

import torch.distributed as dist

PULSE = 1.0  # seconds
PATIENCE = 3.0 * PULSE  # a pulse unchanged for so long has stopped


class Peers:
    """Pulses through a store, [world_size] ranks; a daemon thread beats this rank's."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.step = 0
        self._stop = threading.Event()
        self._beat(0)
        self._thread = threading.Thread(target=self._run, name="densekit-pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def last_words(self, text: str) -> None:
        """Leaves why this rank stops."""
        self.store.set(f"last words/{self.rank}", text)

    def culprit(self) -> str | None:
        """A sentence on the rank whose failure broke a collective; None if all seem well.

        In this order: a rank that left last words, one whose pulse has stopped, one that is
        steps behind.
        """
        before = self._pulses()
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for rank in range(self.world_size):
                if rank != self.rank and self.store.check([f"last words/{rank}"]):
                    words = self.store.get(f"last words/{rank}").decode()
                    return f"rank {rank} stopped: {words}"
            time.sleep(PULSE / 10)
        now = self._pulses()
        silent = [r for r in now if r != self.rank and now[r] == before[r]]
        if silent:
            return f"rank {silent[0]} died or is stuck after step {now[silent[0]]['step']}"
        behind = min(now, key=lambda r: now[r]["step"])
        if now[behind]["step"] < self.step and behind != self.rank:
            return f"rank {behind} is stuck after step {now[behind]['step']}"
        return None

    def _run(self) -> None:
        beat = 0
        while not self._stop.wait(PULSE):
            beat += 1
            try:
                self._beat(beat)
            except (RuntimeError, dist.DistError):  # the store's process is gone: so is the run
                return

    def _beat(self, beat: int) -> None:
        self.store.set(f"pulse/{self.rank}", json.dumps({"beat": beat, "step": self.step}))

    def _pulses(self) -> dict[int, dict[str, int]]:
        return {
            r: json.loads(self.store.get(f"pulse/{r}")) for r in range(self.world_size)
        }
