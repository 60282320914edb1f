"""Children as Jobs and the status, on a real control plane; pods' ends are written by the test, as a kubelet would."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from cluster_fixtures import ControlPlane
from controller.node import Node
from experiments import manifest
from patience import HANG_SECONDS, eventually
from virtual_clock import FasterClock

from nas_api import names
from nas_api.child import StoreLocation
from nas_api.experiment import UNSEEN, NASExperiment, NASExperimentStatus, Outcome, Problem, SampleCounts
from nas_api.reasons import Reason
from nas_api.search_space import search_space
from nas_api.trainer_input import trainer_input
from nas_controller.controller import Controller
from nas_controller.executor import Admitted, Blocked, End, Ended, Event, Launch, Outdated, Queued, Running
from nas_controller.executors.kubernetes import KubernetesExecutor
from nas_controller.kubernetes_status import KubernetesSink, Loss
from nas_controller.search import Exit, Search
from nas_controller.status import SearchStatus
from nas_kube.client import KubeClient
from nas_kube.clock import SYSTEM_CLOCK, Clock
from nas_kube.errors import ApiError
from nas_kube.reading import finished
from nas_kube.reflector import EventType
from nas_kube.resources import EXPERIMENTS, JOBS, PODS, Resource
from nas_store import open_store

pytestmark = pytest.mark.cluster

QUOTAS = Resource("v1", "resourcequotas")


class Bench:
    """One experiment in a namespace, and executors for it."""

    def __init__(self, client: KubeClient, namespace: str, **trainer: Any) -> None:
        self.client, self.namespace = client, namespace
        spec = {"trainer": {"dataset": {"digits": {}}, "epochs": 1, **trainer}}
        made = client.create(EXPERIMENTS, namespace, manifest(namespace, "demo", **spec))
        self.experiment = NASExperiment.model_validate(made, extra="ignore")
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.executors: list[KubernetesExecutor] = []
        self.clock: Clock = SYSTEM_CLOCK

    def executor(self, pool: Executor | None = None, **more: Any) -> tuple[KubernetesExecutor, frozenset[int]]:
        executor = KubernetesExecutor(
            self.client, self.experiment, "trainer:test", pool or ThreadPoolExecutor(8), clock=self.clock, **more
        )
        self.executors.append(executor)
        return executor, executor.start(self.events.put)

    def child(self, number: int, experiment: NASExperiment | None = None) -> Launch:
        experiment = experiment or self.experiment
        space = search_space(experiment.spec.search_space)
        architecture = space.decode((0,) * len(space.decisions(number)))
        location = StoreLocation(folder="/store")
        return Launch(number, (trainer_input(experiment, location, number, 1, architecture),))

    def next_event(self) -> Event:
        return self.events.get(timeout=HANG_SECONDS)

    def no_event(self, seconds: float = 1.0) -> None:
        with pytest.raises(Empty):
            pytest.fail(f"unexpected: {self.events.get(timeout=seconds)}")

    def job(self, number: int) -> dict[str, Any] | None:
        name = names.child_job("demo", self.experiment.metadata.uid, number)
        try:
            return self.client.get(JOBS, self.namespace, name)
        except ApiError as error:
            assert error.status == 404
            return None

    def pod(self, number: int) -> dict[str, Any]:
        def find() -> Any:
            selector = f"{names.LABEL_LAUNCH}={number}"
            return self.client.list(PODS, self.namespace, label_selector=selector).items

        found: list[dict[str, Any]] = eventually(find, message=f"launch {number} has a pod")
        return found[0]

    def set_pod(self, number: int, phase: str, container: dict[str, Any] | None = None, **status: Any) -> None:
        """Write a pod's status as its kubelet would."""
        body: dict[str, Any] = {"phase": phase, **status}
        if container is not None:
            body["containerStatuses"] = [
                {
                    "name": names.TRAINER_CONTAINER,
                    "image": "trainer:test",
                    "imageID": "registry/trainer@sha256:1",
                    "ready": "running" in container,
                    "restartCount": 0,
                    "state": container,
                }
            ]
        name = self.pod(number)["metadata"]["name"]
        self.client.patch(PODS, self.namespace, name, {"status": body}, subresource="status")

    def end_pod(self, number: int, code: int, reason: str = "Error", message: str = "") -> None:
        terminated = {"exitCode": code, "reason": reason, "message": message}
        self.set_pod(number, "Failed" if code else "Succeeded", {"terminated": terminated})


