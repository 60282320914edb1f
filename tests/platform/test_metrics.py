"""A real Prometheus scrapes a real search and the operator beside it; an alert fires when the store goes, and clears.

The programs run as processes against a control plane, and a thread plays the node. The rules are the chart's, but for
how long something must be so.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3_server
import yaml
from cluster_fixtures import REPOSITORY, ControlPlane
from controller.node import Node
from controller.test_process import Bench
from hack.cluster import binaries
from hack.cluster.network import choose_ports
from patience import HANG_SECONDS, eventually

from nas_api.child import S3Location

pytestmark = [pytest.mark.platform, pytest.mark.cluster, pytest.mark.s3]

RULES = REPOSITORY / "helm" / "nas-operator" / "files" / "rules.yaml"


class Prometheus:
    """A server that scrapes a controller and an operator every second."""

    def __init__(self, folder: Path, port: int, targets: dict[str, tuple[int, dict[str, str]]]) -> None:
        self._port = port
        rules = yaml.safe_load(RULES.read_text())
        for rule in (rule for group in rules["groups"] for rule in group["rules"]):
            if "for" in rule:
                rule["for"] = "1s"
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        jobs = [
            {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": labels}]}
            for name, (port, labels) in targets.items()
        ]
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": ["rules.yaml"], "scrape_configs": jobs}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        with (folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    binaries.program("prometheus"),
                    f"--config.file={folder / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _ask(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/{path}", timeout=HANG_SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.URLError:
            # Not up yet.
            return {}

    def query(self, expression: str) -> dict[str, float]:
        """Return the values of a query by the labels of the series that matter here, joined."""
        found = self._ask("query?" + urllib.parse.urlencode({"query": expression})).get("result", ())
        shown = ("job", "namespace", "experiment", "state", "reason")
        return {
            " ".join(item["metric"][key] for key in shown if key in item["metric"]): float(item["value"][1])
            for item in found
        }

    def firing(self, name: str) -> list[dict[str, str]]:
        """Return the labels of each alert of that name that fires."""
        alerts = self._ask("alerts").get("alerts", ())
        return [
            alert["labels"] for alert in alerts if alert["labels"]["alertname"] == name and alert["state"] == "firing"
        ]


class Store:
    """An S3 server that can go away and come back with all that it had."""

    def __init__(self, binary: Path, folder: Path) -> None:
        self._binary, self._folder = binary, folder
        self._port = choose_ports(["s3"], ())["s3"]
        self.start()
        self.server = s3_server.S3Server(f"http://127.0.0.1:{self._port}", folder / "data")

    def start(self) -> None:
        self._process = s3_server.start(self._binary, self._folder, self._port)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    binary = s3_server.versitygw_binary()
    if binary is None:
        pytest.skip("no versitygw: `python3 -m hack.cluster build` makes it")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.SECRET_KEY)
    folder = tmp_path_factory.mktemp("store")
    store = Store(binary, folder)
    yield store
    store.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def namespace(shared_namespace: str) -> str:
    """One on the control plane, where other tests of this folder have theirs on a node."""
    return shared_namespace


@pytest.fixture
def bench(control_plane: ControlPlane, namespace: str, store: Store) -> Iterator[Bench]:
    location = S3Location(bucket=store.server.make_bucket(), prefix="", endpoint=store.server.endpoint)
    bench = Bench(control_plane, namespace, location, budget={"samples": 6}, parallelism=2, searcher={"random": {}})
    yield bench
    for process in bench.processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def ports() -> dict[str, int]:
    return choose_ports(["controller", "operator", "health", "prometheus"], ())


@pytest.fixture
def operator(control_plane: ControlPlane, namespace: str, ports: dict[str, int], tmp_path: Path) -> Iterator[None]:
    """An operator of the namespace; the pods that it makes stay pending."""
    environment = {
        "KUBECONFIG": str(control_plane.kubeconfig),
        "NAS_CONTROLLER_IMAGE": "localhost/controller:1",
        "NAS_TRAINER_IMAGE": "localhost/trainer:1",
        "NAS_FOLLOWER_IMAGE": "localhost/follower:1",
        "NAS_WATCH_NAMESPACES": namespace,
        "NAS_HEALTH_PORT": str(ports["health"]),
        "NAS_METRICS_PORT": str(ports["operator"]),
    }
    with (tmp_path / "operator.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nas_operator"], env={**os.environ, **environment}, stderr=log
        )
    yield
    process.terminate()
    assert process.wait(timeout=HANG_SECONDS) == 0, (tmp_path / "operator.log").read_text()


@pytest.fixture
def prometheus(namespace: str, ports: dict[str, int], tmp_path: Path) -> Iterator[Prometheus]:
    if not binaries.BINARIES["prometheus"].path.exists():
        pytest.skip("not built: `python3 -m hack.cluster build prometheus` makes it")
    search = {"namespace": namespace, "experiment": "demo"}
    targets = {"controllers": (ports["controller"], search), "operator": (ports["operator"], {})}
    server = Prometheus(tmp_path, ports["prometheus"], targets)
    yield server
    server.process.kill()
    server.process.wait()


@pytest.mark.usefixtures("operator")
def test_a_search_is_scraped_and_the_loss_of_its_store_is_an_alert_until_it_is_back(
    bench: Bench, store: Store, prometheus: Prometheus, ports: dict[str, int]
) -> None:
    search = f"{bench.namespace} demo"

    def sees(expression: str, **expected: float) -> None:
        wanted = {key.replace("_", " "): value for key, value in expected.items()}

        def now() -> dict[str, float]:
            return {
                key.removeprefix("controllers ").removeprefix(search).strip(): value for key, value in found().items()
            }

        def found() -> dict[str, float]:
            return prometheus.query(expression)

        eventually(lambda: wanted.items() <= now().items(), message=lambda: (expression, wanted, now()))

    node = Node(bench.client, bench.namespace)
    node.allowed = 3
    node.start()
    try:
        process = bench.start(NAS_METRICS_PORT=str(ports["controller"]))
        sees('nas_samples{state="observed"}', observed=3)
        sees("up", operator=1, **{"": 1})
        sees("nas_children_launched_total", **{"": 5})
        sees('nas_children_ended_total{end="Succeeded"}', **{"": 3})
        sees("sum(nas_children)", **{"": 2})
        sees("nas_slots", **{"": 2})
        # The operator's own pod finds no node.
        sees("sum by (state) (nas_experiments)", Waiting=1)
        eventually(lambda: prometheus.firing("NasExperimentsWaiting"))
        sees('sum(rate(nas_reconciles_total{outcome="ok"}[5m])) > bool 0', **{"": 1})
        sees("count(nas_build_info)", **{"": 2})
        assert prometheus.firing("NasStoreUnreachable") == []
        store.stop()
        # A record follows from this, which the log cannot take.
        bench.change(parallelism=3)
        (labels,) = eventually(lambda: prometheus.firing("NasStoreUnreachable"))
        assert (labels["namespace"], labels["experiment"]) == (bench.namespace, "demo")
        sees('nas_search_problem{reason="StoreUnreachable"}', StoreUnreachable=1)
        store.start()
        eventually(lambda: not prometheus.firing("NasStoreUnreachable"))
        sees("nas_store_up", **{"": 1})
        node.allowed = math.inf
        bench.wait(process, 0)
    finally:
        node.stopped.set()
        node.join()
    assert bench.experiment.status is not None and bench.experiment.status.progress == "6/6"
