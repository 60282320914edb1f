"""Death at any moment: what comes back equals a run that was never killed and saw the same order of results.

The world is deterministic and in one thread, so a history is nothing but data that Hypothesis draws: how each
child ends and in which order, after how many calls of a port each controller dies, and whose answers get lost.
A call of a port may be the last thing a process does, or the last thing it does not: faults come before the
effect and after it.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest
import structlog
import torch
from controller.world import (
    CountingPolicy,
    FaultyStore,
    InlinePool,
    Killed,
    MemoryStore,
    Recorder,
    World,
    WorldClock,
    WorldExecutor,
    learning_curve,
    make_experiment,
)
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from nas_api.child import StoreLocation, TrainerInput
from nas_api.experiment import NASExperiment
from nas_controller import beginning, snapshots
from nas_controller.earlier import Earlier
from nas_controller.executor import End
from nas_controller.policies.factory import make_policy
from nas_controller.recovery import recover
from nas_controller.search import Exit, Search
from nas_controller.state import MakePolicy, SearchState, fold
from nas_log.log import read_objects
from nas_log.records import (
    FinalProposed,
    Finished,
    Inherited,
    Launched,
    Lost,
    Observed,
    Proposed,
    Record,
    Started,
)
from nas_store.errors import StoreError

# The store of a search that others begin with; filled before the first test.
EARLIER = MemoryStore()
FATES = ["result"] * 3 + ["result-then-killed", "diverged", "malformed", "some", *(end.value for end in End)]
# A space of two architectures, which are sampled again while they are in flight.
SMALL = {"convolutional": {"layers": {"initial": 1}, "filterHeights": [1], "filterWidths": [1], "filters": [4, 8]}}
# How many calls of a port a process may make before it dies; counted twice a call: before and after.
LIVES = st.lists(st.integers(0, 120), max_size=8)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Thousands of searches have nothing to tell.
        before = structlog.get_config()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        patch.setattr(beginning, "_INHERITED_AT_ONCE", 2)
        first = Run(make_experiment(), ["result", "OutOfMemory", "result", "diverged"], [1, 0, 2], [], [])
        assert isinstance(first.world.store, MemoryStore)
        EARLIER.objects.update(first.world.store.objects)
        yield
        structlog.configure(**before)


def _nothing(_: "Run") -> None:
    """Jobs stay between two controllers."""


def _expire(run: "Run") -> None:
    """So long was nobody there that ended Jobs are gone: only their results tell of them."""
    run.world.expire()


class Run:
    """One history, from the first controller to the end of the search."""

    def __init__(
        self,
        experiment: NASExperiment,
        fates: Iterable[str],
        picks: Iterable[int],
        lives: Iterable[int],
        lost_answers: Iterable[bool],
        policy: MakePolicy = CountingPolicy,
        snapshot_every: int = 5,
        between: Callable[["Run"], None] = _nothing,
        curve: Callable[[TrainerInput], tuple[float, ...]] = lambda _: (),
    ) -> None:
        self.world = World(
            MemoryStore(),
            itertools.chain(fates, itertools.repeat("result")),
            itertools.chain(picks, itertools.repeat(0)),
            curve=curve,
        )
        self.policy = policy
        self.deaths = 0
        lost = iter(lost_answers)
        for life in itertools.chain(lives, itertools.repeat(None, 70)):
            self.search, why = self._live(experiment, life, lost, snapshot_every)
            if why is not None:
                break
            self.deaths += 1
            between(self)
        assert why is Exit.FINISHED

    def _live(
        self, experiment: NASExperiment, life: int | None, lost: Iterator[bool], snapshot_every: int
    ) -> tuple[Search, Exit | None]:
        """Run one controller's process; the exit is None when it was killed."""
        calls = itertools.count()

        def fault(_: str) -> None:
            if life is not None and next(calls) >= life:
                raise Killed

        self.world.fault = fault
        store = FaultyStore(self.world)
        store.lose_answers = lost
        search = Search(
            experiment,
            store=store,
            location=StoreLocation(folder="/store"),
            executor=WorldExecutor(self.world),
            sink=Recorder(),
            pool=InlinePool(),
            make_policy=self.policy,
            find_earlier=lambda _, name, uid: Earlier(name, uid or "its-uid", EARLIER),
            clock=WorldClock(self.world),
            snapshot_every=snapshot_every,
        )
        try:
            return search, search.run()
        except Killed:
            return search, None
        except StoreError:
            # No answer before the first status: the process tries again from the start, as it would in its pod.
            return search, None
        finally:
            self.world.post = None
            self.world.fault = lambda _: None

    @property
    def state(self) -> SearchState:
        return self.search.state


