"""The client's pieces that need no server."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml
from virtual_clock import VirtualClock

from nas_kube.client import KubeClient, Listing
from nas_kube.errors import ApiError, ApiUnavailable, KubeConfigError, KubeError
from nas_kube.reflector import EventType, Reflector
from nas_kube.resources import EXPERIMENTS, JOBS, NODES, PODS, Resource


@pytest.mark.parametrize(
    ("resource", "place", "path"),
    [
        (PODS, ("n", "p", None), "/api/v1/namespaces/n/pods/p"),
        (PODS, (None, None, None), "/api/v1/pods"),
        (JOBS, ("n", None, None), "/apis/batch/v1/namespaces/n/jobs"),
        (
            EXPERIMENTS,
            ("n", "e", "status"),
            "/apis/nas-operator.io/v1alpha1/namespaces/n/nasexperiments/e/status",
        ),
        (NODES, (None, "x", None), "/api/v1/nodes/x"),
        (NODES, ("ignored", "x", None), "/api/v1/nodes/x"),
        (PODS, ("a/b", "c/../d", None), "/api/v1/namespaces/a%2Fb/pods/c%2F..%2Fd"),
    ],
)
def test_paths(resource: Resource, place: tuple[str | None, str | None, str | None], path: str) -> None:
    assert resource.path(*place) == path


def test_a_namespaced_object_needs_its_namespace() -> None:
    with pytest.raises(ValueError, match="pods/p needs a namespace"):
        PODS.path(None, "p")


def test_an_error_keeps_what_the_status_says() -> None:
    body = {
        "kind": "Status",
        "code": 422,
        "reason": "Invalid",
        "message": "it is invalid",
        "details": {"causes": [{"field": "spec.a", "reason": "FieldValueInvalid", "message": "must be 1"}]},
    }
    error = ApiError.from_response(422, json.dumps(body).encode())
    assert (error.status, error.reason, error.message) == (422, "Invalid", "it is invalid")
    assert [(cause.field, cause.message) for cause in error.causes] == [("spec.a", "must be 1")]
    assert not error.retryable


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[1]", b"\xff\xfe", b""])
def test_a_body_that_is_no_status_is_quoted(body: bytes) -> None:
    error = ApiError.from_response(502, body, "7")
    assert (error.status, error.retry_after, error.retryable) == (502, 7.0, True)


@pytest.mark.parametrize(
    ("status", "message", "quota", "retryable"),
    [
        (403, 'pods "x" is forbidden: exceeded quota: q, requested: pods=1', True, False),
        (403, 'pods is forbidden: User "u" cannot create', False, False),
        (429, "slow down", False, True),
        (500, "oh", False, True),
    ],
)
def test_kinds_of_errors(status: int, message: str, quota: bool, retryable: bool) -> None:
    error = ApiError(status, "Whatever", message)
    assert (error.quota, error.retryable) == (quota, retryable)


def kubeconfig(folder: Path, **user: str) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [
            {"name": "plain", "context": {"cluster": "c", "user": "u"}},
            {"name": "team", "context": {"cluster": "c", "user": "u", "namespace": "research"}},
        ],
        "current-context": "plain",
    }
    file = folder / "config"
    file.write_text(yaml.safe_dump(document))
    return file


def test_a_context_brings_its_namespace(tmp_path: Path) -> None:
    file = kubeconfig(tmp_path, token="t")
    assert KubeClient.from_kubeconfig(file).namespace == "default"
    assert KubeClient.from_kubeconfig(file, context="team").namespace == "research"


def test_the_environment_names_the_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    with pytest.raises(KubeConfigError, match="no cluster to talk to"):
        KubeClient.from_environment()
    with pytest.raises(KubeConfigError, match="no cluster to talk to"):
        KubeClient.from_kubeconfig(kubeconfig(tmp_path, token="t"), context="unknown")


@pytest.mark.parametrize("content", [b"{", b"[]", b"hello", b"contexts: 3\ncurrent-context: x", b"\xff"])
def test_a_file_that_is_no_kubeconfig_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config"
    file.write_bytes(content)
    with pytest.raises(KubeConfigError, match=rf"no cluster to talk to: {file} is not a kubeconfig \(") as refused:
        KubeClient.from_kubeconfig(file)
    assert "\n" not in str(refused.value)


def test_a_rotated_token_is_read_again() -> None:
    """The configuration's hook is asked before each call: the official loader reads a pod's token file there."""
    tokens = iter(["first", "second"])
    configuration = kubernetes.client.Configuration(host="http://127.0.0.1:1")
    configuration.api_key["BearerToken"] = "Bearer stale"

    def renew(of: kubernetes.client.Configuration) -> None:
        of.api_key["BearerToken"] = f"Bearer {next(tokens)}"

    configuration.refresh_api_key_hook = renew  # type: ignore[assignment]
    client = KubeClient(configuration)
    assert [client._authorization() for _ in range(2)] == [
        {"Authorization": "Bearer first"},
        {"Authorization": "Bearer second"},
    ]


def test_a_token_that_cannot_be_read_is_no_answer() -> None:
    configuration = kubernetes.client.Configuration(host="http://127.0.0.1:1")
    configuration.api_key["BearerToken"] = "Bearer stale"

    def gone(_: kubernetes.client.Configuration) -> None:
        raise FileNotFoundError("token")

    configuration.refresh_api_key_hook = gone  # type: ignore[assignment]
    with pytest.raises(ApiUnavailable, match="cannot read the API token"):
        KubeClient(configuration).get(PODS, "n", "p")


def test_a_watch_error_is_an_api_error_and_a_bookmark_moves_on() -> None:
    seen: list[EventType] = []
    client = KubeClient(kubernetes.client.Configuration(host="http://127.0.0.1:1"))
    reflector = Reflector(client, PODS, "n", lambda kind, _: seen.append(kind))
    reflector._take({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "17"}}})
    assert (reflector._version, seen) == ("17", [])
    with pytest.raises(ApiError) as expired:
        reflector._take({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
    assert expired.value.status == 410
    assert reflector._version == "17"


class Away(KubeClient):
    """An API server that does not answer, or says when to come again."""

    def __init__(self, clock: VirtualClock, error: KubeError) -> None:
        super().__init__(kubernetes.client.Configuration(host="http://127.0.0.1:1"))
        self.clock, self.error = clock, error
        self.asked: list[float] = []

    def list(self, *_: Any, **__: Any) -> Listing:
        self.asked.append(self.clock.now)
        raise self.error


@pytest.mark.parametrize(
    ("error", "pauses"),
    [
        (ApiUnavailable("no route"), [0.5, 1, 2, 4, 8, 16, 30, 30, 30]),
        (ApiError(429, "TooManyRequests", "later", retry_after=7.0), [7, 7, 7, 7, 8, 16, 30, 30, 30]),
    ],
)
def test_a_server_that_is_away_is_asked_again_after_growing_pauses(error: KubeError, pauses: list[float]) -> None:
    clock = VirtualClock()
    client = Away(clock, error)
    reflector = Reflector(client, PODS, "n", lambda *_: None, clock=clock, jitter=lambda _, longest: longest)
    reflector.start()
    clock.at(sum(pauses) + 1, reflector.stop)
    clock.run()
    assert [later - earlier for earlier, later in pairwise(client.asked)] == pauses
    assert clock.now == sum(pauses) + 1, "it does not sleep on once it is to stop"
    assert reflector.seconds_since_alive == float("inf")
    assert not reflector.wait_synced(10)


def test_pauses_of_many_clients_differ() -> None:
    asked: list[tuple[float, float]] = []
    clock = VirtualClock()

    def half(shortest: float, longest: float) -> float:
        asked.append((shortest, longest))
        return shortest

    reflector = Reflector(Away(clock, ApiUnavailable("")), PODS, "n", lambda *_: None, clock=clock, jitter=half)
    reflector.start()
    clock.at(1.0, reflector.stop)
    clock.run()
    assert asked == [(0.25, 0.5), (0.5, 1.0), (1.0, 2.0)]
