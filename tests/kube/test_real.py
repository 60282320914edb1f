"""The client and the reflector against a real API server."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from cluster_fixtures import ControlPlane
from experiments import manifest
from patience import HANG_SECONDS, eventually

from nas_kube.client import KubeClient
from nas_kube.errors import ApiError, ApiUnavailable
from nas_kube.reflector import EventType, Reflector
from nas_kube.resources import CONFIG_MAPS, EXPERIMENTS, PODS

pytestmark = pytest.mark.cluster


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"a": "b"}}, "data": data}


def test_create_get_patch_list_delete(control_plane: ControlPlane, namespace: str) -> None:
    client = control_plane.client
    made = client.create(CONFIG_MAPS, namespace, config_map("one", k="v"))
    assert client.get(CONFIG_MAPS, namespace, "one")["metadata"]["uid"] == made["metadata"]["uid"]
    assert client.patch(CONFIG_MAPS, namespace, "one", {"data": {"k": None, "l": "w"}})["data"] == {"l": "w"}
    found = client.list(CONFIG_MAPS, namespace, label_selector="a=b")
    assert [item["metadata"]["name"] for item in found.items] == ["one"]
    assert int(found.resource_version) >= int(made["metadata"]["resourceVersion"])
    assert client.delete(CONFIG_MAPS, namespace, "one", uid="another") is False
    assert client.delete(CONFIG_MAPS, namespace, "one", uid=made["metadata"]["uid"]) is True
    assert client.delete(CONFIG_MAPS, namespace, "one") is False


def test_a_list_longer_than_a_page(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas_kube.client._PAGE", 2)
    for number in range(5):
        control_plane.client.create(CONFIG_MAPS, namespace, config_map(f"m{number}"))
    found = control_plane.client.list(CONFIG_MAPS, namespace, label_selector="a=b")
    assert sorted(item["metadata"]["name"] for item in found.items) == [f"m{number}" for number in range(5)]


def test_dry_run_keeps_nothing_and_strict_validation_names_the_field(
    control_plane: ControlPlane, namespace: str
) -> None:
    client = control_plane.client
    client.create(CONFIG_MAPS, namespace, config_map("dry"), dry_run=True)
    with pytest.raises(ApiError) as gone:
        client.get(CONFIG_MAPS, namespace, "dry")
    assert (gone.value.status, gone.value.reason, gone.value.retryable) == (404, "NotFound", False)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "a", "image": "b", "imagePolicy": "Always"}]},
    }
    with pytest.raises(ApiError, match="imagePolicy") as strict:
        client.create(PODS, namespace, pod, dry_run=True)
    assert strict.value.status == 400


def test_an_invalid_object_has_causes(control_plane: ControlPlane, namespace: str) -> None:
    body = manifest(namespace, parallelism=0)
    with pytest.raises(ApiError) as refused:
        control_plane.client.create(EXPERIMENTS, namespace, body)
    assert refused.value.status == 422
    assert [cause.field for cause in refused.value.causes] == ["spec.parallelism"]


def test_two_appliers_own_their_own_fields(control_plane: ControlPlane, namespace: str) -> None:
    client = control_plane.client
    head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}}
    client.apply(CONFIG_MAPS, namespace, "shared", {**head, "data": {"a": "1", "b": "1"}}, field_manager="one")
    client.apply(CONFIG_MAPS, namespace, "shared", {**head, "data": {"c": "2"}}, field_manager="two")
    with pytest.raises(ApiError) as conflict:
        client.apply(CONFIG_MAPS, namespace, "shared", {**head, "data": {"a": "3"}}, field_manager="two", force=False)
    assert (conflict.value.status, conflict.value.reason) == (409, "Conflict")
    after = client.apply(CONFIG_MAPS, namespace, "shared", {**head, "data": {"a": "1"}}, field_manager="one")
    assert after["data"] == {"a": "1", "c": "2"}


def test_only_the_version_keeps_a_status_from_a_namesake(control_plane: ControlPlane, namespace: str) -> None:
    """Pins what the API server does: in an apply to a custom resource's status it does not look at the uid."""
    client = control_plane.client
    old = client.create(EXPERIMENTS, namespace, manifest(namespace))
    client.delete(EXPERIMENTS, namespace, "digits")
    new = client.create(EXPERIMENTS, namespace, manifest(namespace))

    def apply(**metadata: str) -> dict[str, Any]:
        head = {"apiVersion": new["apiVersion"], "kind": new["kind"], "metadata": {"name": "digits", **metadata}}
        body = {**head, "status": {"state": "Pending"}}
        return client.apply(EXPERIMENTS, namespace, "digits", body, field_manager="one", subresource="status")

    with pytest.raises(ApiError) as refused:
        apply(resourceVersion=old["metadata"]["resourceVersion"])
    assert refused.value.status == 409
    assert apply(uid=old["metadata"]["uid"])["metadata"]["uid"] == new["metadata"]["uid"]
    with pytest.raises(ApiError) as gone:
        client.apply(
            EXPERIMENTS,
            namespace,
            "gone",
            {"apiVersion": new["apiVersion"], "kind": new["kind"], "metadata": {"name": "gone"}, "status": {}},
            field_manager="one",
            subresource="status",
        )
    assert gone.value.status == 404


