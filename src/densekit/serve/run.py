"""The serving process, or a parent that keeps several serving on one port."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import threading
from dataclasses import dataclass, field

import torch
from PIL import EpsImagePlugin
from starlette.types import ASGIApp

from densekit import distributed
from densekit.config import UserError
from densekit.infer.classifier import Classifier
from densekit.infer.engines import resolve_engine
from densekit.infer.model import device_of, open_path
from densekit.precision import FLAG, Precision, keep_freed_memory, resolve
from densekit.serve.app import application
from densekit.serve.card import model_card
from densekit.serve.guard import LOOPBACK, Life
from densekit.serve.limits import Limits
from densekit.serve.measures import Measures
from densekit.serve.server import server
from densekit.serve.service import Service

BACKLOG = 2048  # connections that the kernel queues until they are accepted


@dataclass(frozen=True)
class Serving:
    """Everything a process needs to serve; pickled to workers."""

    source: str
    model: str | None = None
    """For a weights file: the variant."""
    classes: str | None = None
    """For a weights file: the file of class names."""
    device: str = "auto"
    precision: str = "fp32"
    engine: str = "auto"
    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    local: bool = True
    """Whether it listens only on loopback."""
    drain_seconds: float = 2.0
    threads: int | None = None
    """CPU threads of the network; None: torch's default."""


def check_setup(serving: Serving, workers: int) -> tuple[str, ...]:
    """Opens the network once as a check; returns notes for the user. Raises UserError."""
    serving.limits.check()
    precision = formats(serving)
    if workers > 1 and precision.device.type != "cpu":
        raise UserError(
            f"--workers {workers}: on a {precision.device.type} device one process batches for "
            "all requests; leave --workers out"
        )
    if serving.token is not None and not (serving.token.isascii() and serving.token.isprintable()):
        raise UserError("--token: a header carries ASCII; choose letters, digits and - . _ ~")
    opened = open_path(serving.source, serving.model, serving.classes)
    resolve_engine(opened, serving.engine)
    return opened.notes


def formats(serving: Serving) -> Precision:
    device = device_of(serving.source, serving.device)
    return resolve(device, serving.precision, typed=FLAG)


def listening(host: str, port: int, token: str | None) -> socket.socket:
    """The bound socket. Raises UserError if it cannot be bound, or is unsafe without a token."""
    if not token and not is_loopback(host):
        raise UserError(
            f"--host {host}: others could reach this server, so it needs --token (or the variable "
            "DENSEKIT_TOKEN); without one it listens on 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}") from error


def is_loopback(host: str) -> bool:
    return host in LOOPBACK or host.startswith("127.")


def open_application(serving: Serving, life: Life) -> ASGIApp:
    """The application, with the network warmed up. Raises UserError."""
    EpsImagePlugin.gs_binary = False  # never start Ghostscript on a client's data
    keep_freed_memory()
    if serving.threads is not None:
        torch.set_num_threads(serving.threads)
    opened = open_path(serving.source, serving.model, serving.classes)
    precision = formats(serving)
    classifier = Classifier(opened, precision, serving.limits.max_pixels, serving.engine)
    labels = {
        "name": opened.name,
        "task": opened.task,
        "engine": classifier.engine,
        "device": precision.device.type,
        "precision": precision.name,
    }
    service = Service(classifier, serving.limits, Measures(labels))
    service.warm_up()
    card = model_card(serving.source, classifier, serving.limits, maps=service.no_maps is None)
    return application(service, card, life, serving.token, serving.local)


def serve_here(serving: Serving, listener: socket.socket) -> int:
    """Serves until a signal ends it; returns the exit code. Accepts requests once warmed up."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    life = Life()
    app = open_application(serving, life)
    server(app, serving.limits, life, serving.drain_seconds).run(sockets=[listener])
    return 0


def serve_as_worker(serving: Serving, listener: socket.socket) -> None:
    """A worker process: it ends with its parent."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    raise SystemExit(serve_here(serving, listener))


def threads_of(workers: int) -> int | None:
    """A worker's share of the cores; None for a single worker."""
    return max(1, distributed.cores() // workers) if workers > 1 else None
