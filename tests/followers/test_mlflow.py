"""MLflow's follower: whatever dies, hangs, or works at the same time, in the end each sample has one run, and is
whole."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from controller.golden.write import FOLDER, stored
from controller.world import MemoryStore
from followers.fake_mlflow import FakeClient, FakeRun, FakeServer
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_api import names
from nas_api.child import StoreLocation
from nas_api.experiment import MlflowSpec
from nas_api.follower import FollowerInput
from nas_api.handover import Preprocessing, Provenance
from nas_followers import mlflow_runs
from nas_followers.errors import FollowerError
from nas_followers.following import follow
from nas_followers.mlflow import Mlflow
from nas_log.follower import Follower
from nas_log.reader import Facts, Sample

GUIDED = "convolutional-guided"
UID = "u-1"
ASKED = FollowerInput(
    experiment="digits",
    namespace="team",
    uid=UID,
    store=StoreLocation(folder="/store"),
    mlflow=MlflowSpec(uri="http://mlflow.example:5000"),
)


class Killed(BaseException):
    """Stands for a process that dies here: nothing catches it."""


@dataclass
class VirtualClock:
    """Time passes when somebody waits, and then what is due happens."""

    due: list[Callable[[], None]] = field(default_factory=list)
    seconds: float = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds
        assert self.seconds < 10_000, "nobody is done"
        if self.due:
            self.due.pop(0)()


@dataclass
class Stage:
    """A search's store, MLflow, and processes that follow; what happens at each of their calls was drawn."""

    store: MemoryStore
    fates: Iterator[str]
    server: FakeServer
    depth: int = 0

    def live(self) -> None:
        """Run a follower's process until it ends or dies; the kubelet starts it again as often as it dies."""
        while True:
            destination = Mlflow(ASKED)
            destination._client = FakeClient(self.server, self._around)
            try:
                follow(self.store, "mlflow", destination, VirtualClock())
            except (Killed, FollowerError):
                continue
            return

    def _around(self, call: str) -> None:
        match next(self.fates, "go"):
            case "die":
                raise Killed
            case "other" if self.depth < 2:
                # This one hangs here while another one lives and ends.
                self.depth += 1
                self.live()
                self.depth -= 1
            case _:
                pass


def stage(
    store: MemoryStore, fates: Sequence[str] = (), name_of: Callable[[int], str] = lambda n: f"r{n:06d}"
) -> Stage:
    return Stage(store, iter(fates), FakeServer(name_of))


def finished(name: str) -> MemoryStore:
    """Return a golden log's store, with a trained network."""
    store = stored(name)
    samples, facts = whole(store)
    best = max((each for each in samples if each.reward is not None), key=lambda each: each.reward or 0)
    provenance = Provenance(
        experiment="digits",
        namespace="team",
        uid=UID,
        sample=best.number,
        digest=best.architecture.digest,
        metric_name=facts.objective.metric,
        goal="Maximize",
        reward=best.reward or 0.0,
        validation_metric=0.5,
        test_metric=0.25,
        software="1",
    )
    before = Preprocessing(channels=1, height=8, width=8, brightest=16, classes=("0", "1"))
    store.put(names.BEST_ARCHITECTURE, best.architecture.canonical().encode())
    store.put(names.BEST_PREPROCESSING, before.model_dump_json(by_alias=True).encode())
    store.put(names.BEST_ONNX, b"onnx")
    store.put(names.BEST_PROVENANCE, provenance.model_dump_json(by_alias=True).encode())
    return store


def whole(store: MemoryStore) -> tuple[list[Sample], Facts]:
    log = Follower(store)
    samples = [*log.read()]
    assert log.facts is not None
    return samples, log.facts


def converged(stage: Stage) -> dict[int, FakeRun]:
    """Assert that each sample has one run, whole and below the one parent; return them by number."""
    samples, facts = whole(stage.store)
    samples = [each for each in samples if each.arm != "inherited"]
    children = stage.server.active(mlflow_runs.SAMPLE)
    runs = {int(run.tags[mlflow_runs.SAMPLE]): run for run in children}
    assert len(runs) == len(children), "a double"
    assert runs.keys() == {each.number for each in samples}, "one is missing"
    (parent,) = [run for run in stage.server.active() if mlflow_runs.SAMPLE not in run.tags]
    for sample in samples:
        run, wanted = runs[sample.number], mlflow_runs.sample_run(facts, sample, (), UID)
        assert run.tags == {**wanted.tags, mlflow_runs.PARENT: parent.id}
        assert run.params == wanted.parameters
        assert run.metrics == {(each.key, each.value, each.milliseconds, each.step) for each in wanted.metrics}
        assert (run.name, run.begin, run.end, run.status) == (wanted.name, wanted.begin, wanted.end, wanted.status)
    course = {
        (each.key, each.value, each.milliseconds, each.step) for each in mlflow_runs.course(facts, tuple(samples))
    }
    assert course <= parent.metrics
    assert parent.status == "FINISHED" and parent.tags["nas.outcome"] == "SamplesSpent"
    if stage.store.get(names.BEST_ONNX) is not None:
        (version,) = stage.server.versions["digits"].values()
        assert version.run_id == parent.id and parent.artifacts
    return runs


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.log")))
def test_every_sample_of_every_kind_of_search_has_a_run(name: str) -> None:
    it = stage(stored(name))
    it.live()
    converged(it)


