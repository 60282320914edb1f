"""The controller's own process against a real control plane and a real S3: from the manifest to the outcome.

A thread plays the node (``node.py``).
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster_fixtures import ControlPlane
from controller.node import Node
from experiments import manifest
from patience import HANG_SECONDS, eventually

from nas_api import names
from nas_api.child import S3Location, StoreLocation
from nas_api.experiment import NASExperiment
from nas_kube.resources import EXPERIMENTS, JOBS
from nas_log.log import encode, read_log, read_objects
from nas_log.records import Launched, Lost, Observed, Proposed, Started
from nas_store import Store, open_store

pytestmark = [pytest.mark.cluster, pytest.mark.s3, pytest.mark.slow]


@pytest.fixture
def node(control_plane: ControlPlane, namespace: str) -> Iterator[Node]:
    node = Node(control_plane.client, namespace)
    node.start()
    yield node
    node.stopped.set()
    node.join()


class Bench:
    """One experiment and its controller's processes."""

    def __init__(self, plane: ControlPlane, namespace: str, location: S3Location, **spec: Any) -> None:
        self.plane, self.client, self.namespace = plane, plane.client, namespace
        body = manifest(namespace, "demo", **spec)
        body["spec"]["storage"] = {"s3": {"bucket": location.bucket, "endpoint": location.endpoint}}
        made = self.client.create(EXPERIMENTS, namespace, body)
        self.uid = made["metadata"]["uid"]
        prefix = names.experiment_prefix("nas", namespace, "demo", self.uid)
        self.store: Store = open_store(StoreLocation(s3=location.model_copy(update={"prefix": prefix})))
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "nas_controller"],
            env={
                **os.environ,
                "KUBECONFIG": str(self.plane.kubeconfig),
                "NAS_NAMESPACE": self.namespace,
                "NAS_EXPERIMENT": "demo",
                "NAS_UID": self.uid,
                "NAS_TRAINER_IMAGE": "trainer:test",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def wait(self, process: subprocess.Popen[str], code: int) -> str:
        """Wait for a process's end and return what it wrote."""
        output, _ = process.communicate(timeout=HANG_SECONDS)
        assert process.returncode == code, output
        return output

    @property
    def experiment(self) -> NASExperiment:
        return NASExperiment.model_validate(self.client.get(EXPERIMENTS, self.namespace, "demo"), extra="ignore")

    def status(self, check: Callable[[Any], Any]) -> Any:
        """Wait until the status meets a check, and return it."""

        def look() -> Any:
            status = self.experiment.status
            return status if status is not None and check(status) else None

        return eventually(look, message=lambda: self.experiment.status)

    def change(self, **spec: Any) -> None:
        self.client.patch(EXPERIMENTS, self.namespace, "demo", {"spec": spec})


@pytest.fixture
def make_bench(control_plane: ControlPlane, namespace: str, s3_location: S3Location) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**spec: Any) -> Bench:
        benches.append(Bench(control_plane, namespace, s3_location, **spec))
        return benches[-1]

    yield make
    for bench in benches:
        for process in bench.processes:
            if process.stdout is not None and not process.stdout.closed:
                process.kill()
                process.communicate()


def test_from_the_manifest_to_the_outcome(make_bench: Callable[..., Bench], node: Node) -> None:
    bench = make_bench(budget={"samples": 8}, parallelism=2, searcher={"random": {}})
    output = bench.wait(bench.start(), 0)
    status = bench.experiment.status
    assert status is not None and status.outcome is not None and status.best is not None and status.samples is not None
    assert (status.outcome.type, status.progress, status.epoch) == ("Complete", "8/8", 1)
    assert status.samples.observed == 8 and status.samples.retried == 0
    assert status.best.uri == bench.store.uri(names.BEST_ARCHITECTURE)
    assert bench.store.get(names.BEST_ARCHITECTURE) is not None
    assert all(json.loads(line)["experiment"] == "demo" for line in output.splitlines())
    # The operator may start one more before it has seen the outcome: it does no harm.
    bench.wait(bench.start(), 0)
    assert sum(isinstance(record, Started) for record in read_log(bench.store)) == 1


def test_killed_at_random_moments(make_bench: Callable[..., Bench], node: Node) -> None:
    bench = make_bench(budget={"samples": 30}, parallelism=3)
    moments = random.Random(0)

    def logged() -> int:
        return sum(len(each.records) for each in read_objects(bench.store))

    def reaches(moment: int) -> Callable[[], bool]:
        return lambda: logged() >= moment

    for killed in range(1, 5):
        # Six more samples are trained before each death, which are 19 records at least: the search outlives them all.
        node.allowed = 6 * killed
        process = bench.start()
        moment = logged() + moments.randrange(1, 19)
        eventually(reaches(moment), message="the log goes on")
        process.kill()
        process.communicate()
    node.allowed = math.inf
    bench.wait(bench.start(), 0)
    records = [record for each in read_objects(bench.store) for record in each.records]
    assert [record.epoch for record in records if isinstance(record, Started)] == [1, 2, 3, 4, 5]
    ended = Counter(record.sample for record in records if isinstance(record, Observed | Lost))
    assert ended == Counter(range(30)) and not any(isinstance(record, Lost) for record in records)
    assert sum(isinstance(record, Proposed) for record in records) == 30
    assert sum(isinstance(record, Launched) for record in records) == 30, "no launch was repeated"
    assert node.trained == Counter(range(30)), "no sample was trained twice"


