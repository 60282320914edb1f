"""Searches whose children wait in a queue of a real Kueue, with room for one child at a time."""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from demo.places import NAMESPACE
from e2e.conftest import Document, World, distributed, small
from platform_parts import Kueue, conditions

from nas_api import names
from nas_log.records import Launched, Observed

pytestmark = [pytest.mark.platform, pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(3600)]
Start = Callable[..., Document]
# Less cpu than two children ask for, of examples/digits.yaml or of examples/distributed, and enough memory.
ONE_CHILD = {"cpu": "700m", "memory": "8Gi"}
# Long enough for a child to be caught at work.
LONG = 120


@pytest.fixture
def queue(kueue: Kueue, world: World) -> Iterator[str]:
    """A queue of its own for each test in the release's namespace, with room for one child."""
    name = f"gpu-{time.time_ns()}"
    kueue.make_queue(NAMESPACE, name, ONE_CHILD, preemption="LowerPriority")
    yield name
    kueue.stop(NAMESPACE, name, "None")


def trainer(**more: Any) -> Document:
    """Return the example's trainer with some fields replaced."""
    found: Document = {**small("any", 1)["spec"]["trainer"], **more}
    return found


def jobs(world: World, experiment: str) -> list[Document]:
    """Return an experiment's Jobs, in the order of their launches."""
    found = world.items("jobs", f"{names.LABEL_EXPERIMENT}={experiment}")
    return sorted(found, key=lambda job: int(job["metadata"]["labels"][names.LABEL_LAUNCH]))


def active(world: World, experiment: str) -> list[Document]:
    """Return those that have a pod at work."""
    return [job for job in jobs(world, experiment) if job["status"].get("ready")]


def problem(world: World, experiment: str, words: str) -> Document:
    """Wait until the search waits for its queue, and for words of Kueue's; return the condition."""

    def told() -> Document | None:
        found = world.conditions(experiment).get("Progressing", {})
        queued = found.get("reason") == "Queued" and found["status"] == "False"
        return found if queued and words in found["message"] else None

    found: Document = world.eventually(told, lambda: world.experiment(experiment).get("status"))
    return found