def test_a_second_pass_changes_nothing() -> None:
    it = stage(finished(GUIDED))
    it.live()
    before = deepcopy(it.server.runs)
    it.live()
    assert it.server.runs == before
    converged(it)


FATES = st.lists(st.sampled_from(["go"] * 12 + ["die", "die", "other"]), max_size=250)


@settings(max_examples=60, deadline=None)
@given(fates=FATES, order=st.randoms(use_true_random=False))
def test_whatever_dies_or_hangs_none_is_double_and_none_missing(fates: list[str], order: Any) -> None:
    numbers = count()
    it = stage(finished(GUIDED), fates, lambda _: f"{order.getrandbits(64):016x}-{next(numbers)}")
    it.live()
    converged(it)


@pytest.mark.parametrize("call", [*range(14), *range(14, 300, 7)])
def test_a_follower_that_hangs_until_another_one_is_done_leaves_no_double(call: int) -> None:
    """The identifiers fall: what the one that hangs makes when it wakes is what stays."""
    it = stage(finished(GUIDED), ["go"] * call + ["other"], lambda n: f"r{1000 - n:06d}")
    it.live()
    converged(it)


def test_what_somebody_deleted_in_mlflow_is_not_made_again() -> None:
    it = stage(stored(GUIDED))
    it.live()
    unwanted = next(run for run in it.server.active(mlflow_runs.SAMPLE) if run.tags[mlflow_runs.SAMPLE] == "3")
    unwanted.deleted = True
    it.live()
    assert "3" not in {run.tags[mlflow_runs.SAMPLE] for run in it.server.active(mlflow_runs.SAMPLE)}


def test_a_search_is_followed_while_it_grows() -> None:
    full, store, clock = finished(GUIDED), MemoryStore(), VirtualClock()
    server = FakeServer(lambda n: f"r{n:06d}")
    seen: list[int] = []
    for key in full.list(names.LOG_PREFIX):

        def grow(key: str = key) -> None:
            store.put(key, full.objects[key])
            seen.append(len(server.active(mlflow_runs.SAMPLE)))

        clock.due.append(grow)
    for key, data in full.objects.items():
        if not key.startswith(names.LOG_PREFIX):
            store.put(key, data)
    destination = Mlflow(ASKED)
    destination._client = FakeClient(server, lambda _: None)
    follow(store, "mlflow", destination, clock)
    converged(Stage(store, iter(()), server))
    # With the log, not at its end.
    assert len({*seen}) > len(seen) / 4


def test_a_steady_search_costs_three_calls_a_sample() -> None:
    calls: list[str] = []
    it = stage(stored(GUIDED))
    destination = Mlflow(ASKED)
    destination._client = FakeClient(it.server, calls.append)
    follow(it.store, "mlflow", destination, VirtualClock())
    begun = [call for call in calls if call.startswith("before")]
    samples = len(it.server.active(mlflow_runs.SAMPLE))
    assert begun.count("before create_run") == samples + 1
    assert len(begun) <= 3 * samples + 20


def test_a_superseded_follower_does_not_wait_for_ever() -> None:
    store = stored(GUIDED)
    it = stage(store)

    def another(call: str) -> None:
        if call == "before create_run" and len(store.list(names.FOLLOWERS_PREFIX)) == 1:
            # It takes over, and is never heard of again.
            store.put(names.follower_key("mlflow", 1), store.objects[names.follower_key("mlflow", 0)])

    destination = Mlflow(ASKED)
    destination._client = FakeClient(it.server, another)
    clock = VirtualClock()
    with pytest.raises(FollowerError, match="another follower has taken over"):
        follow(store, "mlflow", destination, clock)
    assert clock.seconds >= 3600
    it.live()
    converged(it)
