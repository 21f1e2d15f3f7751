"""guard.py: hosts, the token, and headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from servers import Served, picture, serving

from runs import densekit

TOKEN = "a-long-secret"


@pytest.fixture(scope="module")
def guarded(network: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        network, tmp_path_factory.mktemp("served"), "--token", TOKEN, "--host", "0.0.0.0"
    ) as served:
        yield served


def test_only_loopback_names_are_answered_without_a_token(client: httpx.Client) -> None:
    for name in ("localhost", "127.0.0.1:8000", "[::1]:80", "LOCALHOST"):
        assert client.get("/v1/model", headers={"host": name}).status_code == 200
    for name in ("evil.example", "127.0.0.1.evil.example", "localhost.evil", ""):
        answer = client.get("/v1/model", headers={"host": name})
        assert answer.status_code == 421
        assert "Host: localhost" in answer.json()["error"]


def test_all_but_probes_and_page_need_the_token(guarded: Served) -> None:
    with httpx.Client(base_url=guarded.url) as client:
        for path in ("/", "/page.js", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for given in (None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
            headers = {} if given is None else {"authorization": given}
            for path in ("/v1/model", "/metrics", "/openapi.json", "/v2", "/nothing"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
            assert client.post("/v1/predict", headers=headers).status_code == 401
        right = {"authorization": f"bearer {TOKEN}"}
        sent = {"a": picture(0)}
        assert client.post("/v1/predict", headers=right, files=sent).status_code == 200
        assert client.get("/v1/model", headers={**right, "host": "a.example"}).status_code == 200
    assert TOKEN not in guarded.output.read_text()


def test_elsewhere_than_on_loopback_a_token_is_needed(network: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        done = densekit("serve", network, "--host", host, "--port", "0")
        assert done.returncode == 2
        assert "so it needs --token" in done.stderr


def test_no_other_site_may_read_an_answer(client: httpx.Client) -> None:
    for method in ("GET", "OPTIONS"):
        answer = client.request(method, "/v1/model", headers={"origin": "https://evil.example"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert client.get("/v1/model").headers["cache-control"] == "no-store"
    assert "'unsafe" not in client.get("/").headers["content-security-policy"]
    assert client.get("/").headers["x-content-type-options"] == "nosniff"


def test_the_page_is_sent_once(client: httpx.Client) -> None:
    first = client.get("/page.js")
    again = client.get("/page.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
