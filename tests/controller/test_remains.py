"""Children that nobody who lives has made: they are replaced where their manifest was changed meanwhile, ended where
their search is over or is to rest; in virtual time."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from controller.test_search import Bench
from controller.world import MemoryStore, Recorder, make_experiment

from nas_api import names
from nas_api.child import StoreLocation
from nas_api.child_job import child_job, made_from
from nas_api.experiment import NASExperiment, Problem
from nas_api.search_space import search_space
from nas_api.trainer_input import trainer_input
from nas_controller.controller import Controller, ControllerExit
from nas_controller.executor import Outdated
from nas_controller.executors.remains import end_unfinished, outdated
from nas_controller.instruments import Instruments, ProblemSink
from nas_controller.kubernetes_status import Loss
from nas_controller.machine import Machine
from nas_controller.search import Exit
from nas_controller.status import SearchStatus
from nas_kube.client import KubeClient, Listing
from nas_kube.resources import JOBS, Resource
from nas_log.errors import Fenced
from nas_log.records import Launched
from nas_store.errors import StoreUnreachable

BEFORE = {"dataset": {"digits": {}}, "epochs": 1, "image": "trainer:wrong"}
AFTER = {"dataset": {"digits": {}}, "epochs": 1, "image": "trainer:right"}


class Cluster(KubeClient):
    """Jobs and pods in memory."""

    def __init__(self) -> None:
        self.jobs: dict[int, dict[str, Any]] = {}
        self.pods: list[dict[str, Any]] = []

    def make(self, number: int, experiment: NASExperiment, **status: Any) -> None:
        space = search_space(experiment.spec.search_space)
        architecture = space.decode((0,) * len(space.decisions(number)))
        asked = trainer_input(experiment, StoreLocation(folder="/store"), number, 1, architecture)
        job = child_job(experiment, number, (asked,), "trainer:default")
        job["metadata"]["uid"] = f"job-{number}"
        self.jobs[number] = {**job, "status": status}

    def list(self, resource: Resource, namespace: str | None = None, **_: Any) -> Listing:
        return Listing([*self.jobs.values()] if resource is JOBS else self.pods, "1")

    def delete(self, resource: Resource, namespace: str | None, name: str, *, uid: str | None = None) -> bool:
        number = next(number for number, job in self.jobs.items() if job["metadata"]["uid"] == uid)
        assert self.jobs.pop(number)["metadata"]["name"] == name
        return True


COMPLETE = {"conditions": [{"type": "Complete", "status": "True"}]}


def test_only_children_that_do_not_train_yet_are_outdated() -> None:
    before, after = make_experiment(trainer=BEFORE), make_experiment(trainer=AFTER)
    cluster = Cluster()
    cluster.make(0, before)
    cluster.make(1, before, ready=1)
    cluster.make(2, before, **COMPLETE)
    cluster.make(3, after)
    cluster.make(4, before)
    running = {"name": names.TRAINER_CONTAINER, "image": "", "imageID": "", "state": {"running": {}}}
    owner = {"kind": "Job", "name": "", "uid": "job-4", "controller": True}
    cluster.pods = [{"metadata": {"ownerReferences": [owner]}, "status": {"initContainerStatuses": [running]}}]
    cluster.make(5, before)
    # Of an older version, which did not say.
    del cluster.jobs[5]["metadata"]["annotations"][names.ANNOTATION_INPUTS]
    cluster.make(6, before)
    cluster.jobs[6]["metadata"]["ownerReferences"][0]["uid"] = "another"
    assert outdated(cluster, after, "trainer:default") == [0]
    assert outdated(cluster, before, "trainer:default") == [3]


def test_what_pods_are_made_from_is_named_in_the_same_way_by_every_version() -> None:
    spec = make_experiment(trainer=BEFORE).spec
    assert made_from(spec) == made_from(make_experiment(trainer={**BEFORE, "attempts": 9}).spec)
    assert made_from(spec) != made_from(make_experiment(trainer=AFTER).spec)
    # Written down: a Job outlives the version that has made it.
    assert made_from(spec) == "d8ace7e5108a2f10"
    unnamed = make_experiment().spec
    assert made_from(unnamed, "trainer:1") != made_from(unnamed, "trainer:2")


def tell_outdated_first(bench: Bench, progress: Callable[[], bool]) -> None:
    """Have the executor tell, before anything else happens, that launch 1 was made from another manifest."""
    steps = itertools.count()

    def tell() -> bool:
        if next(steps) == 0:
            assert bench.world.post is not None
            bench.world.post(Outdated(1))
            return True
        return progress()

    bench.world.progress = tell  # type: ignore[method-assign]


def test_a_child_from_before_an_edit_that_no_controller_saw_is_made_anew() -> None:
    """Its image cannot be pulled, and would not be for ever; the others train."""
    bench = Bench(starts=False)
    progress = bench.world.progress

    def stop() -> bool:
        bench.search.stop()
        return True

    bench.world.progress = stop  # type: ignore[method-assign]
    spec: dict[str, Any] = {"parallelism": 2, "budget": {"samples": 2}}
    assert bench.run(make_experiment(trainer=BEFORE, **spec)) is Exit.STOPPED
    assert bench.world.created == [0, 1]

    tell_outdated_first(bench, progress)
    assert bench.run(make_experiment(trainer=AFTER, **spec)) is Exit.FINISHED
    assert bench.world.cancelled == [1]
    launched = [(record.launch, record.samples, record.attempt) for record in bench.of_kind(Launched)]
    assert launched == [(0, (0,), 1), (1, (1,), 1), (2, (1,), 2)]
    assert [record.failures for record in bench.of_kind(Launched)] == [0, 0, 0], "nothing is held against it"


def test_one_that_runs_by_now_is_left_alone() -> None:
    bench = Bench()
    tell_outdated_first(bench, bench.world.progress)
    assert bench.run(make_experiment(parallelism=2, budget={"samples": 2})) is Exit.FINISHED
    assert not bench.world.cancelled


def test_children_that_outlived_their_search_are_ended_and_the_ended_ones_keep_their_logs() -> None:
    experiment = make_experiment()
    cluster = Cluster()
    cluster.make(0, experiment, **COMPLETE)
    cluster.make(1, experiment)
    cluster.make(2, experiment, ready=1)
    cluster.make(3, experiment)
    cluster.jobs[3]["metadata"]["ownerReferences"][0]["uid"] = "another"
    assert end_unfinished(cluster, experiment, None) == 2
    assert sorted(cluster.jobs) == [0, 3]
    assert end_unfinished(cluster, experiment, None) == 0


class Told(Recorder):
    """What a controller says before it can search."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[tuple[Problem, bool]] = []

    def publish_problem(self, problem: Problem, *, rests: bool = False) -> None:
        self.problems.append((problem, rests))


