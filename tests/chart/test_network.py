"""The chart's NetworkPolicies, and what the operator is told of them."""

from typing import Any

import pytest
from chart.conftest import Objects
from chart.test_chart import S3, Render, one, selector

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("programs")]
ON = "networkPolicy.enabled=true"


def policies(objects: Objects) -> dict[str, dict[str, Any]]:
    """Return the policies' specs by name."""
    return {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "NetworkPolicy"}


def told(objects: Objects) -> set[str]:
    """Return which switches the operator is told to turn on."""
    (container,) = one(objects, "Deployment", "nas-operator")["spec"]["template"]["spec"]["containers"]
    return {item["name"] for item in container["env"] if item["value"] == "true"}


def verbs(objects: Objects) -> list[list[str]]:
    rules = one(objects, "ClusterRole", "nas-operator")["rules"]
    return [rule["verbs"] for rule in rules if "networkpolicies" in rule["resources"]]


def test_without_it_there_is_no_trace(render: Render) -> None:
    objects = render(*S3)
    assert policies(objects) == {} and verbs(objects) == []
    assert told(objects) == {"NAS_TEMPLATES_UNRESTRICTED"}


def test_the_operator_reaches_the_api_server_alone(render: Render) -> None:
    objects = render(ON, "networkPolicy.apiServerPorts={443,8443}")
    found = policies(objects)
    assert set(found) == {"nas-operator"}
    spec = found["nas-operator"]
    assert spec["podSelector"]["matchLabels"] == selector("operator")
    assert spec["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8080}]}]
    dns, api = spec["egress"]
    assert [port["port"] for port in dns["ports"]] == [53, 53]
    assert [port["port"] for port in api["ports"]] == [443, 8443]
    blocks = [peer["ipBlock"] for peer in api["to"] if "ipBlock" in peer]
    assert blocks[0] == {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}
    assert "NAS_NETWORK_POLICIES" in told(objects)
    assert verbs(objects) == [["get", "create", "patch"]]


def test_metrics_stay_reachable(render: Render) -> None:
    spec = policies(render(ON, "metrics.enabled=true"))["nas-operator"]
    assert [port["port"] for port in spec["ingress"][0]["ports"]] == [8080, 9090]


def test_the_embedded_store_is_asked_by_experiments_and_asks_nobody(render: Render) -> None:
    spec = policies(render(ON, *S3))["nas-s3"]
    assert spec["podSelector"]["matchLabels"] == selector("s3")
    assert "Egress" in spec["policyTypes"] and "egress" not in spec
    (rule,) = spec["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 7070}]
    beside, experiments = rule["from"]
    assert beside == {"podSelector": {}}
    assert experiments["podSelector"]["matchExpressions"] == [{"key": "nas-operator.io/role", "operator": "Exists"}]


def test_the_operator_is_told_which_endpoints_are_allowed(render: Render) -> None:
    assert "NAS_REQUIRE_TLS" in told(render("storage.requireTls=true"))
    assert "NAS_ALLOW_LINK_LOCAL" in told(render("storage.allowLinkLocal=true"))