@pytest.fixture
def bench(control_plane: ControlPlane, namespace: str) -> Iterator[Bench]:
    bench = Bench(control_plane.client, namespace)
    yield bench
    for executor in bench.executors:
        executor.close()


def test_a_child_runs_and_succeeds(bench: Bench) -> None:
    executor, existing = bench.executor()
    assert existing == frozenset()
    executor.launch(bench.child(0))
    job = eventually(lambda: bench.job(0))
    assert job["metadata"]["ownerReferences"][0]["uid"] == bench.experiment.metadata.uid
    conditions = [{"type": "Ready", "status": "True"}]
    bench.set_pod(0, "Running", {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, conditions=conditions)
    assert bench.next_event() == Running(0)
    bench.end_pod(0, 0)
    assert bench.next_event() == Ended(0, End.SUCCEEDED)
    bench.no_event()
    assert executor.images(0) == {"trainer": "registry/trainer@sha256:1"}
    assert executor.images(1) == {}
    foreign = bench.pod(0)
    labels = {**foreign["metadata"]["labels"], names.LABEL_SAMPLE: "1"}
    body = {
        **foreign,
        "metadata": {"name": "foreign", "labels": labels},
        "spec": {"containers": [{"name": names.TRAINER_CONTAINER, "image": "x"}]},
    }
    bench.client.create(PODS, bench.namespace, body)
    status = [
        {"name": names.TRAINER_CONTAINER, "image": "x", "imageID": "x@sha256:2", "ready": False, "restartCount": 0}
    ]
    bench.client.patch(
        PODS, bench.namespace, "foreign", {"status": {"containerStatuses": status}}, subresource="status"
    )
    assert executor.images(1) == {}, "labels are anybody's to set"


@pytest.mark.parametrize(
    ("code", "reason", "end"),
    [
        (10, "Error", End.INVALID_INPUT),
        (11, "Error", End.OUT_OF_MEMORY),
        (12, "Error", End.DATASET_UNAVAILABLE),
        (14, "Error", End.NO_CUDA),
        (13, "Error", End.STORAGE_REFUSED),
        (15, "Error", End.STORAGE_UNREACHABLE),
        (137, "OOMKilled", End.OUT_OF_MEMORY),
        (137, "Error", End.FAILED),
        (143, "Error", End.DISRUPTED),
        (1, "Error", End.FAILED),
    ],
)
def test_a_childs_exit_code_says_how_it_ended(bench: Bench, code: int, reason: str, end: End) -> None:
    executor, _ = bench.executor()
    executor.launch(bench.child(3))
    bench.end_pod(3, code, reason, "its last words")
    ended = bench.next_event()
    assert isinstance(ended, Ended) and (ended.launch, ended.end) == (3, end)
    assert "its last words" in ended.message


def test_other_ways_to_end(bench: Bench) -> None:
    executor, _ = bench.executor()
    for number in range(4):
        executor.launch(bench.child(number))
    killed = {"terminated": {"exitCode": 143, "reason": "Error"}}
    target = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "for a queen"}
    bench.set_pod(0, "Failed", killed, conditions=[target])
    assert bench.next_event() == Ended(0, End.DISRUPTED, _anything)
    bench.set_pod(1, "Failed", reason="DeadlineExceeded", message="Pod was active too long")
    assert bench.next_event() == Ended(1, End.DEADLINE_EXCEEDED, "DeadlineExceeded: Pod was active too long")
    bench.set_pod(2, "Failed", reason="OutOfcpu", message="the node had no room")
    assert bench.next_event() == Ended(2, End.DISRUPTED, "OutOfcpu: the node had no room")
    job = bench.job(3)
    assert job is not None
    bench.client.delete(JOBS, bench.namespace, job["metadata"]["name"])
    assert bench.next_event() == Ended(3, End.VANISHED, "its Job was deleted")