def assert_same(left: SearchState, right: SearchState | None) -> None:
    """Every counter and every bit of every tensor."""
    assert right is not None
    assert left.core == right.core
    ours, theirs = left.policy.dump(), right.policy.dump()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_promises(run: Run, budget: int) -> None:
    """What design.md promises, whatever the history."""
    objects = list(read_objects(run.world.store))  # Raises when there is a gap or a broken chain.
    records: list[Record] = [record for each in objects for record in each.records]
    ended = Counter(record.sample for record in records if isinstance(record, Observed | Lost))
    inherited = [record.sample for record in records if isinstance(record, Inherited)]
    # The earlier search proposed ten, and lost one of them.
    first = 10 if inherited else 0
    assert len(inherited) in (0, 9) and len(set(inherited)) == len(inherited)
    proposed = [record.sample for record in records if isinstance(record, Proposed)]
    assert proposed == list(range(first, first + len(proposed))) and len(proposed) <= budget
    finals = [record.sample for record in records if isinstance(record, FinalProposed)]
    assert finals == list(range(first + budget, first + budget + len(finals)))
    assert set(ended.values()) <= {1}, "each sample is learnt or given up once"
    (finished,) = [record for record in records if isinstance(record, Finished)]
    if finished.outcome == "Complete":
        assert sorted(ended) == list(range(first, first + budget + len(finals))), "none is lost sight of"
    launches = [record for record in records if isinstance(record, Launched)]
    assert [record.launch for record in launches] == list(range(len(launches)))
    for launch, times in Counter(run.world.created).items():
        # A second creation under one number is a repeat of one that was gone without a result.
        assert times == 1 or launch in run.world.cancelled or run.world.gone[launch] >= times - 1
    if run.search._experiment.spec.searcher.duplicates == "Reuse":
        assert_none_trained_beside_its_equal(records)
    epochs = [record.epoch for record in records if isinstance(record, Started)]
    assert epochs == list(range(1, len(epochs) + 1))
    # The state that went through all deaths, the plain fold of the log, and a recovery from snapshot and tail.
    assert_same(run.state, fold(records, run.policy))
    assert_same(run.state, recover(run.world.store, run.policy).state)


def assert_none_trained_beside_its_equal(records: list[Record]) -> None:
    """Where duplicates are reused: whatever is launched, no open sample of its architecture has a launch."""
    digests: dict[int, str] = {}
    launched: set[int] = set()
    for record in records:
        match record:
            case Proposed():
                digests[record.sample] = record.architecture.digest
            case Launched():
                for sample in record.samples:
                    if sample in digests:
                        equals = [other for other in launched - {sample} if digests[other] == digests[sample]]
                        assert not equals, f"sample {sample} is trained beside {equals}"
                        launched.add(sample)
            case Observed() | Lost():
                launched.discard(record.sample)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    fates=st.lists(st.sampled_from(FATES), max_size=40),
    picks=st.lists(st.integers(0, 3), max_size=40),
    lives=LIVES,
    lost_answers=st.lists(st.booleans(), max_size=60),
    parallelism=st.integers(1, 4),
    snapshot_every=st.integers(1, 12),
    expire=st.booleans(),
    duplicates=st.sampled_from(["Reuse", "Train"]),
    control=st.booleans(),
    warm=st.booleans(),
    small=st.booleans(),
    together=st.integers(1, 4),
    final=st.sampled_from([None, {"top": 2, "epochs": 3, "grid": {"learningRate": ["0.1", "0.01"]}}]),
)
@example(["result"], [0], [10, 11, 12, 13], [], 2, 3, True, "Train", False, True, False, 1, None)
@example(["DatasetUnavailable", "Succeeded"], [], [], [], 2, 1, False, "Reuse", True, False, False, 1, None)
@example(
    ["result"] * 8 + ["Failed", "diverged", "OutOfMemory"],
    [1, 0, 2],
    [60, 30, 20, 9],
    [],
    2,
    4,
    True,
    "Train",
    True,
    False,
    False,
    1,
    {"top": 3, "epochs": 2},
)
@example(["Failed", "OutOfMemory", "result"], [1, 0], [14, 9, 20], [], 4, 1, True, "Reuse", False, False, True, 1, None)
@example(["some", "Disrupted", "some"], [1], [12, 20, 9], [], 4, 2, True, "Train", False, False, False, 3, None)
@pytest.mark.slow
def test_after_any_deaths_the_search_is_as_if_it_had_never_died(
    fates: list[str],
    picks: list[int],
    lives: list[int],
    lost_answers: list[bool],
    parallelism: int,
    snapshot_every: int,
    expire: bool,
    duplicates: str,
    control: bool,
    warm: bool,
    small: bool,
    together: int,
    final: dict[str, object] | None,
) -> None:
    searcher = {
        "seed": 7,
        "random": {},
        "duplicates": duplicates,
        **({"control": {"random": "0.4"}} if control else {}),
    }
    trainer = {"dataset": {"digits": {}}, "epochs": 1, "childrenPerPod": together}
    spec = {
        "parallelism": parallelism,
        "trainer": trainer,
        "budget": {"samples": 8, "consecutiveFailures": 6},
        "finalTraining": final,
    }
    if warm:
        # The earlier search had the larger space.
        searcher["warmStart"] = {"experiment": "first"}
    elif small:
        spec["searchSpace"] = SMALL
    experiment = make_experiment(searcher=searcher, **spec)
    between = _expire if expire else _nothing
    run = Run(experiment, fates, picks, lives, lost_answers, snapshot_every=snapshot_every, between=between)
    event(f"deaths: {run.deaths}")
    assert_promises(run, 8)


