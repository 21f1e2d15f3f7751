"""densekit's service on Ray Serve: every replica is a whole one, with batches of its own.

    pip install "densekit[serve]" "ray[serve]"
    serve run --app-dir deploy ray_serve:app source=$PWD/runs/pets/best replicas=4

answers on http://127.0.0.1:8000 as `densekit serve` does. DENSEKIT_TOKEN is its token.
"""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from densekit.serve.guard import Life
from densekit.serve.limits import Limits
from densekit.serve.run import Serving, open_application


class Options(BaseModel):
    """What stands behind `ray_serve:app`, as name=value."""

    model_config = ConfigDict(extra="forbid")
    source: str = Field(description="An artifact's folder, on every node; or hf-hub:org/name.")
    replicas: int = Field(1, ge=1)
    cpus: int = Field(2, ge=1, description="Of a replica; its network's threads.")
    gpus: float = Field(0, ge=0, description="Of a replica.")
    precision: str = "fp32"
    engine: str = "auto"
    max_batch: int = Field(32, ge=1)
    max_queue: int = Field(256, ge=1, description="Of a replica; past it 503.")


def app(options: Options) -> Application:
    """What Ray runs."""
    limits = Limits(max_batch=options.max_batch, max_queue=options.max_queue)
    limits.check()
    token = os.environ.get("DENSEKIT_TOKEN") or None
    serving = Serving(
        options.source,
        device="cuda" if options.gpus else "cpu",
        precision=options.precision,
        engine=options.engine,
        limits=limits,
        token=token,
        threads=options.cpus,
    )

    def build() -> ASGIApp:
        """In a replica."""
        return open_application(serving, Life())

    configured = serve.deployment(
        name="densekit",
        num_replicas=options.replicas,
        max_ongoing_requests=2 * options.max_queue,  # so that the 503 is the service's own
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
    )
    return configured(serve.ingress(build)()).bind()