def test_a_second_controller_finds_and_adopts_what_is_there(bench: Bench) -> None:
    first, _ = bench.executor()
    for number in range(3):
        first.launch(bench.child(number))
    eventually(lambda: all(bench.job(number) for number in range(3)))
    first.close()
    bench.end_pod(1, 12, message="no data")
    eventually(lambda: finished(bench.job(1) or {}))
    second, existing = bench.executor()
    assert existing == {0, 1, 2}
    assert bench.next_event() == Ended(1, End.DATASET_UNAVAILABLE, "no data")
    second.launch(bench.child(2))
    bench.no_event()
    bench.end_pod(2, 0)
    assert bench.next_event() == Ended(2, End.SUCCEEDED)
    assert len(bench.client.list(JOBS, bench.namespace).items) == 3


class AtOnce(Executor):
    """A pool that has done a call before it takes the next one: the soonest that any pool may be."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(call(*arguments, **named))
        return done


def test_a_child_that_has_ended_by_the_time_its_controller_starts_exists(bench: Bench) -> None:
    first, _ = bench.executor()
    first.launch(bench.child(0))
    eventually(lambda: bench.job(0))
    first.close()
    bench.end_pod(0, 12, message="no data")
    eventually(lambda: finished(bench.job(0) or {}))
    _, existing = bench.executor(AtOnce())
    assert existing == {0}
    assert bench.next_event() == Ended(0, End.DATASET_UNAVAILABLE, "no data")
    bench.no_event()


def test_a_namesakes_job_is_not_adopted(bench: Bench) -> None:
    body = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": names.child_job("demo", bench.experiment.metadata.uid, 0)},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "x", "image": "x"}]}}},
    }
    bench.client.create(JOBS, bench.namespace, body)
    executor, existing = bench.executor()
    assert existing == frozenset()
    executor.launch(bench.child(0))
    ended = bench.next_event()
    assert isinstance(ended, Ended) and ended.end is End.FAILED and "does not belong" in ended.message


def test_what_only_looks_like_a_child_is_none(bench: Bench) -> None:
    """Labels are anybody's to set: a Job counts by owner and name, a pod by its Job."""
    uid = bench.experiment.metadata.uid
    mine = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "demo", "uid": uid}
    labels = names.labels("demo", uid, names.ROLE_TRAINER)
    pod = {"restartPolicy": "Never", "containers": [{"name": names.TRAINER_CONTAINER, "image": "x"}]}
    forged = [
        ("another-name", "0", [{**mine, "controller": True}]),
        (names.child_job("demo", uid, 1), "1", [mine]),
        (names.child_job("demo", uid, 2), "3", [{**mine, "controller": True}]),
    ]
    for name, launch, owners in forged:
        metadata = {"name": name, "labels": {**labels, names.LABEL_LAUNCH: launch}, "ownerReferences": owners}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": pod}}}
        bench.client.create(JOBS, bench.namespace, job)
    executor, existing = bench.executor()
    assert existing == frozenset()
    executor.launch(bench.child(5))
    made = bench.pod(5)["metadata"]["name"]
    # It ends as the real one did not, and is newer.
    metadata = {"name": "forged", "labels": {**labels, names.LABEL_LAUNCH: "5"}}
    bench.client.create(PODS, bench.namespace, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod})
    for name, reason, code in (("forged", "OOMKilled", 137), (made, "Error", 12)):
        state = {"terminated": {"exitCode": code, "reason": reason, "message": f"words of {name}"}}
        status = {"name": names.TRAINER_CONTAINER, "image": "x", "imageID": "", "ready": False, "restartCount": 0}
        body = {"phase": "Failed", "containerStatuses": [{**status, "state": state}]}
        bench.client.patch(PODS, bench.namespace, name, {"status": body}, subresource="status")
    ended = bench.next_event()
    assert isinstance(ended, Ended) and ended.launch == 5 and f"words of {made}" in ended.message
    bench.no_event()


