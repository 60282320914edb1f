"""The models are asked what the real servers are asked: kube-apiserver and versitygw answer the same."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from cluster_fixtures import ControlPlane
from experiments import manifest
from simulation.api_server import ApiServer, Client
from simulation.bucket import Bucket, BucketStore
from simulation.scheduler import Process, Scheduler
from simulation.weather import Weather

from nas_api import names
from nas_api.child import S3Location
from nas_kube.client import KubeClient
from nas_kube.decoding import decode
from nas_kube.errors import ApiError
from nas_kube.resources import EXPERIMENTS
from nas_store import Store
from nas_store.errors import TooLarge
from nas_store.s3 import S3Store

Ask = Callable[[KubeClient, str], None]
AskStore = Callable[[Store], None]


def in_a_process(call: Callable[[Process, Weather], None]) -> None:
    """Make calls of the models from a simulated process, in fair weather."""
    scheduler = Scheduler(random.Random(0))
    process = Process(scheduler, "main")
    main = scheduler.start(process, "main", lambda: call(process, Weather(scheduler)))
    try:
        scheduler.run(10_000.0, lambda: main.ended)
        assert main.ended
    finally:
        scheduler.close()


def status_of(client: KubeClient, namespace: str, manager: str, version: str | None = None, **status: Any) -> Any:
    """Apply a status as a manager."""
    metadata = {"name": "digits", "namespace": namespace}
    if version is not None:
        metadata["resourceVersion"] = version
    body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "status": status}
    return client.apply(EXPERIMENTS, namespace, "digits", body, field_manager=manager, subresource="status")


def names_exist_once(client: KubeClient, namespace: str) -> None:
    made = client.create(EXPERIMENTS, namespace, manifest(namespace))
    with pytest.raises(ApiError) as twice:
        client.create(EXPERIMENTS, namespace, manifest(namespace))
    assert (twice.value.status, twice.value.reason) == (409, "AlreadyExists")
    assert client.get(EXPERIMENTS, namespace, "digits")["metadata"]["uid"] == made["metadata"]["uid"]
    assert client.delete(EXPERIMENTS, namespace, "digits", uid="another") is False
    assert client.delete(EXPERIMENTS, namespace, "digits", uid=made["metadata"]["uid"]) is True
    assert client.delete(EXPERIMENTS, namespace, "digits") is False
    with pytest.raises(ApiError) as gone:
        client.get(EXPERIMENTS, namespace, "digits")
    assert (gone.value.status, gone.value.reason, gone.value.retryable) == (404, "NotFound", False)


def a_dry_run_keeps_nothing(client: KubeClient, namespace: str) -> None:
    client.create(EXPERIMENTS, namespace, manifest(namespace), dry_run=True)
    assert client.list(EXPERIMENTS, namespace).items == []


def lists_select(client: KubeClient, namespace: str) -> None:
    for name, label in (("one", "a"), ("two", "b"), ("three", "c")):
        body = manifest(namespace, name)
        body["metadata"]["labels"] = {"kind": label, "all": "yes"}
        client.create(EXPERIMENTS, namespace, body)

    def found(**selectors: str) -> list[str]:
        return sorted(item["metadata"]["name"] for item in client.list(EXPERIMENTS, namespace, **selectors).items)  # type: ignore[arg-type]

    assert found(label_selector="all=yes") == ["one", "three", "two"]
    assert found(label_selector="all=yes,kind in (a,b)") == ["one", "two"]
    assert found(label_selector="kind=d") == []
    assert found(field_selector="metadata.name=two") == ["two"]


def a_spec_has_generations(client: KubeClient, namespace: str) -> None:
    made = client.create(EXPERIMENTS, namespace, manifest(namespace))
    assert made["metadata"]["generation"] == 1
    told = status_of(client, namespace, "a", progress="0/1")
    assert told["metadata"]["generation"] == 1
    assert int(told["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    changed = client.patch(EXPERIMENTS, namespace, "digits", {"spec": {"parallelism": 7}})
    assert (changed["metadata"]["generation"], changed["spec"]["parallelism"]) == (2, 7)
    assert changed["spec"]["budget"]["samples"] == made["spec"]["budget"]["samples"]


def a_status_has_owners(client: KubeClient, namespace: str) -> None:
    client.create(EXPERIMENTS, namespace, manifest(namespace))
    status_of(client, namespace, "a", epoch=2, progress="0/1")
    status_of(client, namespace, "b", state="Pending", observedGeneration=1)
    said = {"epoch": 2, "progress": "0/1", "state": "Pending", "observedGeneration": 1}
    assert client.get(EXPERIMENTS, namespace, "digits")["status"] == said
    del said["progress"]
    assert status_of(client, namespace, "a", epoch=2)["status"] == said


def a_status_is_written_at_a_version(client: KubeClient, namespace: str) -> None:
    version = client.create(EXPERIMENTS, namespace, manifest(namespace))["metadata"]["resourceVersion"]
    told = status_of(client, namespace, "a", version, progress="0/1")
    with pytest.raises(ApiError) as late:
        status_of(client, namespace, "a", version, progress="1/1")
    assert (late.value.status, late.value.reason) == (409, "Conflict")
    same = status_of(client, namespace, "a", told["metadata"]["resourceVersion"], progress="0/1")
    assert same["metadata"]["resourceVersion"] == told["metadata"]["resourceVersion"]


def a_lower_epoch_is_refused(client: KubeClient, namespace: str) -> None:
    client.create(EXPERIMENTS, namespace, manifest(namespace))
    status_of(client, namespace, "a", epoch=2)
    with pytest.raises(ApiError, match="lower epoch") as refused:
        status_of(client, namespace, "a", epoch=1)
    assert refused.value.status == 422
    with pytest.raises(ApiError) as gone:
        client.delete(EXPERIMENTS, namespace, "digits")
        status_of(client, namespace, "a", epoch=3)
    assert gone.value.status == 404


def a_watch_tells_what_came_after_its_version(client: KubeClient, namespace: str) -> None:
    client.create(EXPERIMENTS, namespace, manifest(namespace, "before"))
    version = client.list(EXPERIMENTS, namespace).resource_version
    client.create(EXPERIMENTS, namespace, manifest(namespace))
    status_of(client, namespace, "a", progress="0/1")
    client.create(EXPERIMENTS, namespace, manifest(namespace, "other"))
    client.delete(EXPERIMENTS, namespace, "digits")
    query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "2"}
    query["fieldSelector"] = "metadata.name=digits"
    stream = client.stream(EXPERIMENTS.path(namespace), query, silence_seconds=60.0)
    events = [decode(line) for line in stream if line]
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(set(versions))
    assert int(version) < versions[0]


ASKED: list[Ask] = [
    names_exist_once,
    a_dry_run_keeps_nothing,
    lists_select,
    a_spec_has_generations,
    a_status_has_owners,
    a_status_is_written_at_a_version,
    a_lower_epoch_is_refused,
    a_watch_tells_what_came_after_its_version,
]


def by_name(asked: Callable[..., None]) -> str:
    return asked.__name__


@pytest.mark.parametrize("ask", ASKED, ids=by_name)
def test_the_model_of_the_api_server(ask: Ask) -> None:
    def asked(process: Process, weather: Weather) -> None:
        server = ApiServer(process.scheduler)
        ask(Client(server, process, weather, lambda _: None, lambda *_: None), "default")

    in_a_process(asked)


@pytest.mark.cluster
@pytest.mark.parametrize("ask", ASKED, ids=by_name)
def test_the_api_server(ask: Ask, control_plane: ControlPlane, namespace: str) -> None:
    ask(control_plane.client, namespace)


def test_the_model_forgets_what_is_compacted() -> None:
    def asked(process: Process, weather: Weather) -> None:
        server = ApiServer(process.scheduler)
        client = Client(server, process, weather, lambda _: None, lambda *_: None)
        version = client.create(EXPERIMENTS, "default", manifest())["metadata"]["resourceVersion"]
        client.create(EXPERIMENTS, "default", manifest(name="other"))
        server.compact()
        with pytest.raises(ApiError) as old:
            client.stream(EXPERIMENTS.path("default"), {"resourceVersion": version}, silence_seconds=1.0)
        assert (old.value.status, old.value.reason) == (410, "Expired")

    in_a_process(asked)


def whoever_writes_first_has_it(store: Store) -> None:
    assert store.get("log/0") is None
    assert store.put_if_absent("log/0", b"first")
    assert not store.put_if_absent("log/0", b"second")
    assert store.get("log/0") == b"first"
    store.put("log/0", b"third")
    assert store.get("log/0") == b"third"


def keys_are_listed_in_order(store: Store) -> None:
    for key in ("log/1", "log/0", "logs", "best/a"):
        store.put(key, b"")
    assert store.list("log/") == ["log/0", "log/1"]
    assert store.list("nothing/") == []


def what_is_too_large_is_not_read(store: Store) -> None:
    store.put("log/0", b"12345")
    assert store.get("log/0", limit=5) == b"12345"
    with pytest.raises(TooLarge):
        store.get("log/0", limit=4)
    with pytest.raises(TooLarge):
        store.digest("log/0", limit=4)
    assert store.copy("log/0", "best/a", limit=5)
    assert not store.copy("log/9", "best/a", limit=5)
    assert store.get("best/a") == b"12345"
    assert store.digest("best/a", limit=9) == store.digest("log/0", limit=9)
    assert store.digest("log/9", limit=9) is None


def what_was_overtaken_is_not_replaced(store: Store) -> None:
    store.probe()
    assert store.replace("best/a", b"first", lambda: True)
    assert store.replace("best/a", b"second", lambda: True)
    assert not store.replace("best/a", b"never", lambda: False)
    asked = itertools.count()

    def overtaken() -> bool:
        if next(asked):
            return False
        store.put("best/a", b"another's")
        return True

    assert not store.replace("best/a", b"late", overtaken)
    assert store.get("best/a") == b"another's"


ASKED_OF_STORES: list[AskStore] = [
    whoever_writes_first_has_it,
    keys_are_listed_in_order,
    what_is_too_large_is_not_read,
    what_was_overtaken_is_not_replaced,
]


@pytest.mark.parametrize("ask", ASKED_OF_STORES, ids=by_name)
def test_the_model_of_s3(ask: AskStore) -> None:
    in_a_process(
        lambda process, weather: ask(
            BucketStore(Bucket(process.scheduler), process, weather, lambda _: None, lambda *_: None)
        )
    )


@pytest.mark.s3
@pytest.mark.parametrize("ask", ASKED_OF_STORES, ids=by_name)
def test_s3(ask: AskStore, s3_location: S3Location) -> None:
    ask(S3Store(s3_location))
