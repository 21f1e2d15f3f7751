"""deploy/: what its files say of the service is so: its metrics, paths, options and steps."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.main
import yaml
from click import Command
from prometheus_client.parser import text_string_to_metric_families
from servers import Served, picture, serving, until_ready, write_network

from densekit.cli.main import app
from densekit.serve.limits import Limits
from runs import free_port

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"


def documents(file: Path) -> list[Any]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


COMPOSE = documents(DEPLOY / "docker-compose.yml")[0]
KUBERNETES = {
    found["kind"]: found
    for file in (DEPLOY / "kubernetes").glob("*.yaml")
    for found in documents(file)
}
POD = KUBERNETES["Deployment"]["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]
BOARD = json.loads((DEPLOY / "grafana/dashboards/densekit.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that has answered and refused."""
    network = write_network(tmp_path_factory.mktemp("network") / "best")
    with serving(network, tmp_path_factory.mktemp("served")) as running:
        url = f"{running.url}/v1/predict"
        assert httpx.post(url, files={"images": picture(0)}).status_code == 200
        assert httpx.post(url, content=b"no picture").status_code == 415
        yield running


# Prometheus and Grafana ---------------------------------------------------------------------


def queries() -> dict[str, str]:
    """Each panel's title, and what it asks for."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in BOARD["panels"]
        for target in panel["targets"]
    }


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(served: Served) -> None:
    text = httpx.get(f"{served.url}/metrics").text
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    asked = queries()
    assert len(asked) >= 10
    for title, query in asked.items():
        names = set(re.findall(r"\b(?:densekit|process)_\w+", query))
        assert names, title
        assert names <= set(labels), title
        grouped = re.findall(r"\bby \(([^)]*)\)", query)
        matched = re.findall(r"\{([^}]*)\}", query)
        wanted = {word.strip() for group in grouped for word in group.split(",")}
        wanted |= {re.split(r"[=!~]", one)[0] for m in matched for one in m.split(",")}
        assert wanted <= set.union(*(labels[name] for name in names)), title


def test_the_dashboard_shows_every_metric_of_ours(served: Served) -> None:
    text = httpx.get(f"{served.url}/metrics").text
    ours = {f.name for f in text_string_to_metric_families(text) if f.name.startswith("densekit_")}
    shown = " ".join(queries().values())
    assert len(ours) >= 9
    assert [name for name in sorted(ours) if name not in shown] == []


def test_the_dashboards_source_is_the_one_that_is_provisioned() -> None:
    (source,) = documents(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")[0][
        "datasources"
    ]
    used = {panel["datasource"]["uid"] for panel in BOARD["panels"]}
    assert used == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    (provider,) = documents(DEPLOY / "grafana/provisioning/dashboards/densekit.yml")[0]["providers"]
    mounts = COMPOSE["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_prometheus_scrapes_the_service_with_its_token() -> None:
    (job,) = documents(DEPLOY / "prometheus.yml")[0]["scrape_configs"]
    port = DOCKER["EXPOSE"][0]
    assert job["static_configs"][0]["targets"] == [f"densekit:{port}"]
    name = Path(job["authorization"]["credentials_file"])
    assert name.parent == Path("/run/secrets")
    assert COMPOSE["services"]["prometheus"]["secrets"] == [name.name]
    assert COMPOSE["secrets"][name.name]["environment"] == "DENSEKIT_TOKEN"


# Paths, options, times ----------------------------------------------------------------------


def test_probes_ask_for_paths_that_the_service_has(served: Served) -> None:
    paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    probes = {kind: CONTAINER[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness")}
    assert {probe["path"] for probe in probes.values()} == {"/readyz"}
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/healthz"
    (job,) = documents(DEPLOY / "prometheus.yml")[0]["scrape_configs"]
    (endpoint,) = KUBERNETES["ServiceMonitor"]["spec"]["endpoints"]
    (health,) = re.findall(r"127\.0\.0\.1:8000(/\w+)", " ".join(DOCKER["HEALTHCHECK"]))
    for path in ("/readyz", "/healthz", job["metrics_path"], endpoint["path"], health):
        assert "get" in paths[path], path
        assert httpx.get(f"{served.url}{path}").status_code == 200


def serve_command() -> Command:
    return typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("where", ["Dockerfile", "Kubernetes"])
def test_the_command_line_is_one_that_serve_takes(where: str) -> None:
    words = json.loads(DOCKER["CMD"][0]) if where == "Dockerfile" else CONTAINER["args"]
    taken = serve_command().make_context("serve", list(words)).params
    assert taken["source"] == "/model"
    assert taken["host"] == "0.0.0.0"
    assert str(taken["port"]) == DOCKER["EXPOSE"][0]
    assert json.loads(DOCKER["ENTRYPOINT"][0]) == ["densekit", "serve"]


def test_there_is_time_to_answer_before_the_kill() -> None:
    """What SIGTERM begins takes the drain, a deadline, and some seconds more at the most."""
    kubernetes = serve_command().make_context("serve", list(CONTAINER["args"])).params
    compose = serve_command().make_context("serve", ["/model"]).params
    given = POD["spec"]["terminationGracePeriodSeconds"]
    assert given >= kubernetes["drain_seconds"] + Limits().deadline + 5
    grace = COMPOSE["services"]["densekit"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) >= compose["drain_seconds"] + Limits().deadline + 5
    assert kubernetes["drain_seconds"] > CONTAINER["readinessProbe"]["periodSeconds"]


def test_the_manifests_belong_together() -> None:
    labels = POD["metadata"]["labels"]
    port = CONTAINER["ports"][0]
    assert str(port["containerPort"]) == DOCKER["EXPOSE"][0]
    for kind, selector in {
        "Deployment": KUBERNETES["Deployment"]["spec"]["selector"]["matchLabels"],
        "Service": KUBERNETES["Service"]["spec"]["selector"],
        "PodDisruptionBudget": KUBERNETES["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    }.items():
        assert selector.items() <= labels.items(), kind
    service = KUBERNETES["Service"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    monitor = KUBERNETES["ServiceMonitor"]["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    token = CONTAINER["env"][0]["valueFrom"]["secretKeyRef"]
    assert monitor["endpoints"][0]["authorization"]["credentials"] == token
    target = KUBERNETES["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == KUBERNETES["Deployment"]["metadata"]["name"]
    mounts = {mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert mounts == {volume["name"] for volume in POD["spec"]["volumes"]}


def test_what_compose_mounts_is_there() -> None:
    named = set(COMPOSE["volumes"])
    for name, service in COMPOSE["services"].items():
        for volume in service["volumes"]:
            source = volume.rsplit(":", 2 if volume.endswith(":ro") else 1)[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), name
            else:
                assert source in named or source.startswith("${MODEL"), name
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")
    build = COMPOSE["services"]["densekit"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE


# The image ----------------------------------------------------------------------------------


def instructions() -> dict[str, list[str]]:
    """What the Dockerfile says, by instruction, in order."""
    found: dict[str, list[str]] = {}
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, rest = line.split(maxsplit=1)
            found.setdefault(name, []).append(rest)
    return found


DOCKER = instructions()
PIP = [step for step in DOCKER["RUN"] if step.startswith("pip ")]


def test_the_image_is_of_what_there_is_and_is_not_root() -> None:
    assert DOCKER["USER"] == ["10001:10001"]
    assert POD["spec"]["securityContext"]["runAsUser"] == 10001
    assert all("slim" in base for base in DOCKER["FROM"])
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = [x for step in DOCKER["COPY"] if "--from" not in step for x in step.split()[:-1]]
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name in allowed, name
    (extras,) = re.findall(r"\[([\w,]+)\]", PIP[-1])
    assert set(extras.split(",")) <= set(metadata("densekit").get_all("Provides-Extra") or ())


@pytest.mark.slow
def test_its_steps_make_a_service_in_a_bare_environment(tmp_path: Path) -> None:
    """The wheel that it builds, of the files that it copies, serves as its command says, where its
    health check finds it. Installed beside this environment's libraries, without the network."""
    source = tmp_path / "src"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    wheel, _, install = PIP
    offline = "--no-build-isolation --no-index"
    build = wheel.replace("/wheels", str(tmp_path / "wheels")).replace("/src", str(source))
    run(f"{sys.executable} -m {build} {offline}")

    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare/bin/python"
    (site,) = (tmp_path / "bare/lib").glob("python*/site-packages")
    libraries = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    (site / "libraries.pth").write_text(f"{libraries}\n")
    step = install.replace("/wheels", str(tmp_path / "wheels"))
    run(f"{python} -m {step} --no-index --ignore-installed --no-deps")

    port = str(free_port())
    network = write_network(tmp_path / "best")
    words = [*json.loads(DOCKER["ENTRYPOINT"][0]), *json.loads(DOCKER["CMD"][0])]
    words = [{"/model": str(network), "8000": port}.get(word, word) for word in words]
    environment = {"DENSEKIT_TOKEN": "secret", "DENSEKIT_CACHE": str(tmp_path / "cache")}
    command = [str(tmp_path / "bare/bin" / words[0]), *words[1:]]
    health = json.loads(DOCKER["HEALTHCHECK"][0].split("CMD ")[1])
    with subprocess.Popen(command, env={**environment, "PATH": "/usr/bin:/bin"}) as process:
        try:
            until_ready(f"http://127.0.0.1:{port}", process)
            check = [str(python), *(word.replace("8000", port) for word in health[1:])]
            assert subprocess.run(check, check=False).returncode == 0
            headers = {"Authorization": "Bearer secret", "Host": "pets.example.com"}
            files = {"images": picture(1)}
            url = f"http://127.0.0.1:{port}"
            answer = httpx.post(f"{url}/v1/predict", files=files, headers=headers)
            assert answer.status_code == 200
            assert "densekit" in httpx.get(url, headers=headers).text  # the page is in the wheel
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


def run(step: str) -> None:
    """As a shell does, without this test's own packages in sight."""
    done = subprocess.run(
        ["sh", "-c", step], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{shlex.quote(step)}\n{done.stdout}{done.stderr}"