def test_nobody_there_is_unavailable(control_plane: ControlPlane) -> None:
    other = KubeClient.from_kubeconfig(control_plane.kubeconfig)
    other._host = "https://127.0.0.1:1"
    with pytest.raises(ApiUnavailable) as error:
        other.get(CONFIG_MAPS, "default", "x")
    assert error.value.retryable


class Seen:
    """Collects a reflector's events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.fail_next = False
        self._lock = threading.Lock()

    def __call__(self, kind: EventType, item: dict[str, Any]) -> None:
        with self._lock:
            if self.fail_next:
                self.fail_next = False
                raise RuntimeError("not now")
            self.events.append((kind.value, item["metadata"]["name"]))

    def wait_for(self, *wanted: tuple[str, str]) -> None:
        eventually(lambda: set(wanted) <= set(self.events), message=lambda: f"{wanted}, saw {self.events}")


def follow(control_plane: ControlPlane, namespace: str, seen: Seen, **options: Any) -> Reflector:
    reflector = Reflector(control_plane.client, CONFIG_MAPS, namespace, seen, label_selector="a=b", **options)
    reflector.start()
    assert reflector.wait_synced(HANG_SECONDS)
    return reflector


def test_a_reflector_tells_what_is_there_and_what_changes(control_plane: ControlPlane, namespace: str) -> None:
    client, seen = control_plane.client, Seen()
    client.create(CONFIG_MAPS, namespace, config_map("early"))
    reflector = follow(control_plane, namespace, seen, watch_seconds=3600.0)
    assert seen.events == [("ADDED", "early")]
    began = time.monotonic()
    client.create(CONFIG_MAPS, namespace, config_map("late"))
    client.patch(CONFIG_MAPS, namespace, "late", {"data": {"x": "y"}})
    client.delete(CONFIG_MAPS, namespace, "early")
    seen.wait_for(("ADDED", "late"), ("MODIFIED", "late"), ("DELETED", "early"))
    assert reflector.seconds_since_alive < time.monotonic() - began, "the server has sent something since"
    # The server would keep the watch open for an hour, and has nothing more to send.
    reflector.stop(HANG_SECONDS)
    assert not any(thread.name == "reflector-configmaps" for thread in threading.enumerate())


def test_a_watch_that_ends_goes_on_without_a_list(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, seen = control_plane.client, Seen()
    calls: Counter[str] = Counter()
    for name in ("list", "stream"):
        monkeypatch.setattr(client, name, _counted(calls, name, getattr(client, name)))
    reflector = follow(control_plane, namespace, seen, watch_seconds=1.0)
    eventually(lambda: calls["stream"] >= 3, message="two watches have ended")
    client.create(CONFIG_MAPS, namespace, config_map("after"))
    seen.wait_for(("ADDED", "after"))
    reflector.stop()
    assert seen.events == [("ADDED", "after")]
    assert calls["list"] == 1


def _counted(calls: Counter[str], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def counting(*arguments: Any, **options: Any) -> Any:
        calls[name] += 1
        return call(*arguments, **options)

    return counting


def test_an_expired_version_is_met_by_a_list_that_tells_the_difference(
    control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, seen = control_plane.client, Seen()
    for name in ("stays", "goes", "changes", "replaced"):
        client.create(CONFIG_MAPS, namespace, config_map(name))
    reflector = Reflector(client, CONFIG_MAPS, namespace, seen, label_selector="a=b")
    reflector._list()
    seen.events.clear()
    client.delete(CONFIG_MAPS, namespace, "goes")
    client.patch(CONFIG_MAPS, namespace, "changes", {"data": {"x": "y"}})
    client.delete(CONFIG_MAPS, namespace, "replaced")
    client.create(CONFIG_MAPS, namespace, config_map("replaced"))
    client.create(CONFIG_MAPS, namespace, config_map("new"))
    # A server forgets versions after some five minutes; here its first answer says so at once.
    answers = iter([ApiError(410, "Expired", "too old resource version")])
    stream = client.stream

    def expired_once(*words: Any, **options: Any) -> Any:
        for answer in answers:
            raise answer
        return stream(*words, **options)

    monkeypatch.setattr(client, "stream", expired_once)
    reflector.start()
    assert reflector.wait_synced(HANG_SECONDS)
    seen.wait_for(("DELETED", "goes"), ("MODIFIED", "changes"), ("ADDED", "new"))
    reflector.stop()
    assert sorted(seen.events) == sorted(
        [
            ("DELETED", "goes"),
            ("MODIFIED", "changes"),
            ("DELETED", "replaced"),
            ("ADDED", "replaced"),
            ("ADDED", "new"),
        ]
    )


def test_an_event_whose_handling_fails_comes_again(control_plane: ControlPlane, namespace: str) -> None:
    seen = Seen()
    reflector = follow(control_plane, namespace, seen)
    seen.fail_next = True
    control_plane.client.create(CONFIG_MAPS, namespace, config_map("twice"))
    seen.wait_for(("ADDED", "twice"))
    control_plane.client.delete(CONFIG_MAPS, namespace, "twice")
    seen.wait_for(("DELETED", "twice"))
    reflector.stop()
