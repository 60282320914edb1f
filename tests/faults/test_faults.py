"""What breaks around a search, broken for real on a real cluster: it is told, nothing is lost, and the search goes on.

`make test-faults` runs these. What `make test` has of the kind: controllers and operators that die
(e2e/test_search.py), wrong keys, buckets, quotas and images (e2e/test_failures.py), a log that was rewritten and a
controller that was overtaken (controller/test_process.py). The same faults in every order, in virtual time:
`tests/simulation`.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from demo.places import NAMESPACE
from e2e.conftest import Document, World
from e2e.test_search import assert_nothing_twice_nothing_missing
from hack.cluster import instance as instances
from hack.cluster.processes import Process, all_pids, is_alive, spawn

from nas_api import names
from nas_api.child_job import s3_location
from nas_api.experiment import NASExperiment
from nas_api.reasons import Reason
from nas_log.records import Launched

pytestmark = [pytest.mark.node, pytest.mark.platform, pytest.mark.slow, pytest.mark.timeout(3600)]
Start = Callable[..., Document]
_S3 = "app.kubernetes.io/component=s3"
_CONTROLLER = f"{names.LABEL_ROLE}={names.ROLE_CONTROLLER}"


def observed(world: World, name: str) -> int:
    """Return how many results the status tells of."""
    return int(world.experiment(name).get("status", {}).get("samples", {}).get("observed", 0))


def told(world: World, name: str, reason: Reason) -> str:
    """Wait until an experiment says that it makes no progress for this reason; return the message."""

    def message() -> str:
        found = world.conditions(name).get("Progressing", {})
        return str(found["message"]) if (found.get("status"), found.get("reason")) == ("False", reason) else ""

    said = str(world.eventually(message, lambda: world.experiment(name).get("status")))
    print(f"{reason}: {said}")
    return said


def goes_on(world: World, name: str, more: int = 2) -> None:
    """Wait until so many more results are there."""
    before = observed(world, name)
    world.eventually(lambda: observed(world, name) >= before + more, lambda: world.experiment(name).get("status"))


def ends_whole(world: World, name: str, monkeypatch: pytest.MonkeyPatch, *, retried: int = 0) -> None:
    """Let a search end, and see that each of its samples was trained and learnt once, and none was lost."""
    world.propose_no_more(name)
    samples = world.wait_complete(name)["samples"]
    assert samples["observed"] == samples["proposed"]
    assert (samples["lost"], samples["retried"]) == (0, retried)
    assert_nothing_twice_nothing_missing(world.log(world.experiment(name), monkeypatch), samples["proposed"])
    assert "problem" not in world.experiment(name)["status"]


def of_pods(world: World, selector: str, word: str) -> list[int]:
    """Return the processes of pods on this machine, those that have a word among their arguments."""
    uids = {pod["metadata"]["uid"] for pod in world.items("pods", selector)}
    found = []
    for pid in all_pids():
        try:
            group = Path(f"/proc/{pid}/cgroup").read_text()
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if word in arguments and any(uid in group or uid.replace("-", "_") in group for uid in uids):
            found.append(pid)
    assert found, f"no process of {selector} has {word} among its arguments"
    return found


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes that answer nobody for a while, unless they are ended: connections are accepted, nothing comes."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def of_cluster(world: World, name: str) -> Process:
    """Return a process of the cluster itself."""
    (found,) = [each for each in instances.load_existing(world.place.name).processes if each.name == name]
    return found


def at_work(world: World, experiment: Start, name: str, **spec: Any) -> None:
    """Begin a search that no machine ends by itself, and wait until it has results."""
    experiment(name, 1000, **spec)
    goes_on(world, name)


def test_a_store_that_nobody_reaches_is_told_and_waited_for(
    world: World, experiment: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work(world, experiment, "cut-off")
    # Whoever is connected already stays so, until the store is begun anew.
    service = world.kubectl("get", "service", "nas-s3", "-o", "jsonpath={.spec.selector}")
    world.kubectl("patch", "service", "nas-s3", "-p", json.dumps({"spec": {"selector": {"nobody": "here"}}}))
    try:
        for pid in of_pods(world, _S3, "versitygw"):
            os.kill(pid, signal.SIGKILL)
        assert "nas-s3" in told(world, "cut-off", Reason.STORE_UNREACHABLE)
        # Children that end meanwhile keep what they have trained.
        time.sleep(60.0)
    finally:
        selector = {"nobody": None, **json.loads(service)}
        world.kubectl("patch", "service", "nas-s3", "-p", json.dumps({"spec": {"selector": selector}}))
    goes_on(world, "cut-off")
    ends_whole(world, "cut-off", monkeypatch)


def test_a_webhook_that_does_not_answer_is_told_and_costs_nothing(
    world: World, experiment: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work(world, experiment, "hooked")
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    hook = {
        "name": "nobody.example.com",
        "clientConfig": {"url": "https://127.0.0.1:9/"},
        "rules": [rule],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 2,
    }
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    world.kubectl("create", "-f", "-", stdin=json.dumps({**kind, "metadata": {"name": "nobody"}, "webhooks": [hook]}))
    try:
        said = told(world, "hooked", Reason.API_SERVER_TROUBLE)
        assert "nobody.example.com" in said
    finally:
        world.kubectl("delete", "validatingwebhookconfiguration", "nobody")
    goes_on(world, "hooked")
    ends_whole(world, "hooked", monkeypatch)


def test_an_api_server_that_answers_nobody_for_a_while_costs_nothing(
    world: World, experiment: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work(world, experiment, "alone")
    store = world.store(world.experiment("alone"), monkeypatch)
    trained = len(store.list(names.SAMPLES_PREFIX))
    with stopped([of_cluster(world, "apiserver").pid]):
        # What runs goes on: its result is in the bucket, whoever may hear of it.
        world.eventually(lambda: len(store.list(names.SAMPLES_PREFIX)) > trained, lambda: store.list(""))
        time.sleep(60.0)
    goes_on(world, "alone")
    ends_whole(world, "alone", monkeypatch)


def killed(world: World, name: str) -> Callable[[], None]:
    """Kill a process of the cluster itself; return what begins it again."""
    instance, process = instances.load_existing(world.place.name), of_cluster(world, name)
    words = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    os.kill(process.pid, signal.SIGKILL)
    world.eventually(lambda: not is_alive(process), lambda: process)

    def again() -> None:
        instance.record(spawn(name, words, instance.token, instance.folder / "log" / f"{name}-again.log"))

    return again


def test_jobs_that_are_deleted_while_nobody_can_see_it_are_trained_again(
    world: World, experiment: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new API server answers 410 to a watch that goes on from before it: what happened meanwhile is never told."""
    at_work(world, experiment, "in-the-gap")
    selector = f"{names.LABEL_EXPERIMENT}=in-the-gap,{names.LABEL_ROLE}={names.ROLE_TRAINER}"
    with stopped(of_pods(world, f"{_CONTROLLER},{names.LABEL_EXPERIMENT}=in-the-gap", "nas_controller")):
        # Those that have a result by now count by it, whoever deletes their Jobs.
        open_jobs = [job["metadata"]["name"] for job in world.items("jobs", selector) if job["status"].get("active")]
        world.kubectl("delete", "job", *open_jobs, "--wait=true")
        again = killed(world, "apiserver")
        again()
        world.eventually(lambda: world.try_kubectl("get", "--raw", "/readyz").returncode == 0, lambda: "readyz")
    goes_on(world, "in-the-gap")
    world.propose_no_more("in-the-gap")
    samples = world.wait_complete("in-the-gap")["samples"]
    assert samples["observed"] == samples["proposed"]
    assert (samples["lost"], samples["retried"] <= len(open_jobs)) == (0, True)
    records = world.log(world.experiment("in-the-gap"), monkeypatch)
    assert not [record for record in records if isinstance(record, Launched) and record.failures], "nobody has failed"