@pytest.mark.parametrize(
    "spec",
    [
        {"parallelism": 2, "finalTraining": {"top": 2, "epochs": 2}},
        {"parallelism": 4, "searchSpace": SMALL, "searcher": {"seed": 7, "random": {}}},
        {"parallelism": 3, "trainer": {"dataset": {"digits": {}}, "childrenPerPod": 3}},
    ],
    ids=["final", "equals", "packs"],
)
@pytest.mark.slow
def test_death_at_each_single_call(spec: dict[str, object]) -> None:
    """Not at random: one process dies at the n-th call of a port, for every n of a whole run."""
    experiment = make_experiment(budget={"samples": 4}, **spec)
    fates = ["some", "Failed", "diverged", "Disrupted", "result", "result", "result", "Failed"]
    picks = [0, 1, 0, 1]
    died = 0
    for life in itertools.count():
        run = Run(experiment, fates, picks, [life], [], snapshot_every=3)
        assert_promises(run, 4)
        died += run.deaths
        if run.deaths == 0:
            break
    assert died > 25


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(["ppo", "reinforce"]),
    fates=st.lists(st.sampled_from(FATES), max_size=20),
    picks=st.lists(st.integers(0, 3), max_size=20),
    lives=st.lists(st.integers(20, 150), max_size=4),
)
@pytest.mark.slow
def test_the_real_policies_come_back_bit_for_bit(
    kind: str, fates: list[str], picks: list[int], lives: list[int]
) -> None:
    searcher = {"seed": 3, kind: {"batch": 2}}
    experiment = make_experiment(parallelism=3, budget={"samples": 12}, searcher=searcher)
    run = Run(experiment, fates, picks, lives, [], policy=make_policy, snapshot_every=7)
    assert_promises(run, 12)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    fates=st.lists(st.sampled_from(FATES), max_size=20),
    picks=st.lists(st.integers(0, 3), max_size=20),
    lives=st.lists(st.integers(10, 150), max_size=6),
    expire=st.booleans(),
)
def test_early_stopping_goes_on_as_if_the_search_had_never_died(
    fates: list[str], picks: list[int], lives: list[int], expire: bool
) -> None:
    trainer = {"dataset": {"digits": {}}, "epochs": 3, "earlyStopping": {"epoch": 2, "worst": "0.5", "startup": 2}}
    searcher = {"seed": 7, "random": {}, "duplicates": "Reuse", "control": {"random": "0.3"}}
    experiment = make_experiment(parallelism=3, budget={"samples": 12}, searcher=searcher, trainer=trainer)
    between = _expire if expire else _nothing
    run = Run(experiment, fates, picks, lives, [], between=between, curve=learning_curve)
    event(f"stopped: {len(run.state.core.stopped) > 0}")
    assert_promises(run, 12)


def _break_newest_snapshot(run: Run) -> None:
    store = run.world.store
    assert isinstance(store, MemoryStore)
    for key in store.list("snapshots/")[-1:]:
        store.objects[key] = store.objects[key][: len(store.objects[key]) // 2]


@settings(max_examples=30, deadline=None)
@given(lives=LIVES, picks=st.lists(st.integers(0, 3), max_size=20))
def test_broken_snapshots_are_passed_over(lives: list[int], picks: list[int]) -> None:
    experiment = make_experiment(parallelism=3, budget={"samples": 8})
    run = Run(experiment, [], picks, lives, [], snapshot_every=2, between=_break_newest_snapshot)
    assert_promises(run, 8)


def test_a_snapshot_of_another_log_is_not_used() -> None:
    experiment = make_experiment(budget={"samples": 6})
    first = Run(experiment, [], [], [], [], snapshot_every=3)
    second = Run(experiment, ["Failed"], [1, 1], [], [], snapshot_every=3)
    store = second.world.store
    assert isinstance(store, MemoryStore) and isinstance(first.world.store, MemoryStore)
    key = store.list("snapshots/")[0]
    store.objects = {name: data for name, data in store.objects.items() if not name.startswith("snapshots/")}
    store.objects[key] = first.world.store.objects[first.world.store.list("snapshots/")[0]]
    recovered = recover(store, CountingPolicy)
    assert recovered.snapshot_records == 0
    assert_same(second.state, recovered.state)


def test_snapshots_are_true_to_every_prefix_of_the_log() -> None:
    run = Run(make_experiment(budget={"samples": 9}), ["Failed", "diverged"], [1, 0, 2], [], [], snapshot_every=1)
    store = run.world.store
    objects = list(read_objects(store))
    keys = store.list("snapshots/")
    assert len(keys) > 5
    for key in keys:
        state, digest = snapshots.decode(store.get(key) or b"", CountingPolicy)
        sequence = int(key.removeprefix("snapshots/"))
        assert digest == objects[sequence].digest
        prefix = [record for each in objects[: sequence + 1] for record in each.records]
        assert_same(state, fold(prefix, CountingPolicy))
