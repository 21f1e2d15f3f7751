"""The metrics at /metrics. They hold counts, sizes and times of requests, nothing else of them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.process_collector import ProcessCollector

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus-client's variable: the folder in which workers share their counters."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Measures:
    """This process' counters; with several workers `text` sums over all of them."""

    def __init__(self, model: Mapping[str, str]) -> None:
        """`model`: the labels of densekit_model_info."""
        disable_created_metrics()  # a second series per counter that nobody needs
        self._registry = CollectorRegistry()
        shared = SHARED in os.environ

        def histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, help_text, buckets=buckets, registry=self._registry)

        self.requests = Counter(
            "densekit_requests", "Requests by route and status; 499: the client left.",
            ["route", "status"], registry=self._registry,
        )  # fmt: skip
        self.request_seconds = Histogram(
            "densekit_request_seconds", "From a request's head to its answer's last byte.",
            ["route"], buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self.images = Counter(
            "densekit_images", "Images by result: answered, unreadable, failed.",
            ["result"], registry=self._registry,
        )  # fmt: skip
        self.decode_seconds = histogram(
            "densekit_decode_seconds", "An image's decoding and preprocessing.", SECONDS
        )
        self.queue_seconds = histogram(
            "densekit_queue_seconds", "An image's wait for the network, decoded.", SECONDS
        )
        self.compute_seconds = histogram(
            "densekit_compute_seconds", "A batch in the network.", SECONDS
        )
        self.batch_images = histogram("densekit_batch_images", "Images in a batch.", IMAGES)
        self.under_way = Gauge(
            "densekit_images_under_way", "Images of requests without their answer yet.",
            registry=self._registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self.ready = Gauge(
            "densekit_ready", "Workers that take requests.",
            registry=self._registry, multiprocess_mode="livesum",
        )  # fmt: skip
        info = Gauge(
            "densekit_model_info", "The network, in its labels.", list(model),
            registry=self._registry, multiprocess_mode="max",
        )  # fmt: skip
        info.labels(**model).set(1)
        if not shared:
            ProcessCollector(registry=self._registry)

    def text(self) -> tuple[bytes, str]:
        """The response's bytes and content type."""
        registry = self._registry
        if SHARED in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST
