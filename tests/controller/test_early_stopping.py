"""Early stopping in a search: who is stopped, what is said of it, and that all of it follows from the log."""

from datetime import UTC, datetime
from typing import Any

import pytest
from controller.test_search import Bench
from controller.world import CountingPolicy, learning_curve, make_experiment
from structlog.testing import capture_logs

from nas_api.experiment import NASExperiment, ObjectiveSpec, SearcherSpec
from nas_api.search_space import SearchSpaceSpec
from nas_api.stopping import Rung, Stopped, StopRule
from nas_controller.earlier import Earlier
from nas_controller.policies.random import RandomPolicy
from nas_controller.search import Exit
from nas_controller.state import RUNGS, MakePolicy, SearchState, fold
from nas_log.records import Inherited, Launched, Observed, Proposed, Record, Started

TRAIN = {"seed": 7, "random": {}, "duplicates": "Train"}


def experiment(stopping: dict[str, Any] | None = None, **spec: Any) -> NASExperiment:
    """Return an experiment whose children have four epochs and may be stopped after two, once five have come there."""
    trainer = {"dataset": {"digits": {}}, "epochs": 4, "earlyStopping": {"epoch": 2, "startup": 5, **(stopping or {})}}
    return make_experiment(**{"budget": {"samples": 40}, "trainer": trainer, "searcher": TRAIN, **spec})


def searched(spec: NASExperiment, policy: MakePolicy = CountingPolicy) -> Bench:
    bench = Bench(policy=policy)
    bench.world.curve = learning_curve
    assert bench.run(spec) is Exit.FINISHED
    return bench


def stopped(bench: Bench) -> list[Observed]:
    return [record for record in bench.of_kind(Observed) if record.stopped is not None]


def expected_rules(
    records: list[Record], epoch: int, worst: float, startup: int, newest_of: int = RUNGS
) -> list[StopRule | None]:
    """Return the rule of each launch as the manual has it, from what had been observed before it."""
    metrics: list[float] = []
    out: list[StopRule | None] = []
    for record in records:
        if isinstance(record, Observed) and record.rung is not None and record.rung.epoch == epoch:
            metrics.append(record.rung.metric)
        elif isinstance(record, Launched):
            newest = sorted(metrics[-newest_of:])
            bound = None if len(newest) < startup else newest[int(worst * len(newest))]
            out.append(None if bound is None else StopRule(epoch=epoch, bound=bound, goal="Maximize"))
    return out


def test_the_worst_are_stopped_and_each_rule_follows_from_what_the_log_said_before_it() -> None:
    bench = searched(experiment())
    records = bench.world.records()
    rules = [record.stop for record in bench.of_kind(Launched)]
    assert rules == expected_rules(records, 2, 0.25, 5)
    assert rules[:5] == [None] * 5 and None not in rules[8:]
    # What the children were told is what the log says.
    assert [bench.world.jobs[number].inputs[0].stop for number in sorted(bench.world.jobs)] == rules
    launched = {record.samples[0]: record for record in bench.of_kind(Launched)}
    for record in bench.of_kind(Observed):
        rule = launched[record.sample].stop
        assert record.rung is not None and record.rung.epoch == 2
        assert (record.stopped is not None) == (rule is not None and record.rung.metric < rule.bound)
    assert 4 < len(stopped(bench)) < 20
    assert {record.stopped for record in stopped(bench)} == {Stopped(epoch=2, of=4)}


def test_the_policy_learns_the_reward_of_what_there_was_and_the_log_and_the_status_say_so() -> None:
    with capture_logs() as lines:
        bench = searched(experiment())
    for record in stopped(bench):
        assert record.rung is not None
        assert record.metrics["accuracy"] == record.rung.metric
        assert record.reward == record.metrics["accuracy"] ** 3
    status = bench.sink.last
    assert status.policy is not None and status.policy.updates == 40
    assert status.samples is not None and status.samples.stopped == len(stopped(bench))
    told = [line for line in lines if line["event"] == "sample done" and "stopped" in line]
    assert [line["sample"] for line in told] == [record.sample for record in stopped(bench)]
    assert {line["stopped"] for line in told} == {"after 2 of 4"}


