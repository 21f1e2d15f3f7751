"""One server for all tests of a file that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from servers import Served, serving, write_network

from densekit.infer.classifier import Classifier, load


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("network") / "best")


@pytest.fixture(scope="session")
def classifier(network: Path) -> Classifier:
    """What the server should answer."""
    return load(network, device="cpu")


@pytest.fixture(scope="module")
def server(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = ("--max-bytes", "300000", "--max-images", "4", "--max-pixels", "50000")
    with serving(network, tmp_path_factory.mktemp("served"), *limits) as served:
        yield served


@pytest.fixture
def client(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
