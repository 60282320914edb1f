"""The search against an executor in memory and a real folder: the whole loop, and each rule of it."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from controller.world import (
    CountingPolicy,
    InlinePool,
    Job,
    MemoryStore,
    Recorder,
    World,
    WorldClock,
    WorldExecutor,
    accuracy,
    make_experiment,
)

from nas_api import names
from nas_api.child import StoreLocation, TrainerInput
from nas_api.experiment import LogHead, NASExperiment
from nas_api.reasons import LostReason, Reason
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_controller.control import arm_of
from nas_controller.earlier import FindEarlier, find
from nas_controller.errors import SearchChanged
from nas_controller.executor import Admitted, Blocked, Event, Queued, Running
from nas_controller.policies import Proposal
from nas_controller.policies.random import RandomPolicy
from nas_controller.recovery import recover
from nas_controller.search import Exit, Search
from nas_controller.state import MakePolicy
from nas_log.log import read_log, read_objects
from nas_log.records import Finished, Launched, Lost, Observed, Proposed, Reconfigured, Started
from nas_store import Store
from nas_store.errors import CredentialsRefused, StoreError, StoreUnreachable
from nas_store.folder import FolderStore

Say = Callable[[], None]
T = TypeVar("T")


class Bench:
    """One world and the searches that are run in it."""

    def __init__(
        self,
        fates: Iterable[str] = (),
        *,
        store: Store | None = None,
        picks: Iterable[int] = (),
        starts: bool = True,
        policy: MakePolicy = CountingPolicy,
        find_earlier: FindEarlier = find,
    ) -> None:
        self.world = World(
            store or MemoryStore(),
            itertools.chain(fates, itertools.repeat("result")),
            itertools.chain(picks, itertools.repeat(0)),
        )
        self.sink = Recorder()
        self.starts = starts
        self.policy = policy
        self.find_earlier = find_earlier
        self.search: Search

    def run(
        self,
        experiment: NASExperiment,
        on_idle: Say = lambda: None,
        snapshot_every: int = 200,
        anchor: LogHead | None = None,
    ) -> Exit:
        self.search = Search(
            experiment,
            store=self.world.store,
            location=StoreLocation(folder="/store"),
            executor=WorldExecutor(self.world, starts=self.starts),
            sink=self.sink,
            pool=InlinePool(),
            make_policy=self.policy,
            find_earlier=self.find_earlier,
            clock=WorldClock(self.world, on_idle),
            snapshot_every=snapshot_every,
            anchor=anchor,
        )
        return self.search.run()

    def of_kind(self, kind: type[T]) -> list[T]:
        return [record for record in self.world.records() if isinstance(record, kind)]


def test_a_search_runs_to_its_end_in_a_real_folder(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    bench = Bench(store=store)
    assert bench.run(make_experiment()) is Exit.FINISHED

    records = read_log(store)
    assert Counter(record.type for record in records) == {
        "Started": 1, "Reconfigured": 1, "Proposed": 10, "Launched": 10, "Observed": 10, "Finished": 1,
    }  # fmt: skip
    status = bench.sink.last
    assert status.outcome is not None and (status.outcome.type, status.outcome.reason) == ("Complete", "SamplesSpent")
    assert status.progress == "10/10" and status.epoch == 1 and status.problem is None
    assert status.samples is not None and (status.samples.observed, status.samples.running) == (10, 0)
    proposed = {record.sample: record.architecture for record in records if isinstance(record, Proposed)}
    best = max(proposed.values(), key=accuracy)
    assert ConvolutionalArchitecture.model_validate_json(store.get(names.BEST_ARCHITECTURE) or b"") == best
    assert b"class Network" in (store.get(names.BEST_MODULE) or b"")
    assert status.best is not None and status.best.digest == best.digest


def test_never_more_in_flight_than_asked_for() -> None:
    bench = Bench()
    bench.run(make_experiment(parallelism=3))
    assert max(status.samples.running for status in bench.sink.statuses if status.samples) == 3
    assert bench.of_kind(Observed)[0].reward == bench.of_kind(Observed)[0].metrics["accuracy"] ** 3


def test_observations_and_what_follows_share_one_object() -> None:
    bench = Bench()
    bench.run(make_experiment(parallelism=3))
    # One object begins the search, one proposes the first three, and each end brings one.
    assert len(bench.world.store.list(names.LOG_PREFIX)) <= 2 + 10


@pytest.mark.parametrize("fate", ["Disrupted", "Vanished"])
def test_a_disruption_costs_nothing(fate: str) -> None:
    bench = Bench([fate] * 5)
    bench.run(make_experiment(parallelism=1, budget={"samples": 2}))
    first = [record for record in bench.of_kind(Launched) if record.samples == (0,)]
    assert [record.attempt for record in first] == [1, 2, 3, 4, 5, 6]
    assert {record.failures for record in first} == {0}
    assert len(bench.of_kind(Observed)) == 2
    assert bench.sink.last.samples is not None and bench.sink.last.samples.retried == 5


def test_a_failure_is_tried_again_as_often_as_the_spec_allows() -> None:
    bench = Bench(["Failed", "Disrupted", "Failed", "Failed"])
    bench.run(make_experiment(parallelism=1, budget={"samples": 2}))
    (lost,) = bench.of_kind(Lost)
    assert (lost.sample, lost.reason, lost.message) == (
        0,
        LostReason.TRAINER_FAILED,
        "the trainer's words about Failed",
    )
    assert [record.failures for record in bench.of_kind(Launched) if record.samples == (0,)] == [0, 1, 1, 2]
    assert bench.sink.last.progress == "2/2"


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("InvalidInput", LostReason.INVALID_ARCHITECTURE),
        ("OutOfMemory", LostReason.OUT_OF_MEMORY),
        ("DeadlineExceeded", LostReason.DEADLINE_EXCEEDED),
        ("malformed", LostReason.INVALID_RESULT),
        ("too-large", LostReason.INVALID_RESULT),
    ],
)
def test_what_another_attempt_cannot_cure_is_lost_at_once(fate: str, reason: LostReason) -> None:
    bench = Bench([fate])
    bench.run(make_experiment(parallelism=1, budget={"samples": 2}))
    (lost,) = bench.of_kind(Lost)
    assert lost.reason is reason and lost.message
    assert len(bench.of_kind(Launched)) == 2


def test_success_without_a_result_is_a_failure() -> None:
    bench = Bench(["Succeeded"] * 3)
    bench.run(make_experiment(parallelism=1, budget={"samples": 1}))
    (lost,) = bench.of_kind(Lost)
    assert "wrote no result" in lost.message


def test_a_result_counts_whatever_the_end_says() -> None:
    bench = Bench(["result-then-killed"])
    bench.run(make_experiment(parallelism=1, budget={"samples": 1}))
    assert len(bench.of_kind(Observed)) == 1 and len(bench.of_kind(Launched)) == 1


def test_divergence_has_the_lowest_reward() -> None:
    experiment = make_experiment(
        parallelism=1,
        budget={"samples": 3},
        objective={"metric": "accuracy", "goal": "Minimize", "reward": {"identity": {}}},
    )
    bench = Bench(["result", "diverged", "result"])
    bench.run(experiment)
    rewards = [record.reward for record in bench.of_kind(Observed)]
    assert rewards[0] < 0 and rewards[1] == rewards[0]
    assert bench.sink.last.samples is not None and bench.sink.last.samples.diverged == 1
    assert bench.sink.last.best is not None and bench.sink.last.best.sample != 1


def test_a_penalty_is_part_of_the_reward() -> None:
    bench = Bench()
    bench.world.metrics = {"flops": 400.0}
    penalties = [{"metric": "parameters", "target": "1000", "exponent": "1"}, {"metric": "flops", "target": "100"}]
    bench.run(make_experiment(budget={"samples": 3}, objective={"penalties": penalties}))
    for record in bench.of_kind(Observed):
        assert record.reward == pytest.approx(record.metrics["accuracy"] ** 3 / 2 * 4**-0.07)


def test_a_child_that_does_not_report_a_penalised_metric_is_lost() -> None:
    bench = Bench()
    objective = {"penalties": [{"metric": "latencySeconds", "target": "0.1"}]}
    bench.run(make_experiment(budget={"samples": 2}, objective=objective))
    lost = bench.of_kind(Lost)
    assert [record.reason for record in lost] == [LostReason.INVALID_RESULT] * 2
    assert "objective.penalties names 'latencySeconds', but metrics has only ['accuracy'" in lost[0].message


REUSE = {"seed": 7, "random": {}}
# A space of one architecture.
ONE = {"convolutional": {"layers": {"initial": 1}, "filterHeights": [1], "filterWidths": [1], "filters": [4]}}


def _architectures(bench: Bench) -> dict[int, str]:
    return {record.sample: record.architecture.digest for record in bench.of_kind(Proposed)}


def test_a_known_architecture_takes_its_result_at_once() -> None:
    bench = Bench()
    bench.run(make_experiment(parallelism=1, budget={"samples": 40}, searcher=REUSE))
    architectures, observed = _architectures(bench), bench.of_kind(Observed)
    assert len(observed) == 40 and bench.sink.last.progress == "40/40"
    by_sample = {record.sample: record for record in observed}
    reused = [record for record in observed if record.reused is not None]
    for record in reused:
        assert record.reused is not None
        first = by_sample[record.reused]
        assert first.reused is None and architectures[record.reused] == architectures[record.sample]
        assert (record.reward, record.metrics, record.seconds) == (first.reward, first.metrics, 0.0)
    trained = [sample for sample in by_sample if by_sample[sample].reused is None]
    assert len({architectures[sample] for sample in trained}) == len(trained) == len(bench.of_kind(Launched)) < 40
    assert bench.sink.last.samples is not None and bench.sink.last.samples.reused == len(reused)
    # The policy was told of each: its state counts them.
    assert bench.sink.last.policy is not None and bench.sink.last.policy.updates == 40


def test_a_known_divergence_is_not_trained_again() -> None:
    bench = Bench(["diverged"] * 40)
    bench.run(make_experiment(parallelism=1, budget={"samples": 40}, searcher=REUSE))
    reused = [record for record in bench.of_kind(Observed) if record.reused is not None]
    assert reused and all(record.diverged and record.metrics == {} for record in reused)


def test_duplicates_are_trained_again_where_that_is_asked_for() -> None:
    bench = Bench()
    bench.run(make_experiment(parallelism=1, budget={"samples": 40}))
    assert len(bench.of_kind(Launched)) == 40 and len(set(_architectures(bench).values())) < 40
    assert bench.sink.last.samples is not None and bench.sink.last.samples.reused == 0


def test_a_policy_that_proposes_nothing_new_spends_the_budget_in_objects_of_bounded_size() -> None:
    bench = Bench()
    bench.run(make_experiment(budget={"samples": 1000}, searcher=REUSE, searchSpace=ONE))
    sizes = [Counter(record.type for record in each.records) for each in read_objects(bench.world.store)]
    assert max(size["Proposed"] for size in sizes) <= 64
    assert bench.sink.last.progress == "1000/1000" and len(bench.of_kind(Launched)) == 1
    assert len(sizes) < 30


def test_what_is_in_flight_is_not_trained_a_second_time() -> None:
    bench = Bench()
    bench.run(make_experiment(parallelism=3, budget={"samples": 5}, searcher=REUSE, searchSpace=ONE))
    kinds = [(record.type, getattr(record, "sample", None)) for record in bench.world.records()]
    begun = [("Proposed", sample) for sample in range(3)]
    # Those that wait take room, and are observed with the one that they wait for, in one object.
    assert kinds[2:6] == [*begun, ("Launched", None)]
    assert kinds[6:9] == [("Observed", sample) for sample in range(3)]
    assert [record.reused for record in bench.of_kind(Observed)] == [None, 0, 0, 0, 0]
    (object_,) = [each for each in read_objects(bench.world.store) if each.records[0].type == "Observed"]
    assert len(object_.records) > 3
    assert max(status.samples.running for status in bench.sink.statuses if status.samples) == 1


def test_when_the_first_of_equals_is_lost_the_next_one_is_launched() -> None:
    bench = Bench(["OutOfMemory", "Disrupted", "result"])
    bench.run(make_experiment(parallelism=4, budget={"samples": 4}, searcher=REUSE, searchSpace=ONE))
    assert [(record.samples, record.attempt) for record in bench.of_kind(Launched)] == [((0,), 1), ((1,), 1), ((1,), 2)]
    assert [record.sample for record in bench.of_kind(Lost)] == [0]
    assert [(record.sample, record.reused) for record in bench.of_kind(Observed)] == [(1, None), (2, 1), (3, 1)]


def test_equal_architectures_are_trained_at_once_where_that_is_asked_for() -> None:
    bench = Bench()
    bench.run(make_experiment(parallelism=3, budget={"samples": 3}, searchSpace=ONE))
    kinds = [record.type for record in bench.world.records()]
    assert kinds[2:8] == ["Proposed", "Proposed", "Proposed", "Launched", "Launched", "Launched"]


def test_the_random_arm_shares_results_in_flight_too() -> None:
    bench = Bench()
    searcher = {**REUSE, "control": {"random": "0.5"}}
    bench.run(make_experiment(parallelism=8, budget={"samples": 8}, searcher=searcher, searchSpace=ONE))
    assert len(bench.of_kind(Launched)) == 1
    control = bench.sink.last.control
    assert control is not None and control.policy.observed + control.random.observed == 8
    assert control.random.observed > 0


def test_a_suspension_leaves_no_one_waiting() -> None:
    bench = Bench()
    running = make_experiment(parallelism=3, budget={"samples": 4}, searcher=REUSE, searchSpace=ONE)
    suspended = make_experiment(parallelism=3, budget={"samples": 4}, searcher=REUSE, searchSpace=ONE, suspend=True)
    progress, done = bench.world.progress, itertools.count()

    def suspend_first() -> bool:
        if next(done) == 0:
            bench.search.change(suspended)
            return True
        return progress()

    bench.world.progress = suspend_first  # type: ignore[method-assign]
    assert bench.run(running, lambda: bench.search.change(running)) is Exit.FINISHED
    assert [(record.samples, record.attempt) for record in bench.of_kind(Launched)] == [((0,), 1), ((0,), 2)]
    assert bench.sink.last.progress == "4/4"


def test_after_the_deadline_those_that_wait_are_still_seen_to() -> None:
    bench = Bench(["OutOfMemory"])
    progress = bench.world.progress

    def slowly() -> bool:
        bench.world.seconds += 100
        return progress()

    bench.world.progress = slowly  # type: ignore[method-assign]
    budget = {"samples": 100, "duration": "1m"}
    bench.run(make_experiment(parallelism=3, budget=budget, searcher=REUSE, searchSpace=ONE))
    assert bench.sink.last.progress == "3/100" and len(bench.of_kind(Launched)) == 2


def test_final_trainings_of_one_architecture_do_not_wait_for_each_other() -> None:
    bench = Bench()
    final = {"top": 1, "epochs": 2, "grid": {"learningRate": ["0.1", "0.01"]}}
    bench.run(make_experiment(budget={"samples": 2}, searcher=REUSE, searchSpace=ONE, finalTraining=final))
    kinds = [record.type for record in bench.world.records()]
    begin = kinds.index("FinalProposed")
    assert kinds[begin : begin + 4] == ["FinalProposed", "FinalProposed", "Launched", "Launched"]


def test_reused_results_do_not_hide_that_everything_fails() -> None:
    # Of 128 architectures some are known when the failures begin: the losses between them are in a row all the same.
    bench = Bench(itertools.chain(["result"] * 60, itertools.repeat("OutOfMemory")), policy=RandomPolicy)
    bench.run(make_experiment(parallelism=1, budget={"samples": 400, "consecutiveFailures": 20}, searcher=REUSE))
    outcome = bench.sink.last.outcome
    assert outcome is not None and outcome.reason == "ConsecutiveFailures"
    kinds = [record.type for record in bench.world.records()]
    assert "Observed" in kinds[kinds.index("Lost") :]


PACKS = {"dataset": {"digits": {}}, "epochs": 1, "childrenPerPod": 4}


def launched(bench: Bench) -> list[tuple[int, ...]]:
    return [record.samples for record in bench.of_kind(Launched)]


def test_children_share_pods_and_keep_them_full() -> None:
    bench = Bench()
    bench.run(make_experiment(parallelism=10, budget={"samples": 18}, trainer=PACKS))
    # Room for two is none, unless they are the rest of the budget.
    assert launched(bench) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15), (16, 17)]
    assert bench.sink.last.progress == "18/18"
    assert max(status.samples.running for status in bench.sink.statuses if status.samples) == 10


def test_each_of_a_pack_is_judged_by_its_own_result_and_no_one_for_the_others() -> None:
    bench = Bench(["some", "result", "OutOfMemory"])
    bench.run(make_experiment(parallelism=4, budget={"samples": 4}, trainer=PACKS))
    launches = bench.of_kind(Launched)
    assert [(each.samples, each.attempt, each.failures) for each in launches] == [
        ((0, 1, 2, 3), 1, 0),
        ((1,), 2, 0),
        ((3,), 2, 0),
    ]
    assert sorted(record.sample for record in bench.of_kind(Observed)) == [0, 1, 2]
    (lost,) = bench.of_kind(Lost)
    assert (lost.sample, lost.reason) == (3, LostReason.OUT_OF_MEMORY)


@pytest.mark.parametrize("fate", ["InvalidInput", "OutOfMemory", "DeadlineExceeded", "Failed", "Succeeded"])
def test_the_end_of_a_pack_blames_no_one(fate: str) -> None:
    bench = Bench([fate])
    bench.run(make_experiment(parallelism=4, budget={"samples": 4}, trainer={**PACKS, "attempts": 1}))
    assert launched(bench) == [(0, 1, 2, 3), (0,), (1,), (2,), (3,)]
    assert len(bench.of_kind(Observed)) == 4


@pytest.mark.parametrize("fate", ["Disrupted", "Vanished", "DatasetUnavailable"])
def test_what_is_no_childs_fault_is_repeated_together(fate: str) -> None:
    bench = Bench([fate] * 3)
    bench.run(make_experiment(parallelism=4, budget={"samples": 4}, trainer=PACKS))
    assert launched(bench) == [(0, 1, 2, 3)] * 4
    assert {record.failures for record in bench.of_kind(Launched)} == {0}
    assert bench.sink.last.progress == "4/4"


def test_one_that_is_tried_alone_stays_alone() -> None:
    # All four fail together, and alone they are all ended at once, by a suspension.
    bench = Bench(["Failed"])
    running = make_experiment(parallelism=4, budget={"samples": 4}, trainer=PACKS)
    suspended = make_experiment(parallelism=4, budget={"samples": 4}, trainer=PACKS, suspend=True)
    progress, done = bench.world.progress, itertools.count()

    def suspend_after_one() -> bool:
        if next(done) == 1:
            bench.search.change(suspended)
            return True
        return progress()

    bench.world.progress = suspend_after_one  # type: ignore[method-assign]
    assert bench.run(running, lambda: bench.search.change(running)) is Exit.FINISHED
    assert launched(bench) == [(0, 1, 2, 3), *[(0,), (1,), (2,), (3,)] * 2]


def test_final_trainings_have_a_pod_each() -> None:
    bench = Bench()
    final = {"top": 1, "epochs": 2, "grid": {"learningRate": ["0.1", "0.01"]}}
    bench.run(make_experiment(parallelism=4, budget={"samples": 4}, trainer=PACKS, finalTraining=final))
    # Two of the grid, and the test.
    assert launched(bench) == [(0, 1, 2, 3), (4,), (5,), (6,)]


def test_duplicates_leave_packs_neither_waiting_nor_empty() -> None:
    bench = Bench(policy=RandomPolicy)
    bench.run(make_experiment(parallelism=8, budget={"samples": 200}, searcher=REUSE, trainer=PACKS))
    assert bench.sink.last.progress == "200/200"
    packs = launched(bench)
    assert sum(map(len, packs)) == len(set(_architectures(bench).values()))
    # As long as the space has something new, a pack is seldom without one of its children.
    assert sum(map(len, packs[:10])) >= 36


def test_suspension_and_a_new_template_take_packs_as_they_are() -> None:
    bench = Bench(starts=False)
    running = make_experiment(parallelism=4, budget={"samples": 4}, trainer=PACKS)
    suspended = make_experiment(parallelism=4, budget={"samples": 4}, trainer=PACKS, suspend=True)
    changed = make_experiment(parallelism=4, budget={"samples": 4}, trainer={**PACKS, "childrenPerPod": 2})
    progress, done = bench.world.progress, itertools.count()

    def suspend_then_change() -> bool:
        match next(done):
            case 0:
                bench.search.change(suspended)
            case 1:
                return False
            case 2:
                bench.search.change(changed)
            case _:
                return progress()
        return True

    bench.world.progress = suspend_then_change  # type: ignore[method-assign]
    assert bench.run(running, lambda: bench.search.change(running)) is Exit.FINISHED
    assert [(record.samples, record.attempt) for record in bench.of_kind(Launched)] == [
        ((0, 1, 2, 3), 1),
        ((0, 1, 2, 3), 2),
        ((0, 1), 3),
        ((2, 3), 3),
    ]
    assert bench.world.cancelled == [0, 1]


CONTROL = {"seed": 7, "random": {}, "duplicates": "Train", "control": {"random": "0.3"}}


def test_a_share_of_the_samples_is_random_and_unknown_to_the_policy() -> None:
    told = []

    class Listening(CountingPolicy):
        def proposed(self, sample: int, proposal: Proposal) -> None:
            told.append(sample)
            super().proposed(sample, proposal)

        def observed(self, sample: int, reward: float) -> None:
            assert sample in told
            super().observed(sample, reward)

        def lost(self, sample: int) -> None:
            assert sample in told
            super().lost(sample)

    bench = Bench(["result", "OutOfMemory"] * 20, policy=Listening)
    bench.run(make_experiment(budget={"samples": 60}, searcher=CONTROL))
    arms = {record.sample: record.arm for record in bench.of_kind(Proposed)}
    assert arms == {sample: arm_of(make_experiment(searcher=CONTROL).spec.searcher, sample) for sample in range(60)}
    assert sorted(told) == [sample for sample, arm in arms.items() if arm == "policy"]
    assert 8 <= list(arms.values()).count("random") <= 30
    control, observed = bench.sink.last.control, bench.of_kind(Observed)
    assert control is not None and bench.sink.last.best is not None
    for arm, total in (("policy", control.policy), ("random", control.random)):
        rewards = [record.reward for record in observed if arms[record.sample] == arm]
        assert total.observed == len(rewards)
        assert float(total.mean_reward or "nan") == pytest.approx(sum(rewards) / len(rewards), rel=1e-4)
    assert 0 < control.pairs <= control.random.observed
    assert float(bench.sink.last.best.reward) == pytest.approx(max(record.reward for record in observed), rel=1e-5)
    assert bench.sink.last.policy is not None
    assert bench.sink.last.policy.updates == control.policy.observed


def test_without_a_control_nothing_is_said_of_one() -> None:
    bench = Bench()
    bench.run(make_experiment())
    assert bench.sink.last.control is None
    assert {record.arm for record in bench.of_kind(Proposed)} == {"policy"}


def test_what_blocked_a_child_that_is_gone_is_no_problem() -> None:
    bench = Bench(starts=False)
    end = bench.world.end

    def blocked_after_its_end(number: int, fate: str) -> None:
        end(number, fate)
        assert bench.world.post is not None
        bench.world.post(Blocked(number, Reason.UNSCHEDULABLE, "no node fits"))

    bench.world.end = blocked_after_its_end  # type: ignore[method-assign]
    progress = bench.world.progress

    def slowly() -> bool:
        bench.world.seconds += 20
        return progress()

    bench.world.progress = slowly  # type: ignore[method-assign]
    bench.run(make_experiment(parallelism=1, budget={"samples": 3}))
    assert [status.problem for status in bench.sink.statuses if status.problem is not None] == []


def test_too_many_losses_in_a_row_fail_the_experiment() -> None:
    bench = Bench(["OutOfMemory", "result", "OutOfMemory", "OutOfMemory", "OutOfMemory"])
    bench.run(make_experiment(parallelism=2, budget={"samples": 100, "consecutiveFailures": 3}))
    outcome = bench.sink.last.outcome
    assert outcome is not None and (outcome.type, outcome.reason) == ("Failed", "ConsecutiveFailures")
    assert "the trainer's words about OutOfMemory" in outcome.message
    assert not any(job.running for job in bench.world.jobs.values()), "children in flight are ended"


def test_duration_ends_the_search_once_nothing_is_in_flight() -> None:
    bench = Bench()
    world = bench.world
    progress = world.progress

    def slowly() -> bool:
        world.seconds += 40
        return progress()

    world.progress = slowly  # type: ignore[method-assign]
    bench.run(make_experiment(parallelism=1, budget={"samples": 100, "duration": "1m"}))
    assert len(bench.of_kind(Observed)) == 2
    assert bench.sink.last.outcome is not None and bench.sink.last.outcome.reason == "DurationSpent"


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("DatasetUnavailable", "DatasetUnavailable"),
        ("StorageRefused", "CredentialsRefused"),
        ("NoCuda", "NoCuda"),
        ("StorageUnreachable", "StoreUnreachable"),
    ],
)
def test_the_environments_fault_waits_for_its_cure(fate: str, reason: str) -> None:
    bench = Bench([fate] * 8)
    bench.run(make_experiment(parallelism=2, budget={"samples": 4}))
    assert len(bench.of_kind(Observed)) == 4 and not bench.of_kind(Lost)
    assert {record.failures for record in bench.of_kind(Launched)} == {0}
    problems = [status.problem for status in bench.sink.statuses if status.problem is not None]
    assert problems and problems[0].reason == reason and "the trainer's words" in problems[0].message
    assert bench.sink.last.problem is None
    # Both samples are tried together after 5, 10, 20 and 40 seconds.
    assert bench.world.seconds == pytest.approx(5 + 10 + 20 + 40, abs=0.1)


def test_nothing_is_proposed_while_the_environment_is_at_fault() -> None:
    bench = Bench(["DatasetUnavailable"] * 6)
    bench.run(make_experiment(parallelism=2, budget={"samples": 4}))
    kinds = [record.type for record in bench.world.records()]
    first_observed = kinds.index("Observed")
    assert kinds[:first_observed].count("Proposed") == 2


def test_a_blocked_child_is_a_problem_until_it_starts() -> None:
    bench = Bench(starts=False)
    stages = iter(["block", "wait", "start"])

    def on_idle() -> None:
        if next(stages, "") == "block":
            assert bench.world.post is not None
            bench.world.post(Blocked(0, Reason.IMAGE_PULL_FAILED, "no such image"))

    progress = bench.world.progress
    bench.world.progress = lambda: False if bench.world.seconds < 30 else progress()  # type: ignore[method-assign]
    experiment = make_experiment(parallelism=1, budget={"samples": 1, "duration": "60s"})
    bench.run(experiment, on_idle)
    problems = [status.problem for status in bench.sink.statuses if status.problem is not None]
    assert {(problem.reason, problem.message) for problem in problems} == {("ImagePullFailed", "no such image")}
    assert bench.sink.last.problem is None


def test_days_in_a_queue_and_a_preemption_cost_nothing_and_are_told() -> None:
    bench = Bench(starts=False)
    world = bench.world
    days = 10 * 24 * 3600.0
    stages: Iterator[list[Event]] = iter(
        [
            [Queued(0, "gpu")],
            [Queued(0, "gpu", "no quota")],
            [Admitted(0), Running(0)],
            [Queued(0, "gpu", "preempted")],
            [Admitted(0), Running(0)],
        ]
    )

    def on_idle() -> None:
        assert world.post is not None
        world.seconds += days
        for event in next(stages, ()):
            world.post(event)

    progress = world.progress
    world.progress = lambda: False if world.seconds < 5 * days else progress()  # type: ignore[method-assign]
    bench.run(
        make_experiment(parallelism=1, budget={"samples": 1}, trainer={"dataset": {"digits": {}}, "queue": "gpu"}),
        on_idle,
    )
    (launched,) = bench.of_kind(Launched)
    assert (launched.attempt, launched.failures) == (1, 0) and len(bench.of_kind(Observed)) == 1
    told = [status.problem.message.partition(". ")[0] for status in bench.sink.statuses if status.problem is not None]
    assert told == [f"1 of 1 waits in queue gpu{words}" for words in ("", ": no quota", ": preempted")]
    waiting = [status.samples.queued for status in bench.sink.statuses if status.samples is not None]
    assert [queued for queued, _ in itertools.groupby(waiting)] == [0, 1, 0, 1, 0]


def test_suspend_ends_the_children_and_resume_goes_on() -> None:
    bench = Bench()
    running = make_experiment(parallelism=2, budget={"samples": 6})
    suspended = make_experiment(parallelism=2, budget={"samples": 6}, suspend=True)
    progress, done = bench.world.progress, itertools.count()

    def suspend_after_two() -> bool:
        if next(done) == 2:
            bench.search.change(suspended)
            return True
        return progress()

    def resume() -> None:
        assert bench.sink.last.samples is not None and bench.sink.last.samples.running == 0
        assert not bench.world.jobs or not any(job.running for job in bench.world.jobs.values())
        bench.search.change(running)

    bench.world.progress = suspend_after_two  # type: ignore[method-assign]
    assert bench.run(running, resume) is Exit.FINISHED
    assert len(bench.world.cancelled) == 2
    assert len(bench.of_kind(Observed)) == 6
    assert sum(record.attempt == 2 for record in bench.of_kind(Launched)) == 2


def test_a_suspended_search_that_is_woken_leaves_the_store_alone() -> None:
    """It is left alone until then, as well: nothing that rests depends on the store."""
    bench = Bench()
    running = make_experiment(parallelism=2, budget={"samples": 4})
    suspended = make_experiment(parallelism=2, budget={"samples": 4}, suspend=True)
    store, progress, steps = bench.world.store, bench.world.progress, itertools.count()
    get, asked = store.get, list[str]()

    def count(key: str, *, limit: int | None = None) -> bytes | None:
        asked.append(key)
        return get(key, limit=limit)

    def happens() -> bool:
        match next(steps):
            case 1:
                bench.search.change(suspended)
                return True
            case 2:
                store.get = count  # type: ignore[method-assign]
                bench.world.seconds += 600
                bench.search.change(suspended)
                return True
            case 3:
                assert not asked
                bench.search.change(running)
                return True
            case _:
                return progress()

    bench.world.progress = happens  # type: ignore[method-assign]
    assert bench.run(running) is Exit.FINISHED
    assert asked


def test_an_end_that_crosses_a_suspension_is_not_taken_twice() -> None:
    bench = Bench()
    running = make_experiment(parallelism=2, budget={"samples": 4})
    suspended = make_experiment(parallelism=2, budget={"samples": 4}, suspend=True)
    progress, done = bench.world.progress, itertools.count()

    def suspend_while_one_ends() -> bool:
        if next(done) == 0:
            bench.search.change(suspended)
        return progress()

    bench.world.progress = suspend_while_one_ends  # type: ignore[method-assign]
    assert bench.run(running, lambda: bench.search.change(running)) is Exit.FINISHED
    assert len(bench.of_kind(Observed)) == 4
    assert [record.samples for record in bench.of_kind(Launched) if record.attempt == 2] == [(1,)]


def test_a_search_that_starts_suspended_ends_what_is_running() -> None:
    bench = Bench()
    running = make_experiment(parallelism=2, budget={"samples": 4})
    progress = bench.world.progress
    bench.world.progress = lambda: bool(bench.search.stop()) or True  # type: ignore[func-returns-value, method-assign]
    assert bench.run(running) is Exit.STOPPED
    assert len([job for job in bench.world.jobs.values() if job.running]) == 2, "children outlive their controller"
    bench.world.progress = progress  # type: ignore[method-assign]
    suspended = make_experiment(parallelism=2, budget={"samples": 4}, suspend=True)
    assert bench.run(suspended, lambda: bench.search.change(running)) is Exit.FINISHED
    assert sorted(bench.world.cancelled) == [0, 1]
    assert len(bench.of_kind(Observed)) == 4


def test_budget_and_parallelism_change_a_live_search() -> None:
    bench = Bench()
    progress, done = bench.world.progress, itertools.count()

    def change_after_two() -> bool:
        match next(done):
            case 2:
                bench.search.change(make_experiment(parallelism=4, budget={"samples": 12}))
            case 6:
                bench.search.change(make_experiment(parallelism=1, budget={"samples": 8}))
            case _:
                return progress()
        return True

    bench.world.progress = change_after_two  # type: ignore[method-assign]
    bench.run(make_experiment(parallelism=1, budget={"samples": 3}))
    assert [(record.parallelism, record.budget.samples) for record in bench.of_kind(Reconfigured)] == [
        (1, 3),
        (4, 12),
        (1, 8),
    ]
    done_in_all = len(bench.of_kind(Observed))
    assert 8 <= done_in_all <= 9 and bench.sink.last.progress == f"{done_in_all}/8"


def test_a_new_template_gives_children_that_never_started_another_attempt() -> None:
    bench = Bench(starts=False)
    changed = make_experiment(
        parallelism=2, budget={"samples": 2}, trainer={"dataset": {"digits": {}}, "epochs": 1, "image": "right"}
    )
    progress, done = bench.world.progress, itertools.count()

    def change_first() -> bool:
        if next(done) == 0:
            bench.search.change(changed)
            return True
        return progress()

    bench.world.progress = change_first  # type: ignore[method-assign]
    bench.run(make_experiment(parallelism=2, budget={"samples": 2}))
    assert sorted(bench.world.cancelled) == [0, 1]
    assert [(record.samples, record.attempt) for record in bench.of_kind(Launched)] == [
        ((0,), 1),
        ((1,), 1),
        ((0,), 2),
        ((1,), 2),
    ]
    assert len(bench.of_kind(Observed)) == 2


def test_a_finished_search_stays_finished() -> None:
    bench = Bench()
    bench.run(make_experiment())
    before, outcome = bench.world.records(), bench.sink.last.outcome
    again = Recorder()
    bench.sink = again
    assert bench.run(make_experiment(budget={"samples": 1000})) is Exit.FINISHED
    assert bench.world.records() == before
    assert again.last.outcome == outcome and again.last.epoch == 1


def test_the_older_of_two_controllers_stops() -> None:
    bench = Bench()
    progress, done = bench.world.progress, itertools.count()

    def be_overtaken() -> bool:
        if next(done) == 3:
            # Another process recovers and begins its own epoch.
            other = Bench(store=bench.world.store)
            other.world.progress = lambda: bool(other.search.stop()) or True  # type: ignore[func-returns-value, method-assign]
            assert other.run(make_experiment()) is Exit.STOPPED
        return progress()

    bench.world.progress = be_overtaken  # type: ignore[method-assign]
    assert bench.run(make_experiment()) is Exit.FENCED
    assert bench.search._tenure.holds() is False, "nor does it create or delete children any more"
    started = bench.of_kind(Started)
    assert [record.epoch for record in started] == [1, 2]
    records = bench.world.records()
    # What the newer one wrote is the last: the older one added nothing.
    assert not any(isinstance(record, Observed | Lost) for record in records[records.index(started[1]) :])


def test_a_newer_controller_wins_even_if_the_older_one_appends_while_it_reads() -> None:
    bench = Bench()
    bench.world.progress = lambda: bool(bench.search.stop()) or True  # type: ignore[func-returns-value, method-assign]
    bench.run(make_experiment())
    store = bench.world.store
    old = recover(store, CountingPolicy).log
    interfering = iter([True])
    original = store.put_if_absent

    def append_first(key: str, data: bytes) -> bool:
        if next(interfering, False):
            old.append([Reconfigured(parallelism=5, budget=make_experiment().spec.budget)])
        return original(key, data)

    store.put_if_absent = append_first  # type: ignore[method-assign]
    bench.run(make_experiment())
    assert [record.epoch for record in bench.of_kind(Started)] == [1, 2]
    assert [record.parallelism for record in bench.of_kind(Reconfigured)] == [3, 5, 3]


def test_a_controller_that_learns_it_when_it_is_about_to_act_is_fenced() -> None:
    bench = Bench()

    def be_overtaken() -> bool:
        log = recover(bench.world.store, CountingPolicy).log
        log.append([Reconfigured(parallelism=5, budget=make_experiment().spec.budget)])
        bench.world.seconds += 60
        assert bench.search._tenure.holds() is False
        return False

    bench.world.progress = be_overtaken  # type: ignore[method-assign]
    assert bench.run(make_experiment()) is Exit.FENCED


def test_a_child_that_trains_for_nobody_is_ended_by_the_next_controller() -> None:
    bench = Bench()
    bench.world.progress = lambda: bool(bench.search.stop()) or True  # type: ignore[func-returns-value, method-assign]
    bench.run(make_experiment())
    bench.world.jobs[17] = Job(bench.world.jobs[0].inputs)
    del bench.world.progress
    assert bench.run(make_experiment()) is Exit.FINISHED
    assert bench.world.cancelled == [17]


def test_a_result_that_is_seen_late_is_no_failure() -> None:
    bench = Bench()
    world = bench.world
    late: list[tuple[float, TrainerInput]] = []

    def progress() -> bool:
        for at, asked in list(late):
            if world.seconds >= at:
                late.remove((at, asked))
                world._leave(asked, "result")
        running = [number for number, job in world.jobs.items() if job.running]
        if running:
            late.extend((world.seconds + 5, asked) for asked in world.jobs[running[0]].inputs)
            world.end(running[0], "Succeeded")
        return bool(running)

    world.progress = progress  # type: ignore[method-assign]
    assert bench.run(make_experiment(trainer={"dataset": {"digits": {}}, "attempts": 1})) is Exit.FINISHED
    assert not bench.of_kind(Lost) and len(bench.of_kind(Observed)) == 10


def test_superseded_by_the_status() -> None:
    bench = Bench()
    bench.world.progress = lambda: bool(bench.search.superseded()) or True  # type: ignore[func-returns-value, method-assign]
    assert bench.run(make_experiment()) is Exit.FENCED


def test_another_search_in_the_same_place_is_refused_and_left_alone() -> None:
    bench = Bench()
    bench.run(make_experiment())
    before = bench.world.records()
    with pytest.raises(SearchChanged, match=r"spec\.searcher.*new experiment"):
        bench.run(make_experiment(searcher={"seed": 8, "random": {}, "duplicates": "Train"}))
    assert bench.world.records() == before


def test_the_log_starts_the_clock_of_the_duration() -> None:
    bench = Bench()
    bench.world.progress = lambda: bool(bench.search.stop()) or True  # type: ignore[func-returns-value, method-assign]
    experiment = make_experiment(parallelism=1, budget={"samples": 5, "duration": "1h"})
    bench.run(experiment)
    bench.world.seconds += 7200
    del bench.world.progress
    bench.run(experiment)
    assert len(bench.of_kind(Observed)) == 1, "what was in flight is awaited, and nothing more proposed"
    assert bench.of_kind(Finished)[0].reason is Reason.DURATION_SPENT


class BrokenStore(MemoryStore):
    """Answers every call of one kind with an error while ``error`` is set."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.error: StoreError | None = None
        self.refused = 0

    def _meet(self, kind: str) -> None:
        if self.error is not None and kind == self.kind:
            self.refused += 1
            raise self.error

    def get(self, key: str, *, limit: int | None = None) -> bytes | None:
        self._meet("get")
        return super().get(key, limit=limit)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._meet("append")
        return super().put_if_absent(key, data)