def test_the_rule_looks_at_the_newest_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas_controller.state.RUNGS", 12)
    bench = searched(experiment())
    rules = [record.stop for record in bench.of_kind(Launched)]
    assert rules == expected_rules(bench.world.records(), 2, 0.25, 5, newest_of=12)
    assert rules != expected_rules(bench.world.records(), 2, 0.25, 5, newest_of=13)
    state = fold(bench.world.records(), CountingPolicy)
    assert state is not None and len(state.core.rungs) == 12


def test_less_is_better_where_the_goal_says_so() -> None:
    objective = {"metric": "perplexity", "goal": "Minimize", "reward": {"identity": {}}}
    bench = Bench()
    bench.world.curve = lambda asked: tuple(100 - metric for metric in learning_curve(asked))
    assert bench.run(experiment(objective=objective)) is Exit.FINISHED
    rungs = [record.rung.metric for record in bench.of_kind(Observed) if record.rung is not None]
    assert 4 < len(stopped(bench)) < 20
    assert min(record.rung.metric for record in stopped(bench) if record.rung) > sorted(rungs)[len(rungs) // 2]


def test_the_random_arm_is_compared_with_and_never_stopped() -> None:
    bench = searched(experiment({"worst": "0.5"}, searcher={**TRAIN, "control": {"random": "0.4"}}))
    arms = {record.sample: record.arm for record in bench.of_kind(Proposed)}
    assert {arms[record.sample] for record in stopped(bench)} == {"policy"}
    arm = [each for job in bench.world.jobs.values() for each in job.inputs if arms[each.sample] == "random"]
    assert len(arm) > 10 and all(each.stop is None for each in arm)
    assert [record.stop for record in bench.of_kind(Launched)] == expected_rules(bench.world.records(), 2, 0.5, 5)


def test_in_a_pod_of_several_each_child_has_the_rule_of_its_arm() -> None:
    trainer = {"dataset": {"digits": {}}, "epochs": 4, "childrenPerPod": 2, "earlyStopping": {"epoch": 2, "startup": 5}}
    spec = experiment(trainer=trainer, parallelism=4, searcher={**TRAIN, "control": {"random": "0.4"}})
    bench = searched(spec)
    arms = {record.sample: record.arm for record in bench.of_kind(Proposed)}
    ruled = [record for record in bench.of_kind(Launched) if record.stop is not None]
    assert any({arms[sample] for sample in record.samples} == {"policy", "random"} for record in ruled)
    assert stopped(bench) and {arms[record.sample] for record in stopped(bench)} == {"policy"}


def test_a_sample_that_takes_a_stopped_one_s_result_says_so_too() -> None:
    few = {"convolutional": {"layers": {"initial": 1}, "filterHeights": [1, 3], "filterWidths": [1, 3]}}
    reuse = {**TRAIN, "duplicates": "Reuse"}
    bench = searched(experiment({"worst": "0.5", "startup": 2}, searcher=reuse, searchSpace=few), RandomPolicy)
    by_sample = {record.sample: record for record in bench.of_kind(Observed)}
    reused = [record for record in by_sample.values() if record.reused is not None]
    for record in reused:
        assert record.reused is not None and record.stopped == by_sample[record.reused].stopped
        assert record.rung is None
    assert any(record.stopped is not None for record in reused)
    assert bench.sink.last.samples is not None and bench.sink.last.samples.stopped == len(stopped(bench))


def test_final_trainings_are_neither_stopped_nor_compared_with() -> None:
    bench = searched(experiment({"worst": "0.5"}, finalTraining={"top": 3, "epochs": 4}))
    finals = [each for job in bench.world.jobs.values() for each in job.inputs if each.final is not None]
    assert len(finals) > 2 and all(each.stop is None for each in finals)
    numbers = {each.sample for each in finals}
    assert all(record.rung is None for record in bench.of_kind(Observed) if record.sample in numbers)
    assert all(record.stop is None for record in bench.of_kind(Launched) if numbers & set(record.samples))


def test_a_diverged_child_stays_diverged() -> None:
    bench = Bench()
    bench.world.curve = lambda asked: (float("nan"),) * 4 if asked.sample % 4 == 3 else learning_curve(asked)
    assert bench.run(experiment()) is Exit.FINISHED
    diverged = [record for record in bench.of_kind(Observed) if record.diverged]
    assert [record.sample for record in sorted(diverged, key=lambda each: each.sample)] == list(range(3, 40, 4))
    assert all(record.stopped is None and record.rung is None for record in diverged)
    # The trainer did stop them: they have nothing finite to be compared.
    assert any(
        each.stop is not None for job in bench.world.jobs.values() for each in job.inputs if each.sample % 4 == 3
    )


def test_another_epoch_in_the_middle_of_a_search_gathers_anew() -> None:
    bench = Bench()

    def curve(asked: Any) -> tuple[float, ...]:
        if asked.sample == 14:
            bench.search.change(experiment({"epoch": 3}))
        if asked.sample == 30:
            bench.search.change(experiment().model_copy(update={"spec": experiment().spec.model_copy(update=OFF)}))
        return learning_curve(asked)

    bench.world.curve = curve
    assert bench.run(experiment()) is Exit.FINISHED
    records = bench.world.records()
    epochs = [None if record.stop is None else record.stop.epoch for record in bench.of_kind(Launched)]
    rules = [record.stop for record in bench.of_kind(Launched)]
    at_two, at_three = expected_rules(records, 2, 0.25, 5), expected_rules(records, 3, 0.25, 5)
    first, last = epochs.index(3), len(epochs) - 1 - epochs[::-1].index(3)
    begin = len(epochs) - 1 - epochs[::-1].index(2) + 1
    assert rules[:begin] == at_two[:begin]
    # None of the second epoch counts for the third: there is a while without a rule.
    assert rules[begin:first] == [None] * (first - begin) and first - begin > 2
    assert rules[first : last + 1] == at_three[first : last + 1]
    assert epochs[last + 1 :] == [None] * (len(epochs) - last - 1) and len(epochs) - last > 5


OFF = {"trainer": experiment().spec.trainer.model_copy(update={"early_stopping": None})}


def test_what_is_inherited_says_that_it_was_stopped() -> None:
    first = searched(experiment())
    bench = Bench(find_earlier=lambda _, name, uid: Earlier(name, uid or "its-uid", first.world.store))
    warm = {**TRAIN, "warmStart": {"experiment": "first"}}
    assert bench.run(make_experiment(budget={"samples": 2}, searcher=warm)) is Exit.FINISHED
    inherited = {record.sample: record.stopped for record in bench.of_kind(Inherited)}
    assert inherited == {record.sample: record.stopped for record in first.of_kind(Observed)}


# ---------------------------------------------------------------- the fold


def state_with(*observed: dict[str, Any]) -> SearchState:
    """Return the state after samples with these results, which all differ in their architectures."""
    spec = experiment().spec
    started = Started(
        epoch=1,
        moment=datetime(2026, 1, 1, tzinfo=UTC),
        search_space=SearchSpaceSpec.model_validate(spec.search_space.model_dump()),
        searcher=SearcherSpec.model_validate({"seed": 7, "random": {}}),
        objective=ObjectiveSpec(),
    )
    state = SearchState.begin(started, CountingPolicy)
    for result in observed:
        proposed = state.propose()
        state.apply(proposed)
        metrics = {"accuracy": result["reward"]}
        state.apply(Observed.model_validate({"sample": proposed.sample, "metrics": metrics, **result}))
    return state


def test_a_stopped_sample_is_neither_the_best_nor_trained_finally_however_high_its_reward() -> None:
    halt = {"epoch": 2, "of": 4}
    state = state_with({"reward": 0.9, "stopped": halt}, {"reward": 0.5}, {"reward": 0.8, "stopped": halt})
    assert state.core.best is not None and (state.core.best.sample, state.core.best.reward) == (1, 0.5)
    assert [leader.sample for leader in state.core.leaders] == [1]
    assert state.core.stopped == {0: Stopped(epoch=2, of=4), 2: Stopped(epoch=2, of=4)}


def test_rewards_of_stopped_samples_may_be_the_lowest() -> None:
    assert state_with({"reward": 0.5}, {"reward": -0.25, "stopped": {"epoch": 2, "of": 4}}).core.lowest_reward == -0.25


def test_records_without_a_rung_change_nothing() -> None:
    state = state_with({"reward": 0.5}, {"reward": 0.6, "rung": Rung(epoch=2, metric=0.3).model_dump()})
    assert state.core.rungs == [Rung(epoch=2, metric=0.3)]