def test_a_kubelet_that_is_killed_and_comes_back_costs_nothing(
    world: World, experiment: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work(world, experiment, "without-kubelet")
    again = killed(world, "kubelet")
    # Nothing new starts, and what ends is not told.
    time.sleep(30.0)
    again()
    goes_on(world, "without-kubelet")
    ends_whole(world, "without-kubelet", monkeypatch)


def test_a_manifest_that_is_corrected_while_no_controller_runs_is_taken_over(
    world: World, experiment: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work(world, experiment, "corrected")
    world.patch("corrected", {"trainer": {"image": "localhost/nas-missing:1"}})
    assert "nas-missing" in told(world, "corrected", Reason.IMAGE_PULL_FAILED)
    operator = next(
        item["metadata"]["name"]
        for item in world.items("deployments")
        if item["metadata"]["labels"].get("app.kubernetes.io/component") == "operator"
    )
    world.kubectl("scale", "deployment", operator, "--replicas=0")
    try:
        selector = f"{_CONTROLLER},{names.LABEL_EXPERIMENT}=corrected"
        world.eventually(
            lambda: not world.items("pods", "app.kubernetes.io/component=operator"), lambda: world.items("pods")
        )
        world.kubectl("delete", "pod", "-l", selector, "--wait=true")
        world.patch("corrected", {"trainer": {"image": None}})
    finally:
        world.kubectl("scale", "deployment", operator, "--replicas=1")
    goes_on(world, "corrected")
    # The two that could not begin are made anew.
    ends_whole(world, "corrected", monkeypatch, retried=2)


@pytest.mark.parametrize("lost", ["all", "newest"])
def test_a_log_that_was_wiped_is_told_and_goes_on_once_it_is_restored(
    world: World, experiment: Start, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    name = f"wiped-{lost}"
    at_work(world, experiment, name)
    # Without a controller, as a person does it who cleans up a bucket.
    world.patch(name, {"suspend": True})
    world.eventually(
        lambda: world.conditions(name).get("Suspended", {}).get("status") == "True", lambda: world.conditions(name)
    )
    selector = f"{_CONTROLLER},{names.LABEL_EXPERIMENT}={name}"
    location = s3_location(NASExperiment.model_validate(world.experiment(name), extra="ignore"))
    client, store = world.s3(), world.store(world.experiment(name), monkeypatch)
    keys = sorted(store.list(names.LOG_PREFIX))
    chosen = keys if lost == "all" else keys[-1:]
    kept = {key: store.get(key) for key in chosen}
    for key in chosen:
        client.delete_object(Bucket=location.bucket, Key=f"{location.prefix}{key}")
    world.kubectl("delete", "pod", "-l", selector, "--ignore-not-found")
    world.patch(name, {"suspend": False})
    assert names.LOG_PREFIX.rstrip("/") in told(world, name, Reason.LOG_TAMPERED)
    assert sorted(store.list(names.LOG_PREFIX)) == sorted(set(keys) - set(chosen)), "nothing is begun anew"
    for key, data in kept.items():
        assert data is not None
        client.put_object(Bucket=location.bucket, Key=f"{location.prefix}{key}", Body=data)
    goes_on(world, name)
    ends_whole(world, name, monkeypatch)


def test_keys_that_are_taken_away_and_given_back(
    world: World, experiment: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Secret is rotated in the wrong order: the new one is wrong first. It is the namespace's, not the store's."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "rotated", "namespace": NAMESPACE}}
    world.apply({**secret, "stringData": world.keys()})
    storage = {"bucket": "nas", "endpoint": "http://nas-s3:7070", "credentialsSecret": {"name": "rotated"}}
    at_work(world, experiment, "rotated", storage={"s3": storage})
    wrong = {**world.keys(), "AWS_SECRET_ACCESS_KEY": "wrong"}
    world.apply({**secret, "stringData": wrong})
    selector = f"{_CONTROLLER},{names.LABEL_EXPERIMENT}=rotated"
    world.kubectl("delete", "pod", "-l", selector)
    said = told(world, "rotated", Reason.CREDENTIALS_REFUSED)
    assert "Secret" in said
    world.apply({**secret, "stringData": world.keys()})
    goes_on(world, "rotated")
    # Children that began with the wrong keys could not even read: they wait, and are tried again.
    world.propose_no_more("rotated")
    samples = world.wait_complete("rotated")["samples"]
    assert samples["observed"] == samples["proposed"] and samples["lost"] == 0


def test_a_final_training_past_its_deadline_goes_on_in_a_new_pod_at_no_cost(
    world: World, experiment: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline of a pod is the kubelet's to keep: on a trainer that stands still, none can be too quick for it."""
    name = "beyond"
    experiment(name, 1, finalTraining={"top": 1, "epochs": 60, "deadline": "90s", "checkpointEvery": "1s"})
    store = world.store(world.experiment(name), monkeypatch)
    world.eventually(lambda: store.get(names.checkpoint_key(1)), lambda: store.list(names.SAMPLES_PREFIX))
    selector = f"{names.LABEL_EXPERIMENT}={name},{names.LABEL_SAMPLE}=1"
    (job,) = world.items("jobs", selector)
    with stopped(of_pods(world, selector, "nas_trainer")):

        def ended() -> list[Document]:
            (found,) = [
                each for each in world.items("jobs", selector) if each["metadata"]["uid"] == job["metadata"]["uid"]
            ]
            return [each for each in found["status"].get("conditions", ()) if each["type"] == "Failed"]

        (failed,) = world.eventually(ended, lambda: world.items("pods", selector))
    print(failed["message"])
    final = world.wait_complete(name)["final"]
    assert (final["trained"], final["lost"]) == (1, 0)
    launched = [
        (record.attempt, record.failures)
        for record in world.log(world.experiment(name), monkeypatch)
        if isinstance(record, Launched) and 1 in record.samples
    ]
    assert len(launched) > 1
    assert launched == [(attempt, 0) for attempt in range(1, len(launched) + 1)]
