"""The models are asked what the real servers are asked: kube-apiserver and versitygw answer the same."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from cluster_fixtures import ControlPlane
from experiments import manifest
from patience import eventually
from simulation.api_server import ApiServer, Client
from simulation.bucket import Bucket, BucketStore
from simulation.nodes import Nodes
from simulation.scheduler import Process, Scheduler
from simulation.weather import Weather

from nas_api import names
from nas_api.child import S3Location, StoreLocation
from nas_api.child_job import child_job
from nas_api.experiment import NASExperiment
from nas_api.search_space import search_space
from nas_api.trainer_input import trainer_input
from nas_kube.client import KubeClient
from nas_kube.decoding import decode
from nas_kube.errors import ApiError
from nas_kube.reading import completion_index, controller, finished, samples, suspended, true_condition
from nas_kube.resources import EXPERIMENTS, JOBS, PODS
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


class Pods:
    """Jobs and their pods as a test sees them, whose kubelet is the test itself."""

    def __init__(self, client: KubeClient, namespace: str, eventually: Callable[[Callable[[], Any]], Any]) -> None:
        self.client, self.namespace, self.eventually = client, namespace, eventually

    def make(self, pods: int = 1, *, suspend: bool = False) -> None:
        """Make a child's Job."""
        experiment = NASExperiment.model_validate(manifest(self.namespace, "demo") | {"status": None})
        space = search_space(experiment.spec.search_space)
        architecture = space.decode((0,) * len(space.decisions(0)))
        asked = trainer_input(experiment, StoreLocation(folder="/store"), 0, 1, architecture)
        body = child_job(experiment, 0, (asked,), "trainer")
        # Its owner is not there, and the garbage collector would take it away.
        body["metadata"] |= {"ownerReferences": [], "name": "child"}
        body["spec"] |= {"suspend": suspend, "completions": pods, "parallelism": pods}
        if pods > 1:
            body["spec"]["completionMode"] = "Indexed"
        self.client.create(JOBS, self.namespace, body)

    def suspend(self, suspend: bool) -> None:
        self.client.patch(JOBS, self.namespace, "child", {"spec": {"suspend": suspend}})

    @property
    def all(self) -> list[Any]:
        return self.client.list(PODS, self.namespace).items

    @property
    def job(self) -> Any:
        return self.client.get(JOBS, self.namespace, "child")

    def hold(self) -> None:
        """Have the pods there are stay until they have ended, as those do that a node has."""
        for pod in self.all:
            finalizers = [*pod["metadata"]["finalizers"], "nas-operator.io/test"]
            self._patch(pod, {"metadata": {"finalizers": finalizers}})

    def end(self, pod: Any, code: int) -> None:
        """End a pod's trainer, and let the pod go."""
        state = {"terminated": {"exitCode": code, "reason": "Error"}}
        container = {"name": names.TRAINER_CONTAINER, "image": "trainer", "imageID": "", "ready": False}
        ended = {"phase": "Failed", "containerStatuses": [{**container, "restartCount": 0, "state": state}]}
        self.client.patch(PODS, self.namespace, pod["metadata"]["name"], {"status": ended}, subresource="status")
        found = self.client.get(PODS, self.namespace, pod["metadata"]["name"])
        kept = [each for each in found["metadata"].get("finalizers", ()) if each != "nas-operator.io/test"]
        self._patch(pod, {"metadata": {"finalizers": kept or None}})

    def _patch(self, pod: Any, body: Any) -> None:
        self.client.patch(PODS, self.namespace, pod["metadata"]["name"], body)


class ModelledPods(Pods):
    """Those of the model, whose nodes end them by themselves."""

    def hold(self) -> None:
        """Nothing is to be done: they stay."""

    def end(self, pod: Any, code: int) -> None:
        """Nothing is to be done: they end."""


def a_suspended_job_has_no_pods(pods: Pods) -> None:
    pods.make(suspend=True)
    pods.eventually(lambda: true_condition(pods.job, "Suspended"))
    assert pods.all == []
    pods.suspend(False)
    (pod,) = pods.eventually(lambda: pods.all)
    assert controller(pod)["uid"] == pods.job["metadata"]["uid"]
    assert samples(pod) == {0}


def a_job_that_is_resumed_gets_a_pod_once_the_one_before_has_ended(pods: Pods) -> None:
    pods.make()
    (first,) = pods.eventually(lambda: pods.all)
    pods.hold()
    pods.suspend(True)
    pods.eventually(lambda: "deletionTimestamp" in pods.all[0]["metadata"])
    pods.suspend(False)
    pods.eventually(lambda: not suspended(pods.job))
    assert [pod["metadata"]["uid"] for pod in pods.all] == [first["metadata"]["uid"]]
    pods.end(first, 143)
    pods.eventually(lambda: first["metadata"]["uid"] not in [pod["metadata"]["uid"] for pod in pods.all] != [])
    assert not finished(pods.job)


def a_job_of_several_pods_fails_when_all_have_ended(pods: Pods) -> None:
    pods.make(2)
    pods.eventually(lambda: len(pods.all) == 2)
    first, second = sorted(pods.all, key=completion_index)
    assert (completion_index(first), completion_index(second)) == ("0", "1")
    pods.hold()
    pods.end(first, 1)
    pods.eventually(lambda: true_condition(pods.job, "FailureTarget"))
    pods.eventually(lambda: all("deletionTimestamp" in pod["metadata"] for pod in pods.all if is_left(pod)))
    assert not finished(pods.job)
    pods.end(second, 143)
    failure = pods.eventually(lambda: true_condition(pods.job, "Failed"))
    assert failure["reason"] == "BackoffLimitExceeded"
    assert not any(is_left(pod) for pod in pods.all)


def is_left(pod: Any) -> bool:
    return pod["status"].get("phase") not in ("Succeeded", "Failed")


ASKED_OF_JOBS: list[Callable[[Pods], None]] = [
    a_suspended_job_has_no_pods,
    a_job_that_is_resumed_gets_a_pod_once_the_one_before_has_ended,
    a_job_of_several_pods_fails_when_all_have_ended,
]


@pytest.mark.parametrize("ask", ASKED_OF_JOBS, ids=by_name)
def test_the_model_of_jobs(ask: Callable[[Pods], None]) -> None:
    def asked(process: Process, weather: Weather) -> None:
        scheduler = process.scheduler
        server = ApiServer(scheduler)
        client = Client(server, process, weather, lambda _: None, lambda *_: None)
        fates = iter(("crashes", "trained", "trained"))
        Nodes(scheduler, server, Bucket(scheduler), weather, "default", lambda _: None, lambda: next(fates))

        def eventually(check: Callable[[], Any]) -> Any:
            while not (value := check()):
                assert scheduler.now < 1000.0
                scheduler.sleep(0.05)
            return value

        ask(ModelledPods(client, "default", eventually))

    in_a_process(asked)


@pytest.mark.cluster
@pytest.mark.parametrize("ask", ASKED_OF_JOBS, ids=by_name)
def test_jobs(ask: Callable[[Pods], None], control_plane: ControlPlane, namespace: str) -> None:
    ask(Pods(control_plane.client, namespace, eventually))


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
