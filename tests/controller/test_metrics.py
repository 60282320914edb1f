"""What a controller counts: each metric changes when it should, and nothing else does."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from controller.test_executors import Changing
from controller.world import CountingPolicy, MemoryStore, Recorder, make_experiment
from virtual_clock import VirtualClock

from nas_api import names
from nas_api.child import StoreLocation
from nas_api.experiment import Best, NASExperiment, PolicyVitals, Problem, SampleCounts
from nas_api.reasons import Reason
from nas_api.search_space import search_space
from nas_controller.executor import Admitted, Blocked, End, Ended, Event, Launch, Queued, Running
from nas_controller.executors.table import Measure
from nas_controller.instruments import Instruments
from nas_controller.metered import MeteredExecutor, MeteredInstruments, MeteredPolicy, MeteredSink, MeteredStore
from nas_controller.metrics import Metrics
from nas_controller.policies.factory import make_policy
from nas_controller.search import Exit, Search
from nas_controller.status import SearchStatus
from nas_log.log import read_log
from nas_store.errors import BucketNotFound, StoreError, StoreUnreachable, TooLarge
from nas_store.folder import FolderStore


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


# ---------------------------------------------------------------- the store


class Broken(MemoryStore):
    """A store with an error for every call, as long as there is one."""

    error: Exception | None = None

    def get(self, key: str, *, limit: int | None = None) -> bytes | None:
        if self.error is not None:
            raise self.error
        return super().get(key, limit=limit)


def test_the_log_is_measured_apart(metrics: Metrics) -> None:
    store = MeteredStore(MemoryStore(), metrics)
    store.put_if_absent(names.log_key(0), b"12345")
    store.put_if_absent(names.log_key(1), b"123")
    assert not store.put_if_absent(names.log_key(1), b"another's")
    store.put_if_absent(names.result_key(7), b"result")
    assert value(metrics, "nas_log_append_duration_seconds_count") == 3
    assert value(metrics, "nas_log_objects") == 2
    assert value(metrics, "nas_log_appended_bytes_total") == 8
    assert value(metrics, "nas_store_requests_total", operation="put_if_absent", outcome="ok") == 3
    assert value(metrics, "nas_store_requests_total", operation="put_if_absent", outcome="exists") == 1
    assert value(metrics, "nas_store_request_duration_seconds_count", operation="put_if_absent") == 4


@pytest.mark.parametrize("error", [StoreUnreachable("away"), BucketNotFound("none")])
def test_errors_are_counted_by_their_reason_and_say_that_the_store_is_down(metrics: Metrics, error: StoreError) -> None:
    broken = Broken()
    store = MeteredStore(broken, metrics)
    assert value(metrics, "nas_store_up") == 1
    broken.error = error
    with pytest.raises(type(error)) as raised:
        store.get("x")
    assert raised.value is error
    assert value(metrics, "nas_store_requests_total", operation="get", outcome=error.reason.value) == 1
    assert value(metrics, "nas_store_up") == 0
    broken.error = None
    store.get("x")
    assert value(metrics, "nas_store_up") == 1


def test_more_than_the_limit_is_an_answer(metrics: Metrics) -> None:
    broken = Broken()
    broken.error = TooLarge("big")
    with pytest.raises(TooLarge):
        MeteredStore(broken, metrics).get("x", limit=1)
    assert value(metrics, "nas_store_requests_total", operation="get", outcome="ok") == 1
    assert value(metrics, "nas_store_up") == 1


# ---------------------------------------------------------------- children


class Script:
    """An executor that does nothing, and says what a test wants."""

    def __init__(self, existing: frozenset[int] = frozenset(), early: tuple[Event, ...] = ()) -> None:
        self._existing, self._early = existing, early
        self.calls: list[object] = []
        self.post: Callable[[Event], None]

    def start(self, post: Callable[[Event], None]) -> frozenset[int]:
        self.post = post
        for event in self._early:
            post(event)
        return self._existing

    def launch(self, launch: Launch) -> None:
        self.calls.append(launch)

    def cancel(self, launch: int) -> None:
        self.calls.append(launch)

    def change(self, experiment: NASExperiment) -> None:
        self.calls.append(experiment)

    def images(self, sample: int) -> dict[str, str]:
        return {}

    def close(self) -> None:
        self.calls.append("close")


class Children:
    """A metered script and what is known of its children."""

    def __init__(self, metrics: Metrics, script: Script | None = None, together: int = 1) -> None:
        self.script, self.clock, self._metrics = script or Script(), VirtualClock(), metrics
        self.experiment = make_experiment(trainer={"dataset": {"digits": {}}, "childrenPerPod": together})
        self.executor = MeteredExecutor(self.script, self.experiment, metrics, self.clock)
        self.told: list[Event] = []
        self.executor.start(self.told.append)

    def say(self, event: Event) -> None:
        self.script.post(event)
        assert self.told[-1] is event

    def launch(self, number: int, children: int = 1) -> None:
        # Only how many they are is looked at.
        launch = Launch(number, (None,) * children)  # type: ignore[arg-type]
        self.executor.launch(launch)
        assert self.script.calls[-1] is launch

    @property
    def now(self) -> dict[tuple[str, str], float]:
        """How many children there are, by state and reason."""
        (family,) = self._metrics.children.collect()
        return {(each.labels["state"], each.labels["reason"]): each.value for each in family.samples if each.value}


def test_a_child_from_its_launch_to_its_end(metrics: Metrics) -> None:
    children = Children(metrics)
    children.launch(0)
    assert children.now == {("pending", ""): 1}
    children.say(Blocked(0, Reason.UNSCHEDULABLE, "no GPU"))
    assert children.now == {("blocked", "Unschedulable"): 1}
    children.clock.now = 42.0
    children.say(Running(0))
    assert children.now == {("running", ""): 1}
    assert value(metrics, "nas_children_queue_duration_seconds_sum") == 42
    children.say(Blocked(0, Reason.UNSCHEDULABLE, "evicted"))
    children.clock.now = 50.0
    children.say(Running(0))
    assert value(metrics, "nas_children_queue_duration_seconds_count") == 1, "it has waited once"
    children.say(Ended(0, End.FAILED, "words"))
    assert children.now == {}
    assert value(metrics, "nas_children_launched_total") == 1
    assert value(metrics, "nas_children_ended_total", end="Failed") == 1
    assert value(metrics, "nas_children_ended_total", end="Succeeded") == 0, "known before it happens"


def test_a_child_waits_in_its_queue_and_is_preempted(metrics: Metrics) -> None:
    children = Children(metrics)
    children.launch(0)
    children.say(Queued(0, "gpu"))
    assert children.now == {("queued", ""): 1}
    children.clock.now = 30.0
    children.say(Admitted(0))
    assert children.now == {("pending", ""): 1}
    children.say(Running(0))
    assert value(metrics, "nas_children_queue_duration_seconds_sum") == 30
    children.say(Queued(0, "gpu"))
    assert children.now == {("queued", ""): 1}


def test_children_of_one_pod_are_counted_each(metrics: Metrics) -> None:
    children = Children(metrics, together=3)
    children.launch(0, children=3)
    children.launch(1, children=2)
    children.say(Running(0))
    assert children.now == {("running", ""): 3, ("pending", ""): 2}
    children.say(Ended(0, End.SUCCEEDED))
    assert value(metrics, "nas_children_ended_total", end="Succeeded") == 3


def test_what_is_cancelled_stays_away(metrics: Metrics) -> None:
    children = Children(metrics)
    children.launch(0)
    children.executor.cancel(0)
    children.executor.cancel(7)
    assert children.script.calls[-2:] == [0, 7]
    children.say(Blocked(0, Reason.UNSCHEDULABLE, "late"))
    children.say(Running(0))
    children.say(Ended(0, End.FAILED))
    assert children.now == {}
    assert value(metrics, "nas_children_ended_total", end="Cancelled") == 1
    assert value(metrics, "nas_children_ended_total", end="Failed") == 0


def test_children_of_an_earlier_process_count_until_they_end(metrics: Metrics) -> None:
    early = (Running(3), Ended(4, End.SUCCEEDED))
    children = Children(metrics, Script(frozenset({3, 4, 5}), early), together=2)
    assert children.told == list(early)
    assert children.now == {("running", ""): 2, ("pending", ""): 2}
    children.say(Running(5))
    assert value(metrics, "nas_children_queue_duration_seconds_count") == 0, "nobody knows since when it waits"
    children.say(Ended(3, End.SUCCEEDED))
    children.say(Ended(5, End.SUCCEEDED))
    children.say(Running(4))
    assert children.now == {}
    assert value(metrics, "nas_children_launched_total") == 0


def test_slots_follow_the_manifest_and_outlive_the_executor(metrics: Metrics) -> None:
    children = Children(metrics)
    children.launch(0)
    assert value(metrics, "nas_slots") == 3
    for change, slots in (({"parallelism": 5}, 5), ({"parallelism": 5, "suspend": True}, 0), ({}, 3)):
        changed = make_experiment(**change)
        children.executor.change(changed)
        assert children.script.calls[-1] is changed
        assert value(metrics, "nas_slots") == slots
    children.executor.close()
    assert children.now == {} and value(metrics, "nas_slots") == 3


# ---------------------------------------------------------------- policy and status


def test_learning_is_timed(metrics: Metrics) -> None:
    experiment = make_experiment().spec
    bare = CountingPolicy(experiment.searcher, search_space(experiment.search_space))
    twin = CountingPolicy(experiment.searcher, search_space(experiment.search_space))
    policy = MeteredPolicy(twin, metrics)
    assert math.isnan(value(metrics, "nas_reward_last") or 0)
    for each in (bare, policy):
        proposal = each.propose(0)
        each.proposed(0, proposal)
        each.observed(0, 0.75)
        each.lost(1)
    assert policy.vitals() == bare.vitals() and policy.propose(2) == bare.propose(2)
    assert policy.dump()["state"].equal(bare.dump()["state"])
    policy.load(bare.dump())
    assert value(metrics, "nas_policy_update_duration_seconds_count") == 1
    assert value(metrics, "nas_reward_last") == 0.75


class Told(Recorder):
    """A recorder of problems, too."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[Problem] = []

    def publish_problem(self, problem: Problem, *, rests: bool = False) -> None:
        self.problems.append(problem)


