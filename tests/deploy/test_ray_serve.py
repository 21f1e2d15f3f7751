"""deploy/ray_serve.py: on a local Ray, over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from servers import picture, until_ready, write_network

from densekit.infer.classifier import load
from runs import free_port

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
import ray
from ray import serve
import ray_serve

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=True)
serve.start(http_options={"port": int(sys.argv[1])})
options = ray_serve.Options(source=sys.argv[2], replicas=2, cpus=1)
serve.run(ray_serve.app(options))
sys.stdin.read()
serve.shutdown()
"""


@pytest.mark.slow
def test_two_replicas_answer_as_predict_does(tmp_path: Path) -> None:
    network = write_network(tmp_path / "best")
    pictures = [picture(seed) for seed in range(8)]
    expected = load(network, device="cpu").predict(pictures)
    port = free_port()
    path = [str(ROOT / "deploy"), str(ROOT / "src")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-c", SCRIPT, str(port), str(network)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            until_ready(url, process)
            with httpx.Client(base_url=url, timeout=60) as client:
                for image, row in zip(pictures, expected, strict=True):
                    answer = client.post("/v1/predict", files={"images": ("a", image)})
                    assert answer.status_code == 200
                    assert answer.json()["predictions"][0]["topk"] == row["topk"]
                assert client.post("/v1/predict", content=b"x").status_code == 415
                assert "densekit_images_total" in client.get("/metrics").text
                assert client.get("/").status_code == 200
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(120) == 0
        finally:
            process.kill()