def assert_nothing_was_lost(world: World, name: str, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample was launched once and observed, however often its child was suspended."""
    records = world.log(world.experiment(name), monkeypatch)
    launched = [sample for record in records if isinstance(record, Launched) for sample in record.samples]
    assert sorted(launched) == list(range(samples))
    assert {record.sample for record in records if isinstance(record, Observed)} == set(range(samples))


def test_children_run_one_after_the_other_where_a_queue_has_room_for_one(
    kueue: Kueue, world: World, experiment: Start, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = 6
    began = time.time()
    experiment("queued", samples, parallelism=3, trainer=trainer(queue=queue, epochs=30))

    def told() -> bool:
        progressing = world.conditions("queued").get("Progressing", {})
        return progressing.get("status") == "True" and f"2 of 3 wait in queue {queue}" in progressing["message"]

    world.eventually(told, lambda: world.experiment("queued").get("status"))
    (listing,) = world.kubectl("get", "nas", "queued", "-o", "wide", "--no-headers").splitlines()
    print(listing)
    assert len(kueue.workloads(NAMESPACE)) >= 3
    pods = world.items("pods", f"{names.LABEL_EXPERIMENT}=queued")
    assert not [pod for pod in pods if {names.LABEL_QUEUE, names.LABEL_PRIORITY_CLASS} & set(pod["metadata"]["labels"])]
    assert not [pod for pod in pods if pod["spec"].get("schedulingGates")]

    status = world.wait_complete("queued")
    assert (status["samples"]["observed"], status["samples"].get("queued", 0)) == (samples, 0)
    ended = sorted(jobs(world, "queued"), key=lambda job: str(job["status"]["startTime"]))
    assert len(ended) == samples
    for one, next_one in pairwise(ended):
        assert one["status"]["completionTime"] <= next_one["status"]["startTime"]
    assert_nothing_was_lost(world, "queued", samples, monkeypatch)
    requests = world.requests(began)
    print(f"{len(requests) / samples:.2f} requests of operator and controller for each child in a queue: {requests}")


def test_a_higher_class_preempts_a_child_which_goes_on_later_as_the_same_launch(
    kueue: Kueue, world: World, experiment: Start, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kueue.make_priority("nas-low", 10)
    kueue.make_priority("nas-high", 1000)
    experiment("patient", 1, parallelism=1, trainer=trainer(queue=queue, priorityClass="nas-low", epochs=LONG))
    (job,) = world.eventually(lambda: active(world, "patient"), lambda: jobs(world, "patient"))
    (first,) = world.items("pods", f"{names.LABEL_EXPERIMENT}=patient,{names.LABEL_ROLE}=trainer")

    # It never ends by itself: how long it is in the way is not the machine's to say.
    experiment("urgent", 1, parallelism=1, trainer=trainer(queue=queue, priorityClass="nas-high", epochs=10_000))
    world.eventually(lambda: active(world, "urgent"), lambda: jobs(world, "urgent"))
    (same,) = jobs(world, "patient")
    assert same["metadata"]["uid"] == job["metadata"]["uid"] and same["spec"]["suspend"]
    found = problem(world, "patient", f"1 of 1 waits in queue {queue}: ")
    print(found["message"])
    world.kubectl("delete", "nas", "urgent")

    status = world.wait_complete("patient")
    assert (status["samples"]["observed"], status["samples"]["retried"]) == (1, 0)
    assert_nothing_was_lost(world, "patient", 1, monkeypatch)
    (last,) = jobs(world, "patient")
    pods = world.items("pods", f"{names.LABEL_EXPERIMENT}=patient,{names.LABEL_ROLE}=trainer")
    assert last["metadata"]["uid"] == job["metadata"]["uid"]
    assert [pod for pod in pods if pod["metadata"]["uid"] != first["metadata"]["uid"]], "another pod of the same Job"


def test_a_queue_that_is_stopped_and_resumed_costs_nothing_even_if_the_controller_dies_meanwhile(
    kueue: Kueue, world: World, experiment: Start, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment("stopped", 2, parallelism=2, trainer=trainer(queue=queue, epochs=LONG))
    world.eventually(lambda: active(world, "stopped"), lambda: jobs(world, "stopped"))
    kueue.stop(NAMESPACE, queue)
    problem(world, "stopped", f"2 of 2 wait in queue {queue}")
    found = problem(world, "stopped", "is inactive")
    print(found["message"])
    assert not active(world, "stopped")
    pod = world.experiment("stopped")["status"]["controller"]["pod"]
    world.kubectl("delete", "pod", pod)
    world.eventually(
        lambda: world.experiment("stopped")["status"].get("epoch") == 2, lambda: world.experiment("stopped")["status"]
    )
    problem(world, "stopped", f"2 of 2 wait in queue {queue}")
    kueue.stop(NAMESPACE, queue, "None")
    status = world.wait_complete("stopped")
    assert (status["samples"]["observed"], status["samples"]["retried"], status["samples"]["lost"]) == (2, 0, 0)
    assert_nothing_was_lost(world, "stopped", 2, monkeypatch)


def test_a_queue_that_does_not_exist_is_told_and_corrected(
    kueue: Kueue, world: World, experiment: Start, queue: str
) -> None:
    experiment("astray", 1, parallelism=1, trainer=trainer(queue="nowhere"))
    found = problem(world, "astray", "LocalQueue nowhere")
    print(found["message"])
    assert "1 of 1 waits in queue nowhere: LocalQueue nowhere" in found["message"]
    assert "correct trainer.queue" in found["message"]
    world.patch("astray", {"trainer": {"queue": queue}})
    status = world.wait_complete("astray")
    assert (status["samples"]["observed"], status["samples"]["lost"]) == (1, 0)
    workloads = {name: conditions(item) for name, item in kueue.workloads(NAMESPACE).items()}
    assert workloads, "who let it in was Kueue"


def test_a_priority_class_that_does_not_exist_is_told(
    kueue: Kueue, world: World, experiment: Start, queue: str
) -> None:
    experiment("unknown", 1, parallelism=1, trainer=trainer(queue=queue, priorityClass="nobody"))
    found = problem(world, "unknown", "WorkloadPriorityClass nobody")
    assert "Kueue has not taken up its Job" in found["message"]


# Room for one pod of examples/distributed, with its collector, and for both of a child.
ONE_POD = {"cpu": "300m", "memory": "1Gi"}
BOTH_PODS = {"cpu": "600m", "memory": "2Gi"}


@pytest.fixture
def pairs(world: World) -> Iterator[Document]:
    """A search whose children are two pods each, not yet applied."""
    name = f"pairs-{time.time_ns()}"
    yield distributed(world, name)
    world.try_kubectl("delete", "nas", name, "--ignore-not-found")
    world.try_kubectl("delete", "configmap", name, "--ignore-not-found")


def ranks(world: World, experiment: str) -> list[Document]:
    """Return the pods of an experiment's children."""
    return world.items("pods", f"{names.LABEL_EXPERIMENT}={experiment},{names.LABEL_ROLE}={names.ROLE_TRAINER}")


def test_a_child_of_two_pods_is_let_in_whole_or_not_at_all(
    kueue: Kueue, world: World, pairs: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow, wide = (f"{width}-{time.time_ns()}" for width in ("narrow", "wide"))
    kueue.make_queue(NAMESPACE, narrow, ONE_POD)
    kueue.make_queue(NAMESPACE, wide, BOTH_PODS)
    name = pairs["metadata"]["name"]
    pairs["spec"] |= {"budget": {"samples": 2}, "parallelism": 2}
    pairs["spec"]["trainer"]["queue"] = narrow
    world.apply(pairs)
    print(problem(world, name, f"2 of 2 wait in queue {narrow}: couldn't assign flavors")["message"])
    assert not ranks(world, name), "room for one of its pods is none for a child"

    world.patch(name, {"trainer": {"queue": wide}})
    status = world.wait_complete(name)
    assert (status["samples"]["observed"], status["samples"]["lost"]) == (2, 0)
    records = world.log(world.experiment(name), monkeypatch)
    assert not [record for record in records if isinstance(record, Launched) and record.failures], (
        "moving costs nothing"
    )
    one, other = sorted(jobs(world, name), key=lambda job: str(job["status"]["startTime"]))
    assert one["status"]["completionTime"] <= other["status"]["startTime"], "there is room for one pair"
    for job in (one, other):
        assert job["status"]["succeeded"] == 2
        (pods,) = kueue.workloads(NAMESPACE)[job["metadata"]["name"]]["spec"]["podSets"]
        assert pods["count"] == 2


def test_a_child_of_two_pods_that_is_preempted_loses_both_and_goes_on_as_the_same_launch(
    kueue: Kueue, world: World, experiment: Start, queue: str, pairs: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    kueue.make_priority("nas-low", 10)
    kueue.make_priority("nas-high", 1000)
    name = pairs["metadata"]["name"]
    pairs["spec"]["budget"] = {"samples": 1}
    # Never done before it is preempted; its number of epochs cannot be lowered afterwards.
    pairs["spec"]["trainer"] |= {"queue": queue, "priorityClass": "nas-low", "epochs": 2000}
    world.apply(pairs)
    store = world.store(world.experiment(name), monkeypatch)
    world.eventually(lambda: store.get(names.checkpoint_key(0)), lambda: ranks(world, name))
    (job,) = jobs(world, name)
    before = {pod["metadata"]["uid"] for pod in ranks(world, name)}
    assert len(before) == 2

    experiment("urgent", 1, parallelism=1, trainer=trainer(queue=queue, priorityClass="nas-high", epochs=10_000))
    world.eventually(lambda: active(world, "urgent"), lambda: jobs(world, "urgent"))
    problem(world, name, f"1 of 1 waits in queue {queue}: ")
    assert not [pod for pod in ranks(world, name) if pod["status"]["phase"] == "Running"]
    world.kubectl("delete", "nas", "urgent")

    status = world.wait_complete(name)
    assert (status["samples"]["observed"], status["samples"]["retried"]) == (1, 0)
    assert_nothing_was_lost(world, name, 1, monkeypatch)
    (last,) = jobs(world, name)
    assert (last["metadata"]["uid"], last["status"]["succeeded"]) == (job["metadata"]["uid"], 2)
    after = [pod for pod in ranks(world, name) if pod["metadata"]["uid"] not in before]
    assert sorted(pod["metadata"]["labels"][names.COMPLETION_INDEX] for pod in after) == ["0", "1"]
    for pod in after:
        said = world.kubectl("logs", pod["metadata"]["name"], "-c", names.TRAINER_CONTAINER)
        assert "goes on after epoch" in said
