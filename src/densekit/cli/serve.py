"""`densekit serve`."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from densekit.cli.options import Classes, Device, Engine, MaxPixels, ModelName, PrecisionOption
from densekit.cli.output import show_notes


def serve(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="An artifact, a run, or weights (--model).")
    ],
    model: ModelName = None,
    classes: Classes = None,
    device: Device = "auto",
    precision: PrecisionOption = "fp32",
    engine: Engine = "auto",
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address to listen on; anything but loopback needs --token.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="0: any that is free.")
    ] = 8000,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, help="Processes on the port, on a CPU.")
    ] = 1,
    token: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--token",
            metavar="TOKEN",
            envvar="DENSEKIT_TOKEN",
            show_envvar=True,
            help="What clients send as Authorization: Bearer TOKEN.",
        ),
    ] = None,
    max_batch: Annotated[
        int,
        typer.Option("--max-batch", metavar="N", min=1, help="Images in one pass of the network."),
    ] = 32,
    max_wait_ms: Annotated[
        float,
        typer.Option(
            "--max-wait-ms",
            metavar="N",
            min=0,
            help="How long an idle network waits for a batch to fill.",
        ),
    ] = 0.0,
    max_queue: Annotated[
        int,
        typer.Option("--max-queue", metavar="N", min=1, help="Images in progress; more get 503."),
    ] = 256,
    max_images: Annotated[
        int, typer.Option("--max-images", metavar="N", min=1, help="Images of one request.")
    ] = 32,
    max_bytes: Annotated[
        int, typer.Option("--max-bytes", metavar="N", min=1, help="Bytes of one request.")
    ] = 32 * 2**20,
    max_pixels: MaxPixels = None,
    deadline: Annotated[
        float,
        typer.Option("--deadline", metavar="N", min=0.001, help="Seconds per request; then 504."),
    ] = 30.0,
    body_seconds: Annotated[
        float,
        typer.Option(
            "--body-seconds", metavar="N", min=0.001, help="Seconds for a body to arrive."
        ),
    ] = 60.0,
    drain_seconds: Annotated[
        float,
        typer.Option(
            "--drain-seconds",
            metavar="N",
            min=0,
            help="After SIGTERM, for a balancer to see that /readyz says no.",
        ),
    ] = 2.0,
) -> None:
    """Serve a network over HTTP, with a page at /: predictions, maps, metrics, KServe's protocol.

    Stop it with Ctrl-C or SIGTERM; requests in progress are answered first.

    [bold]Examples[/]

      densekit serve runs/quickstart/best  # http://127.0.0.1:8000
      curl -F images=@photo.jpg http://127.0.0.1:8000/v1/predict
      DENSEKIT_TOKEN=... densekit serve runs/pets/best --host 0.0.0.0 --workers 4
    """
    from dataclasses import replace

    from densekit.config import needs_extra

    with needs_extra("serve", "serving"):
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    from densekit.serve.limits import Limits
    from densekit.serve.run import (
        Serving,
        check_setup,
        is_loopback,
        listening,
        serve_here,
        threads_of,
    )
    from densekit.serve.workers import Workers

    limits = Limits(
        max_batch, max_wait_ms, max_queue, max_images, max_bytes, deadline=deadline,
        body_seconds=body_seconds,
    )  # fmt: skip
    if max_pixels is not None:
        limits = replace(limits, max_pixels=max_pixels)
    serving = Serving(
        source, model, classes, device, precision, engine, limits, token or None, is_loopback(host),
        drain_seconds, threads_of(workers),
    )  # fmt: skip
    show_notes(check_setup(serving, workers))
    with listening(host, port, serving.token) as listener:
        address = f"[{host}]" if ":" in host else host
        print(f"http://{address}:{listener.getsockname()[1]}", flush=True)
        if workers == 1:
            code = serve_here(serving, listener)
        else:
            code = Workers(serving, listener, workers).run()
    raise typer.Exit(code)
