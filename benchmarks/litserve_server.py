"""LitServe around the same classifier, for benchmarks/run.py: only the server is another one.

    python benchmarks/litserve_server.py FOLDER --port 8001 --batch 32 --wait 0.01

Needs `pip install litserve`.
"""

import argparse
from typing import Any

import litserve
from fastapi import Request

from densekit.infer.classifier import Classifier
from densekit.infer.model import open_path
from densekit.precision import keep_freed_memory, resolve


class Api(litserve.LitAPI):
    """Files in, rows out."""

    def __init__(self, folder: str, precision: str, batch: int, wait: float) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=wait)
        self._folder, self._precision, self._batch = folder, precision, batch

    def setup(self, device: str) -> None:
        keep_freed_memory()
        opened = open_path(self._folder)
        self.classifier = Classifier(opened, resolve("cpu", self._precision))

    def decode_request(self, request: Request) -> bytes:
        return request["images"].file.read()

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, files: Any) -> Any:
        """`files` are a list; a single one where batches are of one."""
        rows = self.classifier.predict([files] if isinstance(files, bytes) else files, topk=5)
        return rows[0] if isinstance(files, bytes) else rows

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Any:
        return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--wait", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--fast-queue", action="store_true")
    asked = parser.parse_args()
    server = litserve.LitServer(
        Api(asked.folder, asked.precision, asked.batch, asked.wait),
        accelerator="cpu",
        workers_per_device=asked.workers,
        fast_queue=asked.fast_queue,
    )
    server.run(
        host="127.0.0.1", port=asked.port, num_api_servers=1, generate_client_file=False,
        log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    main()