def test_the_status_is_measured_as_it_passes(metrics: Metrics) -> None:
    told = Told()
    sink = MeteredSink(told, metrics)
    problem = Problem(reason="StoreUnreachable", message="away")
    status = SearchStatus(
        samples=SampleCounts(budget=20, proposed=9, running=3, observed=5, lost=1, diverged=2, stopped=1, retried=4),
        best=Best(sample=3, reward="0.9", metric="0.95", architecture="a", digest="d", uri="u"),
        policy=PolicyVitals(updates=2, entropy="1.5", mean_reward="0.7"),
        problem=problem,
    )
    sink.publish(status)
    assert told.statuses == [status]
    assert {state: value(metrics, "nas_samples", state=state) for state in ("open", "observed", "lost")} == {
        "open": 3,
        "observed": 5,
        "lost": 1,
    }
    expected = {
        "nas_samples_budget": 20,
        "nas_samples_diverged": 2,
        "nas_samples_stopped": 1,
        "nas_samples_reused": 0,
        "nas_samples_retried": 4,
        "nas_best_reward": 0.9,
        "nas_best_metric": 0.95,
        "nas_reward_mean": 0.7,
        "nas_policy_entropy_nats": 1.5,
    }
    assert {name: value(metrics, name) for name in expected} == expected
    assert value(metrics, "nas_search_problem", reason="StoreUnreachable") == 1
    other = Problem(reason="BucketNotFound", message="none")
    sink.publish_problem(other)
    assert told.problems == [other]
    assert value(metrics, "nas_search_problem", reason="StoreUnreachable") == 0
    assert value(metrics, "nas_search_problem", reason="BucketNotFound") == 1
    sink.publish(SearchStatus())
    assert value(metrics, "nas_search_problem", reason="BucketNotFound") == 0
    assert value(metrics, "nas_best_reward") == 0.9, "what a status leaves out is as it was"