class Listening(Instruments):
    def __init__(self, told: Told) -> None:
        self._told = told

    def sink(self, sink: ProblemSink) -> ProblemSink:
        return self._told


@pytest.mark.parametrize("suspend", [False, True])
def test_a_controller_that_cannot_reach_its_log_ends_the_children_of_a_suspended_experiment(
    monkeypatch: pytest.MonkeyPatch, suspend: bool
) -> None:
    experiment, cluster, told = make_experiment(suspend=suspend), Cluster(), Told()
    cluster.make(0, experiment, ready=1)
    controller = Controller(cluster, "default", "demo", experiment.metadata.uid, "trainer:1", Listening(told))
    controller._experiment = experiment

    def unreachable(*_: object) -> Exit:
        raise StoreUnreachable("no answer")

    def gone(seconds: float) -> None:
        if seconds > 0:
            controller._loss = Loss.GONE

    monkeypatch.setattr(controller, "_search_once", unreachable)
    monkeypatch.setattr(controller, "_sleep", gone)
    assert controller._run() is ControllerExit.DONE
    ((problem, rests),) = told.problems
    assert problem.reason == "StoreUnreachable" and rests is suspend
    assert sorted(cluster.jobs) == ([] if suspend else [0])


@pytest.mark.parametrize("overtaken", [False, True])
def test_a_controller_that_wakes_up_ends_nothing_of_its_successors(
    monkeypatch: pytest.MonkeyPatch, overtaken: bool
) -> None:
    """It is stopped while its store is away and its experiment suspended; another one goes on with the search."""
    experiment, cluster, store = make_experiment(suspend=True), Cluster(), MemoryStore()
    controller = Controller(
        cluster,
        "default",
        "demo",
        experiment.metadata.uid,
        "trainer:1",
        Listening(Told()),
        machine=Machine(store=lambda _: store),
    )
    controller._experiment = experiment

    def learn_the_log() -> None:
        assert controller._tenure is not None
        controller._tenure.read(6)

    tries: Iterator[Callable[[], object]] = iter([learn_the_log, lambda: None])

    def probe() -> None:
        next(tries)()
        raise StoreUnreachable("no answer")

    pauses = itertools.count()

    def pause(seconds: float) -> None:
        if seconds > 0 and next(pauses) == 0:
            cluster.make(0, experiment, ready=1)
            if overtaken:
                store.put(names.log_key(7), b"another's")
        elif seconds > 0:
            controller._loss = Loss.GONE

    store.probe = probe  # type: ignore[method-assign]
    monkeypatch.setattr(controller, "_sleep", pause)
    if overtaken:
        with pytest.raises(Fenced):
            controller._run()
        assert sorted(cluster.jobs) == [0]
    else:
        assert controller._run() is ControllerExit.DONE
        assert not cluster.jobs