def test_sigterm_ends_it_at_once(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(budget={"samples": 30})
    process = bench.start()
    bench.status(lambda status: status.epoch == 1)
    # Children run, and nothing ends them: whoever waited for them would never end.
    eventually(lambda: bench.client.list(JOBS, bench.namespace).items, message="children run")
    process.send_signal(signal.SIGTERM)
    bench.wait(process, 143)
    assert bench.client.list(JOBS, bench.namespace).items


def test_a_newer_controller_ends_the_older_one(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(budget={"samples": 30}, parallelism=1)
    older = bench.start()
    bench.status(lambda status: status.epoch == 1)
    newer = bench.start()
    bench.status(lambda status: status.epoch == 2)
    # The older one notices at its next write: of the log or of the status.
    bench.change(parallelism=2)
    assert "fenced" in bench.wait(older, 3)
    newer.send_signal(signal.SIGTERM)
    bench.wait(newer, 143)


def test_a_paused_controller_that_wakes_up_changes_nothing_any_more(
    make_bench: Callable[..., Bench], node: Node
) -> None:
    """As a node does that is out of reach for a while: another one ends the search meanwhile."""
    bench = make_bench(budget={"samples": 12}, parallelism=2, searcher={"random": {}})
    paused = bench.start()
    bench.status(lambda status: status.samples is not None and status.samples.observed >= 2)
    paused.send_signal(signal.SIGSTOP)
    bench.wait(bench.start(), 0)

    def everything() -> object:
        best = {key: bench.store.get(key) for key in (names.BEST_ARCHITECTURE, names.BEST_PROVENANCE)}
        jobs = {job["metadata"]["uid"] for job in bench.client.list(JOBS, bench.namespace).items}
        return best, jobs, bench.store.list(names.LOG_PREFIX), bench.experiment.status

    ended = everything()
    paused.send_signal(signal.SIGCONT)
    bench.wait(paused, 3)
    assert everything() == ended
    status = bench.experiment.status
    assert status is not None and status.progress == "12/12"


def test_a_deleted_experiment_ends_its_controller(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(budget={"samples": 30})
    process = bench.start()
    bench.status(lambda status: status.epoch == 1)
    bench.client.delete(EXPERIMENTS, bench.namespace, "demo")
    bench.wait(process, 0)
    eventually(lambda: not bench.client.list(JOBS, bench.namespace).items, message="the children go with it")


def test_a_missing_bucket_is_told_and_waited_for(
    make_bench: Callable[..., Bench], node: Node, s3_location: S3Location, s3_server: Any
) -> None:
    folder = s3_server.root / s3_location.bucket
    hidden = folder.with_name("hidden")
    folder.rename(hidden)
    bench = make_bench(budget={"samples": 3}, searcher={"random": {}})
    process = bench.start()
    status = bench.status(lambda status: status.problem is not None)
    assert status.problem.reason == "BucketNotFound" and s3_location.bucket in status.problem.message
    assert status.epoch is None
    hidden.rename(folder)
    bench.wait(process, 0)
    assert bench.experiment.status is not None and bench.experiment.status.problem is None


def test_a_log_that_was_rewritten_is_told_and_waited_for(make_bench: Callable[..., Bench], node: Node) -> None:
    node.allowed = 4
    bench = make_bench(budget={"samples": 8}, parallelism=2, searcher={"random": {}})
    process = bench.start()
    # What is allowed is trained, and the status has all of the log.
    status = bench.status(
        lambda status: (
            status.samples is not None
            and status.samples.observed == 4
            and status.log.sequence == len(bench.store.list(names.LOG_PREFIX)) - 1
        )
    )
    process.kill()
    process.communicate()
    *_, last = read_objects(bench.store)
    assert (last.sequence, last.digest) == (status.log.sequence, status.log.digest)
    key = names.log_key(last.sequence)
    whole = bench.store.get(key)
    assert whole is not None
    bench.store.put(key, encode("forger", last.sequence, last.previous, last.records))
    process = bench.start()
    status = bench.status(lambda status: status.problem is not None)
    assert status.problem.reason == "LogTampered" and key in status.problem.message
    assert status.outcome is None and status.epoch == 1
    bench.store.put(key, whole)
    node.allowed = math.inf
    assert '"anchor"' in bench.wait(process, 0)
    status = bench.experiment.status
    assert status is not None and status.outcome is not None and status.problem is None
    assert (status.outcome.type, status.epoch) == ("Complete", 2)


def test_wrong_keys_are_told_before_a_fresh_pod_is_asked_for(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(budget={"samples": 3})
    process = bench.start(AWS_SECRET_ACCESS_KEY="wrong")
    status = bench.status(lambda status: status.problem is not None)
    assert status.problem.reason == "CredentialsRefused"
    bench.wait(process, 1)


def test_suspend_and_resume(make_bench: Callable[..., Bench], control_plane: ControlPlane, namespace: str) -> None:
    bench = make_bench(budget={"samples": 4}, parallelism=2, searcher={"random": {}})
    process = bench.start()
    eventually(lambda: len(bench.client.list(JOBS, namespace).items) == 2)
    bench.change(suspend=True)
    eventually(lambda: not bench.client.list(JOBS, namespace).items, message="suspended children are ended")
    bench.status(lambda status: status.samples is not None and status.samples.running == 0)
    node = Node(control_plane.client, namespace)
    node.start()
    bench.change(suspend=False)
    bench.wait(process, 0)
    node.stopped.set()
    node.join()
    status = bench.experiment.status
    assert status is not None and status.samples is not None
    assert (status.samples.observed, status.samples.retried) == (4, 2)
