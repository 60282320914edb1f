"""What the operator counts: experiments as its cache has them, looks at them, and calls."""

import urllib.request
from datetime import timedelta
from typing import Any

import pytest
from experiments import manifest
from hack.cluster.network import choose_ports

from nas_api.experiment import NASExperiment
from nas_kube.client import KubeClient
from nas_kube.errors import ApiError, ApiUnavailable
from nas_kube.metered import ApiMetrics
from nas_kube.resources import JOBS
from nas_operator import builders
from nas_operator.cache import Cache, Key
from nas_operator.metrics import Metrics
from nas_operator.settings import Settings

KEY = ("lab", "digits")
IMAGES = {"NAS_CONTROLLER_IMAGE": "controller:1", "NAS_TRAINER_IMAGE": "trainer:1", "NAS_FOLLOWER_IMAGE": "follower:1"}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def experiment(name: str, state: str | None = None, reason: str = "") -> dict[str, Any]:
    raw = manifest("lab", name)
    raw["metadata"] |= {"uid": name, "resourceVersion": "1"}
    if state is not None:
        raw["status"] = {"state": state, "conditions": [{"type": "Progressing", "status": "False", "reason": reason}]}
    return raw


def test_experiments_are_counted_by_state_and_reason_as_the_cache_has_them() -> None:
    metrics, cache = Metrics(), Cache()
    metrics.observe(cache, lambda: 3, lambda: 7.0, lambda: 2)
    for raw in (
        experiment("a", "Searching", "Searching"),
        experiment("b", "Searching", "Searching"),
        experiment("c", "Waiting", "StoreUnreachable"),
        experiment("d", "Failed", "Whatever"),
        experiment("e"),
    ):
        cache.take_experiment(raw)
    assert value(metrics, "nas_experiments", state="Searching", reason="Searching") == 2
    assert value(metrics, "nas_experiments", state="Waiting", reason="StoreUnreachable") == 1
    # Anybody may write a reason into a status: the number of series is ours to bound.
    assert value(metrics, "nas_experiments", state="Failed", reason="Other") == 1
    assert value(metrics, "nas_experiments", state="Pending", reason="") == 1
    cache.drop_experiment(experiment("c"))
    assert value(metrics, "nas_experiments", state="Waiting", reason="StoreUnreachable") is None
    assert value(metrics, "nas_reconcile_queue_depth") == 3
    assert value(metrics, "nas_list_age_seconds") == 7
    assert value(metrics, "nas_watch_lagging_experiments") == 2


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (ApiError(409, "Conflict", "changed"), "409"),
        (ApiUnavailable("no answer"), "unavailable"),
        (KeyError("x"), "error"),
    ],
)
def test_a_look_is_timed_counted_and_otherwise_as_before(error: Exception | None, outcome: str) -> None:
    metrics = Metrics()

    def reconcile(key: Key) -> timedelta | None:
        assert key == KEY
        if error is not None:
            raise error
        return timedelta(seconds=5)

    if error is None:
        assert metrics.reconcile(reconcile)(KEY) == timedelta(seconds=5)
    else:
        with pytest.raises(type(error)):
            metrics.reconcile(reconcile)(KEY)
    assert value(metrics, "nas_reconciles_total", outcome=outcome) == 1
    assert value(metrics, "nas_reconcile_duration_seconds_count") == 1


def test_calls_are_counted_by_operation_resource_and_outcome() -> None:
    metrics = Metrics()

    def call(error: Exception | None) -> None:
        with metrics.api.request("create", JOBS.plural):
            if error is not None:
                raise error

    call(None)
    for error in (ApiError(403, "Forbidden", "no"), ApiUnavailable("no answer"), ValueError("no JSON")):
        with pytest.raises(type(error)):
            call(error)
    for outcome in ("ok", "403", "unavailable", "error"):
        labels = {"operation": "create", "resource": "jobs", "outcome": outcome}
        assert value(metrics, "nas_api_requests_total", **labels) == 1
    assert value(metrics, "nas_api_request_duration_seconds_count", operation="create", resource="jobs") == 4


def test_every_call_of_the_client_is_counted() -> None:
    """A verb that KubeClient gets and MeteredClient does not would be missing from the metrics."""
    from nas_kube.metered import MeteredClient

    plumbing = {"from_environment", "from_kubeconfig", "configuration", "close"}
    calls = {name for name in vars(KubeClient) if not name.startswith("_")} - plumbing
    assert calls == {name for name in vars(MeteredClient) if not name.startswith("_")}


def test_they_are_served_as_prometheus_reads_them() -> None:
    metrics, port = Metrics(), choose_ports(["metrics"], ())["metrics"]
    metrics.serve(port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert b'nas_build_info{version="' in answer.read()
    with pytest.raises(OSError, match="in use"):
        Metrics().serve(port)


def test_off_unless_a_port_is_named() -> None:
    for environment in (IMAGES, {**IMAGES, "NAS_METRICS_PORT": "", "NAS_CONTROLLER_METRICS_PORT": ""}):
        settings = Settings.from_environment(environment)
        assert (settings.metrics_port, settings.controller_metrics_port) == (None, None)


def test_a_controllers_pod_is_told_its_port_and_is_not_replaced_for_it() -> None:
    raw = manifest("lab", "digits")
    raw["metadata"] |= {"uid": "12345678-0000"}
    parsed = NASExperiment.model_validate(raw)
    off = Settings.from_environment(IMAGES)
    on = Settings.from_environment({**IMAGES, "NAS_CONTROLLER_METRICS_PORT": "9090"})
    before, after = (builders.controller_pod(parsed, 1, 0, settings) for settings in (off, on))
    (container,) = after["spec"]["containers"]
    assert container["ports"] == [{"name": "metrics", "containerPort": 9090}]
    assert {"name": "NAS_METRICS_PORT", "value": "9090"} in container["env"]
    assert "ports" not in before["spec"]["containers"][0]
    # What decides whether a running controller is replaced.
    assert before["metadata"]["annotations"] == after["metadata"]["annotations"]


def test_api_metrics_belong_to_one_registry() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError, match="Duplicated"):
        ApiMetrics(metrics.registry)