@pytest.mark.parametrize("kind", ["get", "append"])
def test_a_store_that_is_away_is_told_and_waited_for(kind: str) -> None:
    store = BrokenStore(kind)
    bench = Bench(store=store)
    progress, done = bench.world.progress, itertools.count()

    def break_after_two() -> bool:
        if next(done) == 2:
            store.error = StoreUnreachable("no answer from the bucket")
        went_on = progress()
        if store.refused > 3:
            store.error = None
        return went_on

    # The world writes its results past the fault.
    bench.world.progress = break_after_two  # type: ignore[method-assign]
    bench.world.end = lambda number, fate: _with(store, lambda: World.end(bench.world, number, fate))  # type: ignore[method-assign]
    bench.run(make_experiment(), lambda: setattr(store, "error", None) if store.refused > 3 else None)
    problems = {status.problem.reason for status in bench.sink.statuses if status.problem is not None}
    assert problems == {"StoreUnreachable"} and store.refused > 3
    assert bench.sink.last.problem is None and len(bench.of_kind(Observed)) == 10


def test_a_store_that_is_away_while_all_children_wait_for_it_is_told() -> None:
    """They have something to write and do not end; so there is nothing that the search itself would write."""
    store = BrokenStore("get")
    bench = Bench(store=store)
    progress, looks, told = bench.world.progress, itertools.count(), list[float]()

    def unless_away() -> bool:
        if next(looks) == 2:
            store.error = StoreUnreachable("no answer from the bucket")
        waits = store.error is not None or (told and bench.sink.last.problem is not None)
        return not waits and progress()

    def idle() -> None:
        if store.error is not None and bench.sink.last.problem is not None:
            told.append(bench.world.seconds)
            store.error = None

    bench.world.progress = unless_away  # type: ignore[method-assign]
    bench.run(make_experiment(), idle)
    assert {status.problem.reason for status in bench.sink.statuses if status.problem} == {"StoreUnreachable"}
    assert len(told) == 1 and told[0] <= 120.0
    assert bench.sink.last.problem is None and len(bench.of_kind(Observed)) == 10


@pytest.mark.parametrize("kind", ["get", "append"])
def test_what_only_the_stores_owner_can_cure_ends_the_process(kind: str) -> None:
    store = BrokenStore(kind)
    bench = Bench(store=store)
    progress, done = bench.world.progress, itertools.count()

    def break_after_two() -> bool:
        went_on = progress()
        if next(done) == 2:
            store.error = CredentialsRefused("not with this key")
        return went_on

    bench.world.progress = break_after_two  # type: ignore[method-assign]
    with pytest.raises(CredentialsRefused):
        bench.run(make_experiment())
    store.error = None
    bench.world.progress = progress  # type: ignore[method-assign]
    assert bench.run(make_experiment()) is Exit.FINISHED
    assert len(bench.of_kind(Observed)) == 10


def _with(store: BrokenStore, call: Say) -> None:
    error, store.error = store.error, None
    call()
    store.error = error


def test_log_objects_are_documents_for_people_too() -> None:
    bench = Bench()
    bench.run(make_experiment())
    document = json.loads(bench.world.store.get(names.log_key(0)) or b"")
    assert document["version"] == 1 and document["previous"] == "" and document["records"][0]["type"] == "Started"