# ---------------------------------------------------------------- a whole search


def searched(folder: Path, instruments: Instruments, measure: Measure) -> list[str]:
    """Run a search on a table and return its log without the moments."""
    experiment = make_experiment(searcher={"seed": 7, "guided": {}, "duplicates": "Train"}, parallelism=1)
    store = instruments.store(FolderStore(folder))
    search = Search(
        experiment,
        store=store,
        location=StoreLocation(folder=str(folder)),
        executor=instruments.executor(Changing(store, measure), experiment),
        sink=instruments.sink(Told()),
        pool=ThreadPoolExecutor(1),
        make_policy=instruments.policy(make_policy),
    )
    assert search.run() is Exit.FINISHED
    return [record.model_copy(update={"moment": None}).model_dump_json() for record in read_log(store)]


def test_a_search_finds_the_same_with_instruments_and_without(metrics: Metrics, tmp_path: Path) -> None:
    def measure(sample: int, architecture: object) -> dict[str, float]:
        return {"accuracy": 0.5 + sample / 100}

    bare = searched(tmp_path / "bare", Instruments(), measure)
    metered = searched(tmp_path / "metered", MeteredInstruments(metrics), measure)
    assert metered == bare
    assert value(metrics, "nas_samples", state="observed") == 10
    assert value(metrics, "nas_children_ended_total", end="Succeeded") == 10
    assert value(metrics, "nas_policy_update_duration_seconds_count") == 10
    assert value(metrics, "nas_log_objects") == len(FolderStore(tmp_path / "metered").list(names.LOG_PREFIX))