def test_a_cancelled_child_is_gone_without_a_word(bench: Bench) -> None:
    executor, _ = bench.executor()
    executor.launch(bench.child(0))
    bench.pod(0)
    executor.cancel(0)
    executor.launch(bench.child(1))
    executor.cancel(1)  # Before its POST is answered, as likely as not.
    executor.cancel(77)
    executor.close()
    eventually(lambda: bench.job(0) is None and bench.job(1) is None)
    eventually(lambda: not bench.client.list(PODS, bench.namespace).items, message="pods go with their Jobs")
    bench.no_event()


def counting(control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> tuple[KubeClient, Counter[str]]:
    """Return a client, and how often it has called for what."""
    client = KubeClient.from_kubeconfig(control_plane.kubeconfig)
    calls: Counter[str] = Counter()
    send = client._send

    def counted(method: str, path: str, *arguments: Any, **options: Any) -> Any:
        calls[f"{method} {path.rpartition('/')[2] if method == 'PATCH' else path.split('/')[-1]}"] += 1
        return send(method, path, *arguments, **options)

    monkeypatch.setattr(client, "_send", counted)
    return client, calls


def test_api_calls_for_each_child(
    bench: Bench, control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One POST a child, and next to nothing else: the watch, and the status by its budget."""
    client, calls = counting(control_plane, monkeypatch)
    children = 30
    spec = {"budget": {"samples": children}, "parallelism": 10, "searcher": {"random": {}}}
    experiment = bench.experiment.model_copy(
        update={"spec": NASExperiment.model_validate(manifest(bench.namespace, "demo", **spec)).spec}
    )
    node = Node(control_plane.client, bench.namespace)
    node.start()
    executor = KubernetesExecutor(client, experiment, "trainer:test", ThreadPoolExecutor(8))
    sink = KubernetesSink(client, experiment, lambda _: None)
    location = StoreLocation(folder=str(tmp_path))
    search = Search(
        experiment,
        store=open_store(location),
        location=location,
        executor=executor,
        sink=sink,
        pool=ThreadPoolExecutor(8),
    )
    began = time.monotonic()
    assert search.run() is Exit.FINISHED
    assert sink.flush(HANG_SECONDS)
    minutes = (time.monotonic() - began) / 60
    for part in (executor, sink):
        part.close()
    node.stopped.set()
    node.join()
    print(f"{sum(calls.values()) / children:.2f} calls a child: {dict(calls)}")
    assert calls["POST jobs"] == children
    assert calls["PATCH status"] <= 2 + 6 + children / 4 + minutes
    # A look after children that have long not begun lists pods and events, every 10 s at most: a slow machine has more.
    looks = calls["GET events"]
    assert looks <= 6 * minutes
    assert sum(calls.values()) - 2 * looks <= 2.2 * children


def test_what_keeps_a_pod_from_running(bench: Bench) -> None:
    bench.clock = FasterClock(20)
    executor, _ = bench.executor()
    executor.launch(bench.child(0))
    unscheduled = bench.next_event()
    assert isinstance(unscheduled, Blocked) and unscheduled.reason is Reason.UNSCHEDULABLE
    assert "no nodes available" in unscheduled.message
    for word, reason in (
        ("ImagePullBackOff", Reason.IMAGE_PULL_FAILED),
        ("CreateContainerConfigError", Reason.CONFIG_MISSING),
    ):
        bench.set_pod(0, "Pending", {"waiting": {"reason": word, "message": f"words about {word}"}})
        blocked = _until(bench, _is_blocked(reason))
        assert f"words about {word}" in blocked.message
    ready = [{"type": "Ready", "status": "True"}]
    bench.set_pod(0, "Running", {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, conditions=ready)
    _until(bench, lambda event: event == Running(0))
    bench.no_event()


def test_what_keeps_a_pod_from_running_is_told_once_and_looked_at_ever_less_often(
    bench: Bench, control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.client, calls = counting(control_plane, monkeypatch)
    bench.clock = FasterClock(300)
    executor, _ = bench.executor()
    executor.launch(bench.child(0))
    assert _is_blocked(Reason.UNSCHEDULABLE)(bench.next_event())
    began, before = bench.clock.monotonic(), calls["GET events"]
    # Twenty minutes of that clock.
    bench.no_event(4.0)
    looks, minutes = calls["GET events"] - before, (bench.clock.monotonic() - began) / 60
    # After 10, 20 and 40 seconds, and from then on every minute.
    assert 1 <= looks <= 3 + minutes


def test_a_child_of_two_pods_runs_when_both_do_and_ends_with_the_first(
    control_plane: ControlPlane, namespace: str
) -> None:
    bench = Bench(control_plane.client, namespace, dataset={"custom": {}}, image="mine:1", pods=2)
    bench.clock = FasterClock(20)
    executor, _ = bench.executor()
    try:
        executor.launch(bench.child(0))

        def by_number() -> dict[str, str]:
            pods = bench.client.list(PODS, namespace, label_selector=f"{names.LABEL_LAUNCH}=0").items
            return {pod["metadata"]["labels"][names.COMPLETION_INDEX]: pod["metadata"]["name"] for pod in pods}

        pods = eventually(lambda: found if len(found := by_number()) == 2 else None, message="both pods")

        def trainer(number: str, state: dict[str, Any], **status: Any) -> None:
            """Write how the trainer of a pod stands, which is an init container."""
            container = {"name": names.TRAINER_CONTAINER, "image": "mine:1", "imageID": "", "ready": False}
            body = {"initContainerStatuses": [{**container, "restartCount": 0, "state": state}], **status}
            bench.client.patch(PODS, namespace, pods[number], {"status": body}, subresource="status")

        running = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        trainer("0", running, phase="Pending")
        trainer("1", {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}, phase="Pending")
        blocked = _until(bench, _is_blocked(Reason.IMAGE_PULL_FAILED))
        assert f"pod {pods['1']}" in blocked.message, "the one for which the other waits"
        trainer("1", running, phase="Pending")
        _until(bench, lambda event: event == Running(0))

        words = {"exitCode": 11, "reason": "Error", "message": "no memory"}
        trainer("1", {"terminated": words}, phase="Failed")
        # Its Job ends the other; without a node, that is gone at once.
        assert _until(bench, lambda event: isinstance(event, Ended)) == Ended(0, End.OUT_OF_MEMORY, "no memory")
        assert list(by_number()) == ["1"]
    finally:
        executor.close()


def in_queue(bench: Bench) -> None:
    """Let the bench's Jobs be made for a queue; who plays Kueue is the test."""
    trainer = bench.experiment.spec.trainer.model_copy(update={"queue": "gpu", "priority_class": "high"})
    spec = bench.experiment.spec.model_copy(update={"trainer": trainer})
    bench.experiment = bench.experiment.model_copy(update={"spec": spec})


def suspend(bench: Bench, number: int, suspend: bool) -> None:
    name = names.child_job("demo", bench.experiment.metadata.uid, number)
    bench.client.patch(JOBS, bench.namespace, name, {"spec": {"suspend": suspend}})


def terminating(bench: Bench, number: int) -> int | None:
    """Return how many pods of a Job are on their way out, as its controller sees it."""
    job = bench.job(number)
    assert job is not None
    count: int | None = job["status"].get("terminating")
    return count


READY = [{"type": "Ready", "status": "True"}]
BEGUN = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def test_a_child_waits_in_its_queue_runs_is_preempted_and_runs_again(bench: Bench) -> None:
    in_queue(bench)
    executor, _ = bench.executor()
    executor.launch(bench.child(0))
    assert bench.next_event() == Queued(0, "gpu")
    assert not bench.client.list(PODS, bench.namespace).items
    suspend(bench, 0, False)
    assert bench.next_event() == Admitted(0)
    # As on a node, the pod is to be there until it has ended.
    metadata = bench.pod(0)["metadata"]
    held = {"metadata": {"finalizers": [*metadata["finalizers"], "nas-operator.io/test"]}}
    bench.client.patch(PODS, bench.namespace, metadata["name"], held)
    bench.set_pod(0, "Running", BEGUN, conditions=READY)
    assert bench.next_event() == Running(0)
    suspend(bench, 0, True)
    assert bench.next_event() == Queued(0, "gpu")
    # It did not end in its grace, and the kubelet killed it; the Job is none the worse.
    eventually(lambda: terminating(bench, 0) == 1)
    bench.end_pod(0, 137)
    eventually(lambda: terminating(bench, 0) == 0, message="the Job's controller has seen its end")
    bench.client.patch(PODS, bench.namespace, metadata["name"], {"metadata": {"finalizers": None}})
    bench.no_event()
    suspend(bench, 0, False)
    assert bench.next_event() == Admitted(0)
    eventually(lambda: bench.pod(0)["metadata"]["name"] != metadata["name"])
    bench.set_pod(0, "Running", BEGUN, conditions=READY)
    assert bench.next_event() == Running(0)
    bench.end_pod(0, 0)
    assert bench.next_event() == Ended(0, End.SUCCEEDED)
    bench.no_event()


def test_a_new_controller_finds_children_in_their_queue(bench: Bench) -> None:
    in_queue(bench)
    first, _ = bench.executor()
    for number in range(2):
        first.launch(bench.child(number))
    assert {bench.next_event(), bench.next_event()} == {Queued(0, "gpu"), Queued(1, "gpu")}
    first.close()
    suspend(bench, 1, False)
    second, existing = bench.executor()
    assert existing == {0, 1}
    assert bench.next_event() == Queued(0, "gpu")
    second.cancel(0)
    eventually(lambda: bench.job(0) is None)
    bench.no_event()


def test_a_queue_without_kueue_is_told(bench: Bench) -> None:
    in_queue(bench)
    bench.clock = FasterClock(20)
    executor, _ = bench.executor()
    executor.launch(bench.child(0))
    assert bench.next_event() == Queued(0, "gpu")
    told = bench.next_event()
    assert isinstance(told, Queued) and "the cluster has no Kueue" in told.why
    bench.no_event()


def test_a_quota_on_pods_is_told_and_waited_for(bench: Bench) -> None:
    bench.clock = FasterClock(20)
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    bench.client.create(QUOTAS, bench.namespace, quota)
    executor, _ = bench.executor()
    executor.launch(bench.child(0))
    blocked = bench.next_event()
    assert (
        isinstance(blocked, Blocked) and blocked.reason is Reason.QUOTA_EXCEEDED and "exceeded quota" in blocked.message
    )


def test_a_quota_on_jobs_is_told_and_waited_for(bench: Bench) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    bench.client.create(QUOTAS, bench.namespace, quota)
    executor, _ = bench.executor()
    executor.launch(bench.child(0))
    blocked = bench.next_event()
    assert (
        isinstance(blocked, Blocked) and blocked.reason is Reason.QUOTA_EXCEEDED and "exceeded quota" in blocked.message
    )
    bench.client.delete(QUOTAS, bench.namespace, "none")
    eventually(lambda: bench.job(0))


def test_a_refused_template_is_told_and_tried_again_when_it_changes(bench: Bench) -> None:
    wrong = bench.experiment.model_copy(
        update={
            "spec": bench.experiment.spec.model_copy(
                update={
                    "trainer": bench.experiment.spec.trainer.model_copy(
                        update={
                            "template": {
                                "spec": {"containers": [{"name": "trainer", "resources": {"limits": {"cpu": "-1"}}}]}
                            }
                        }
                    )
                }
            )
        }
    )
    executor, _ = bench.executor()
    executor.change(wrong)
    executor.launch(bench.child(0))
    blocked = bench.next_event()
    assert isinstance(blocked, Blocked) and blocked.reason is Reason.INVALID_TEMPLATE
    assert "spec.trainer.template" in blocked.message and "cpu" in blocked.message
    executor.change(bench.experiment)
    eventually(lambda: bench.job(0))


@pytest.mark.parametrize("unrestricted", [False, True])
def test_a_template_that_goes_beyond_the_list_during_a_run_makes_no_job(bench: Bench, unrestricted: bool) -> None:
    """The operator tries a changed template as well, but the controller may see it first."""
    trainer = bench.experiment.spec.trainer.model_copy(update={"template": {"spec": {"hostPID": True}}})
    spec = bench.experiment.spec.model_copy(update={"trainer": trainer})
    executor, _ = bench.executor(unrestricted=unrestricted)
    executor.change(bench.experiment.model_copy(update={"spec": spec}))
    executor.launch(bench.child(0))
    if unrestricted:
        made = eventually(lambda: bench.job(0))
        assert made["spec"]["template"]["spec"]["hostPID"] is True
        return
    blocked = bench.next_event()
    assert isinstance(blocked, Blocked) and blocked.reason is Reason.INVALID_TEMPLATE
    assert blocked.message.startswith("spec.trainer.template: spec.hostPID: beyond what a template may ask for")
    assert bench.job(0) is None
    executor.change(bench.experiment)
    eventually(lambda: bench.job(0))


# ---------------------------------------------------------------- the status


def test_the_status_is_written_once_and_only_when_it_changes(bench: Bench) -> None:
    lost: list[Loss] = []
    sink = KubernetesSink(bench.client, bench.experiment, lost.append)
    status = SearchStatus(epoch=1, progress="0/10", samples=SampleCounts(budget=10), problem=_PROBLEM)
    sink.publish(status)
    assert sink.flush(HANG_SECONDS)
    written = _read(bench)
    assert SearchStatus.of(written.status) == status if written.status else False
    version = _raw(bench)["metadata"]["resourceVersion"]
    sink.publish(status.model_copy())
    assert sink.flush(1)
    assert _raw(bench)["metadata"]["resourceVersion"] == version
    finished = status.model_copy(
        update={"problem": None, "outcome": Outcome(type="Complete", reason="SamplesSpent", message="done")}
    )
    sink.publish(finished)
    assert sink.flush(HANG_SECONDS)
    after = _read(bench).status
    assert after is not None and after.problem is None and after.outcome == finished.outcome
    sink.close()
    assert not lost


@pytest.mark.parametrize(("told", "calls"), [(False, {"PATCH status": 2, "GET demo": 1}), (True, {"PATCH status": 1})])
def test_the_operators_part_of_the_status_is_left_alone_and_does_not_hold_us_up(
    bench: Bench, control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, told: bool, calls: dict[str, int]
) -> None:
    """What the watch has told of costs no second try."""
    client, called = counting(control_plane, monkeypatch)
    sink = KubernetesSink(client, bench.experiment, lambda _: None)
    sink.publish(SearchStatus(epoch=1))
    assert sink.flush(HANG_SECONDS)
    called.clear()
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": "demo"},
        "status": {"state": "Searching"},
    }
    applied = bench.client.apply(
        EXPERIMENTS, bench.namespace, "demo", body, field_manager="nas-operator", subresource="status"
    )
    if told:
        sink.saw(applied["metadata"]["resourceVersion"])
    sink.publish(SearchStatus(epoch=1, outcome=Outcome(type="Complete", reason="SamplesSpent", message="")))
    assert sink.flush(HANG_SECONDS)
    status = _read(bench).status
    assert status is not None and status.state == "Searching" and status.outcome is not None
    assert called == calls
    sink.close()


def test_a_controller_s_status_knows_what_its_watch_has_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = _raw(bench)
    controller = Controller(bench.client, bench.namespace, "demo", raw["metadata"]["uid"], "trainer:test")
    controller._on_experiment(EventType.ADDED, raw)
    seen: list[str] = []
    controller._written = KubernetesSink(bench.client, bench.experiment, lambda _: None)
    monkeypatch.setattr(controller._written, "saw", seen.append)
    controller._on_experiment(EventType.MODIFIED, {**raw, "metadata": {**raw["metadata"], "resourceVersion": "7"}})
    controller._on_experiment(EventType.MODIFIED, {**raw, "metadata": {**raw["metadata"], "uid": "namesake"}})
    assert seen == ["7"]
    controller._written.close()


def test_a_lower_epoch_is_refused(bench: Bench) -> None:
    lost: list[Loss] = []
    newer = KubernetesSink(bench.client, bench.experiment, lost.append)
    newer.publish(SearchStatus(epoch=2))
    assert newer.flush(HANG_SECONDS)
    older = KubernetesSink(bench.client, bench.experiment, lost.append)
    older.publish(SearchStatus(epoch=1, progress="1/1"))
    assert not older.flush(HANG_SECONDS)
    eventually(lambda: lost == [Loss.SUPERSEDED])
    newer.close()
    older.close()


def test_a_manifest_that_was_edited_while_no_controller_ran_is_told_of(bench: Bench) -> None:
    executor, _ = bench.executor()
    executor.launch(bench.child(0))
    executor.launch(bench.child(1))
    eventually(lambda: bench.job(0) and bench.job(1))
    conditions = [{"type": "Ready", "status": "True"}]
    bench.set_pod(1, "Running", {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, conditions=conditions)
    assert bench.next_event() == Running(1)
    executor.close()
    patch = {"spec": {"trainer": {"image": "trainer:right"}}}
    bench.client.patch(EXPERIMENTS, bench.namespace, "demo", patch)
    bench.experiment = _read(bench)
    _, existing = bench.executor()
    assert existing == frozenset({0, 1})
    assert _until(bench, lambda event: isinstance(event, Outdated)) == Outdated(0)


def test_a_namesake_is_not_written_to(bench: Bench) -> None:
    lost: list[Loss] = []
    sink = KubernetesSink(bench.client, bench.experiment, lost.append)
    sink.publish(SearchStatus(epoch=1))
    assert sink.flush(HANG_SECONDS)
    bench.client.delete(EXPERIMENTS, bench.namespace, "demo")
    bench.client.create(EXPERIMENTS, bench.namespace, manifest(bench.namespace, "demo"))
    sink.publish(SearchStatus(epoch=1, outcome=Outcome(type="Complete", reason="SamplesSpent", message="")))
    assert not sink.flush(HANG_SECONDS)
    eventually(lambda: lost == [Loss.GONE])
    # What the resource's definition gives it, and nothing of ours.
    assert _read(bench).status == NASExperimentStatus(observed_generation=UNSEEN)
    sink.close()


class Newer(SearchStatus):
    """What a version says that has more to say."""

    from_the_future: str = "told"


def test_under_an_older_definition_the_end_is_told_all_the_same(bench: Bench) -> None:
    """The CRD was rolled back under a newer controller: the API server refuses a status with a field of its own."""
    sink = KubernetesSink(bench.client, bench.experiment, lambda _: None)
    sink.publish(Newer(epoch=1, outcome=Outcome(type="Complete", reason="SamplesSpent", message="10 observed")))
    assert sink.flush(HANG_SECONDS)
    status = _read(bench).status
    assert status is not None and status.outcome is not None
    assert status.outcome.message.startswith("10 observed (status.fromTheFuture cannot be told: apply the Custom")
    sink.close()


_PROBLEM = Problem(reason="BucketNotFound", message="no bucket")


class _Anything(str):
    """Equal to every text."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)

    __hash__ = str.__hash__


_anything = _Anything()


def _is_blocked(reason: Reason) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Blocked) and event.reason is reason


def _until(bench: Bench, wanted: Callable[[Event], bool]) -> Any:
    for _ in itertools.count():
        event = bench.next_event()
        if wanted(event):
            return event
    raise AssertionError("unreachable")


def _raw(bench: Bench) -> dict[str, Any]:
    return bench.client.get(EXPERIMENTS, bench.namespace, "demo")


def _read(bench: Bench) -> NASExperiment:
    return NASExperiment.model_validate(_raw(bench), extra="ignore")
