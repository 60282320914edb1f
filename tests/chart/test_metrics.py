"""What is said about metrics, in docs, rules and dashboard, is of metrics that there are; promtool tries the rules."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart.conftest import CHART, Objects
from cluster_fixtures import REPOSITORY
from hack.cluster import binaries

from nas_controller import metrics as controller
from nas_operator import metrics as operator
from nas_operator.cache import Cache

RULES = CHART / "files" / "rules.yaml"
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
Row = tuple[str, str, str, str, str]


def operators() -> operator.Metrics:
    metrics = operator.Metrics()
    metrics.observe(Cache(), lambda: 0, lambda: 0.0, lambda: 0)
    return metrics


REGISTRIES = {"controller": controller.Metrics().registry, "operator": operators().registry}


def rows() -> list[Row]:
    """Return the table of all metrics, as the page has it."""
    found: dict[str, list[Any]] = {}
    for owner, registry in REGISTRIES.items():
        for family in registry.collect():
            if family.name.startswith("nas_"):
                suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
                row = found.setdefault(family.name + suffix, [family.type, labels(registry, family.name), [], family])
                row[2].append(owner)
    return [
        (f"`{name}`", "gauge" if kind == "info" else kind, names, " and ".join(owners), family.documentation)
        for name, (kind, names, owners, family) in sorted(found.items())
    ]


def labels(registry: Any, name: str) -> str:
    """Return a metric's labels; the client tells of them only what has a value."""
    collector = registry._names_to_collectors[name]
    if isinstance(collector, operator.Experiments):
        names: tuple[str, ...] = ("state", "reason")
    else:
        names = collector._labelnames if name != "nas_build" else ("version",)
    return ", ".join(f"`{each}`" for each in names)


def exposed() -> set[str]:
    """Return every name that a query may use."""
    names: set[str] = set()
    for row in rows():
        name = row[0].strip("`")
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if row[1] == "histogram" else {name}
    return names


def used(expression: str) -> set[str]:
    """Return the metrics that a query is about."""
    return set(re.findall(r"\bnas_[a-z_]+", re.sub(r'"[^"]*"', "", expression)))


def expressions(node: Any) -> Iterator[str]:
    """Yield every query in a document."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query") and isinstance(value, str):
                yield value
            else:
                yield from expressions(value)
    elif isinstance(node, list):
        for item in node:
            yield from expressions(item)


def test_the_page_has_every_metric_as_it_is() -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `nas_.*$", page, re.MULTILINE) == [f"| {' | '.join(row)} |" for row in rows()]


def test_every_metric_in_rules_and_dashboard_exists() -> None:
    names = exposed()
    for where, document in (("rules", yaml.safe_load(RULES.read_text())), ("dashboard", DASHBOARD)):
        queries = list(expressions(document))
        assert len(queries) > 5
        asked = {name for query in queries for name in used(query)}
        assert asked <= names, where


def test_the_dashboard_shows_every_metric() -> None:
    shown = {name for query in expressions(DASHBOARD) for name in used(query)}
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    # Whether a store is up is what the alert is about.
    assert {row[0].strip("`") for row in rows()} - shown == {"nas_store_up"}


def test_every_alert_is_on_the_page_with_its_time() -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(Nas\w+)` \|.*\| (\d+) (min|h) \|$", page, re.MULTILINE)
    groups = yaml.safe_load(RULES.read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert [(name, f"{count}{unit[0]}") for name, count, unit in listed] == [(a["alert"], a["for"]) for a in alerts]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_promtool_finds_that_each_alert_fires_and_clears() -> None:
    promtool = binaries.BINARIES["promtool"].path
    if not promtool.exists():
        pytest.skip("not built: `python3 -m hack.cluster build promtool` makes it")
    file = Path(__file__).with_name("rules_test.yaml")
    for words in (("check", "rules", RULES), ("test", "rules", file)):
        done = subprocess.run([promtool, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


KINDS = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}


@pytest.mark.slow
def test_nothing_of_it_is_there_until_it_is_enabled(render: Callable[..., Objects]) -> None:
    def all_of(*values: str) -> Objects:
        return render(*(f"metrics.{part}.enabled=true" for part in ("serviceMonitor", "podMonitor", "rules")), *values)

    off = render()
    assert not KINDS & {item["kind"] for item in off} and "METRICS" not in str(off)
    # The monitors alone would find nothing to scrape.
    assert not KINDS & {item["kind"] for item in all_of()}
    assert {item["kind"] for item in all_of("metrics.enabled=true")} >= KINDS


@pytest.mark.slow
def test_what_is_scraped_is_what_serves(render: Callable[..., Objects]) -> None:
    objects = render(file="everything")

    def one(kind: str, name: str) -> dict[str, Any]:
        (found,) = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
        return found

    (container,) = one("Deployment", "nas-operator")["spec"]["template"]["spec"]["containers"]
    assert {"name": "metrics", "containerPort": 9090} in container["ports"]
    environment = {item["name"]: item.get("value") for item in container["env"]}
    assert environment["NAS_METRICS_PORT"] == environment["NAS_CONTROLLER_METRICS_PORT"] == "9090"
    service = one("Service", "nas-operator-metrics")
    monitor = one("ServiceMonitor", "nas-operator")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["labels"]["prometheus"] == "platform"
    pods = one("PodMonitor", "nas-operator-controllers")["spec"]
    assert pods["namespaceSelector"] == {"matchNames": ["a", "b"]}
    (endpoint,) = pods["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics" and endpoint["relabelings"][0]["targetLabel"] == "experiment"
    assert one("PrometheusRule", "nas-operator")["spec"] == yaml.safe_load(RULES.read_text())
    assert json.loads(one("ConfigMap", "nas-operator-dashboard")["data"]["nas-operator.json"]) == DASHBOARD
