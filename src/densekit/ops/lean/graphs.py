"""Inference as CUDA graphs: of one image nearly all of the time is launches. Unproved on a GPU."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

# Each graph holds its batch and its answers, and all share the maps between.
CAPTURED_SHAPES = 4


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    given: Tensor
    """The images, which it reads where they lie."""
    found: Tensor


class Graphs:
    """`call`, images to answers, as a graph for each shape of images that comes a second time.

    So a last, shorter batch costs no capture; it is launched kernel by kernel, as are the shapes
    after the first CAPTURED_SHAPES, calls while someone else captures, and those on another stream
    than the first capture's: graphs that share memory must not run beside each other. The network's
    weights must not change. Safe in threads.
    """

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        self._call = call
        self._seen: set[torch.Size] = set()
        self._graphs: dict[torch.Size, _Graph] = {}
        self._lock = threading.Lock()
        self._stream: torch.cuda.Stream | None = None
        self._full = False

    def __call__(self, x: Tensor) -> Tensor:
        """On x's device, which is torch's current one."""
        if torch.cuda.is_current_stream_capturing():
            return self._call(x)
        with self._lock:
            if x.shape not in self._graphs and self._is_due(x):
                self._capture(x)
            graph = self._graphs.get(x.shape)
            if graph is not None and torch.cuda.current_stream() == self._stream:
                graph.given.copy_(x)
                graph.graph.replay()
                return graph.found.clone()
        return self._call(x)

    def _is_due(self, x: Tensor) -> bool:
        again = x.shape in self._seen
        self._seen.add(x.shape)
        return again and not self._full and len(self._graphs) < CAPTURED_SHAPES

    def _capture(self, x: Tensor) -> None:
        """What it needs stays taken, so a GPU may be too full for it: a warning, and no graphs."""
        try:
            with torch.inference_mode(False), torch.no_grad():  # written to in any mode later
                given = torch.empty(x.shape, dtype=x.dtype, device=x.device)
                graph = torch.cuda.CUDAGraph()
                with self._capturing(graph):
                    found = self._call(given)
        except torch.OutOfMemoryError as error:
            self._full = True
            warnings.warn(f"no CUDA graph of {list(x.shape)}: {error}", stacklevel=2)
        else:
            self._stream = self._stream or torch.cuda.current_stream()
            self._graphs[x.shape] = _Graph(graph, given, found)

    def _capturing(self, graph: torch.cuda.CUDAGraph) -> AbstractContextManager[None]:
        """Other threads, such as the loader's, may go on with work of their own."""
        pool = next((g.graph.pool() for g in self._graphs.values()), None)
        return torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