def test_a_controller_ends_what_a_finished_search_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wrote Finished died before it had cancelled."""
    experiment, cluster = make_experiment(), Cluster()
    cluster.make(0, experiment)
    controller = Controller(cluster, "default", "demo", experiment.metadata.uid, "trainer:1", Listening(Told()))
    controller._experiment = experiment
    monkeypatch.setattr(controller, "_search_once", lambda *_: Exit.FINISHED)
    assert controller._run() is ControllerExit.DONE
    assert not cluster.jobs


class Outage(MemoryStore):
    """A store that is away from an append on, until it is told to be back."""

    away = False

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.away and key.startswith(names.LOG_PREFIX):
            raise StoreUnreachable("no answer")
        return super().put_if_absent(key, data)


def test_a_suspension_is_not_held_up_by_a_store_that_is_away() -> None:
    """The nodes are wanted now, and the log may be out of reach for hours."""
    store = Outage()
    bench = Bench(store=store)
    running = make_experiment(parallelism=3, budget={"samples": 6})
    suspended = make_experiment(parallelism=3, budget={"samples": 6}, suspend=True)
    progress, steps = bench.world.progress, itertools.count()
    seen: list[tuple[float, SearchStatus]] = []

    def happens() -> bool:
        match next(steps):
            case 1:
                store.away = True
                return progress()
            case 2:
                bench.search.change(suspended)
                return True
            case step if 2 < step < 12:
                return False
            case 12:
                assert not any(job.running for job in bench.world.jobs.values())
                assert store.away, "before the log can say anything"
                seen.append((bench.world.seconds, bench.sink.last))
                store.away = False
                return False
            case _:
                return progress()

    def resume() -> None:
        if seen:
            bench.search.change(running)

    bench.world.progress = happens  # type: ignore[method-assign]
    assert bench.run(running, resume) is Exit.FINISHED
    ((_, status),) = seen
    assert status.samples is not None and status.samples.running == 0
    assert status.problem is not None and status.problem.reason == "StoreUnreachable"
    assert bench.sink.last.progress == "6/6"
