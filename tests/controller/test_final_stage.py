"""The final training: what is trained, who wins, what is handed over, and what is left of it when it fails."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from statistics import fmean, stdev

import pytest
import torch
from controller.test_search import Bench
from controller.world import CountingPolicy, accuracy, make_experiment

from nas_api import names
from nas_api.child import TrainerInput
from nas_api.experiment import FinalTrainingSpec, OptimizerSpec
from nas_api.handover import Provenance
from nas_api.reasons import LostReason
from nas_api.spaces.convolutional import ConvolutionalArchitecture
from nas_controller.final_stage import Leader, combinations, ranked
from nas_controller.policies.random import RandomPolicy
from nas_controller.search import Exit
from nas_controller.state import fold
from nas_controller.status import SearchStatus
from nas_log.records import FinalProposed, Finished, Launched, Lost, Observed, Proposed, SearchEnded

GRID = {"learningRate": ["0.1", "0.05"], "decayEpoch": [2]}
FINAL = {"top": 3, "epochs": 9, "grid": GRID}


def _finally(asked: TrainerInput) -> float:
    """Final trainings rank by the learning rate first, and on the test set everything is a little worse."""
    value = accuracy(asked.architecture) / 2
    if asked.final is not None:
        value += 0.1 * (asked.optimizer.learning_rate == "0.05") - 0.05 * asked.final.test
    return value


def _bench(fates: list[str], accuracy: Callable[[TrainerInput], float] = _finally) -> Bench:
    bench = Bench(fates, policy=RandomPolicy)
    bench.world.accuracy = accuracy
    return bench


def test_the_best_are_trained_with_the_grid_and_the_winner_is_tested_once() -> None:
    bench = _bench([])
    assert bench.run(make_experiment(budget={"samples": 30}, finalTraining=FINAL)) is Exit.FINISHED
    finals = bench.of_kind(FinalProposed)
    assert [record.sample for record in finals] == list(range(30, 37))
    rewards = {record.sample: record.reward for record in bench.of_kind(Observed)}
    architectures = {record.sample: record.architecture for record in bench.of_kind(Proposed)}

    distinct: dict[str, int] = {}
    for sample in sorted(architectures, key=lambda each: (-rewards[each], each)):
        distinct.setdefault(architectures[sample].digest, sample)
    best_three = list(distinct.values())[:3]
    assert [record.run.of for record in finals[:6]] == best_three * 2
    assert all(record.architecture == architectures[record.run.of] for record in finals)
    assert [record.run.optimizer.learning_rate for record in finals[:6]] == ["0.1"] * 3 + ["0.05"] * 3
    assert {(record.run.settings.decay_epoch, record.run.settings.test) for record in finals[:6]} == {(2, False)}

    test = finals[6]
    assert (test.run.of, test.run.settings.test, test.run.optimizer.learning_rate) == (best_three[0], True, "0.05")
    asked = bench.world.jobs[bench.of_kind(Launched)[-1].launch].inputs[0]
    assert asked.final == test.run.settings and (asked.epochs, asked.optimizer) == (9, test.run.optimizer)
    kinds = [record.type for record in bench.world.records()]
    assert (
        kinds.index("FinalProposed")
        > kinds.index("SearchEnded")
        > max(at for at, kind in enumerate(kinds) if kind == "Proposed")
    )

    final, samples, best = bench.sink.last.final, bench.sink.last.samples, bench.sink.last.best
    assert final is not None and samples is not None and best is not None and bench.sink.last.outcome is not None
    assert (final.trained, final.total, final.lost, final.sample) == (6, 6, 0, best_three[0])
    assert (samples.observed, samples.proposed, samples.retried, bench.sink.last.progress) == (30, 30, 0, "30/30")
    assert best.sample == best_three[0] and float(best.reward) == pytest.approx(max(list(rewards.values())[:30]))
    winner = accuracy(architectures[best_three[0]]) / 2 + 0.1
    assert float(final.best_metric or "nan") == pytest.approx(winner)
    assert float(final.test_metric or "nan") == pytest.approx(winner - 0.05)
    assert (bench.sink.last.outcome.type, bench.sink.last.outcome.reason) == ("Complete", "SamplesSpent")
    assert "6 of 6 final trainings done, the best with accuracy" in bench.sink.last.outcome.message

    store = bench.world.store
    assert (store.get(names.BEST_WEIGHTS), store.get(names.BEST_ONNX)) == (b"weights", b"onnx")
    assert (store.get(names.BEST_PREPROCESSING), store.get(names.BEST_VOCABULARY)) == (b"preprocessing", None)
    known = Provenance.model_validate_json(store.get(names.BEST_PROVENANCE) or b"")
    assert (known.sample, known.digest) == (best_three[0], architectures[best_three[0]].digest)
    assert (known.reward, known.validation_metric) == (rewards[best_three[0]], winner)
    assert known.test_sample == 36 and known.test_metric == pytest.approx(winner - 0.05)
    assert known.training == {"batchSize": 7} and known.images == {"trainer": "sha256:image of 36"}
    left = {"network.onnx": b"onnx", "preprocessing.json": b"preprocessing", "weights.safetensors": b"weights"}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in left.items()}
    assert known.files == digests
    assert [record.files for record in bench.of_kind(Observed)] == [None] * 36 + [digests], "only of the test"
    handed_over = ConvolutionalArchitecture.model_validate_json(store.get(names.BEST_ARCHITECTURE) or b"")
    assert handed_over == architectures[best_three[0]]


def test_the_model_is_there_when_the_status_says_complete() -> None:
    bench = _bench([])
    there: list[bytes | None] = []
    publish = bench.sink.publish

    def pipeline(status: SearchStatus) -> None:
        publish(status)
        if status.outcome is not None:
            there.append(bench.world.store.get(names.BEST_WEIGHTS))

    bench.sink.publish = pipeline  # type: ignore[method-assign]
    bench.run(make_experiment(finalTraining=FINAL))
    assert there == [b"weights"]


def test_the_winner_is_handed_over_also_where_the_search_preferred_another() -> None:
    def reversed_at_last(asked: TrainerInput) -> float:
        return accuracy(asked.architecture) if asked.final is None else 1 - accuracy(asked.architecture) / 2

    bench = _bench([], reversed_at_last)
    bench.run(make_experiment(budget={"samples": 60}, finalTraining={"top": 12, "epochs": 2}))
    final, best = bench.sink.last.final, bench.sink.last.best
    assert final is not None and best is not None and final.sample is not None and final.sample != best.sample
    assert float(final.kendall_tau or "nan") == -1.0 and float(final.kendall_high or "nan") < 0
    architectures = {record.sample: record.architecture for record in bench.of_kind(Proposed)}
    stored = bench.world.store.get(names.BEST_ARCHITECTURE) or b""
    assert ConvolutionalArchitecture.model_validate_json(stored) == architectures[final.sample]
    known = Provenance.model_validate_json(bench.world.store.get(names.BEST_PROVENANCE) or b"")
    assert (known.sample, known.digest) == (final.sample, architectures[final.sample].digest)


def test_a_metric_to_minimise_has_the_lowest_as_its_winner() -> None:
    bench = _bench([])
    objective = {"goal": "Minimize", "reward": {"identity": {}}}
    bench.run(make_experiment(budget={"samples": 20}, finalTraining=FINAL, objective=objective))
    final = bench.sink.last.final
    values = [record.metrics["accuracy"] for record in bench.of_kind(Observed) if 20 <= record.sample < 26]
    assert final is not None and float(final.best_metric or "nan") == pytest.approx(min(values))


def test_penalties_count_for_the_winner_as_they_do_in_the_search() -> None:
    def deeper_is_a_little_better(asked: TrainerInput) -> float:
        assert isinstance(asked.architecture, ConvolutionalArchitecture)
        return 0.5 + 0.01 * len(asked.architecture.layers)

    bench = _bench([], deeper_is_a_little_better)
    deepening = {"convolutional": {"layers": {"initial": 1, "increment": 1, "everySamples": 3}}}
    # A thousand parameters a layer.
    objective = {"penalties": [{"metric": "parameters", "target": "1000", "exponent": "1"}]}
    experiment = make_experiment(
        budget={"samples": 18}, searchSpace=deepening, objective=objective, finalTraining={"top": 15, "epochs": 2}
    )
    assert bench.run(experiment) is Exit.FINISHED
    final, best = bench.sink.last.final, bench.sink.last.best
    assert final is not None and best is not None
    depths = {
        record.sample: len(record.architecture.layers)
        for record in bench.of_kind(Proposed)
        if isinstance(record.architecture, ConvolutionalArchitecture)
    }
    assert len(set(depths.values())) > 3 and final.sample is not None
    assert (depths[final.sample], final.sample) == (1, best.sample)
    assert float(final.best_metric or "nan") == pytest.approx(0.51)
    # The search's rewards and those of the final trainings are the same here.
    assert float(final.kendall_tau or "nan") == 1.0


def test_the_policy_learns_nothing_of_it() -> None:
    bench = Bench(["result"] * 10 + ["Failed", "diverged", "OutOfMemory"])
    bench.run(make_experiment(budget={"samples": 10}, finalTraining=FINAL))
    records = bench.world.records()
    end = next(at for at, record in enumerate(records) if isinstance(record, SearchEnded))
    before, after = fold(records[:end], CountingPolicy), fold(records, CountingPolicy)
    assert before is not None and after is not None
    assert torch.equal(before.policy.dump()["state"], after.policy.dump()["state"])
    assert (before.core.best, before.core.leaders) == (after.core.best, after.core.leaders)
    assert before.core.retried == after.core.retried


def test_when_all_fail_the_searchs_best_is_what_there_is() -> None:
    bench = _bench(["result"] * 20 + ["OutOfMemory"] * 10)
    bench.run(make_experiment(budget={"samples": 20, "consecutiveFailures": 2}, finalTraining=FINAL))
    outcome, final = bench.sink.last.outcome, bench.sink.last.final
    assert outcome is not None and outcome.type == "Complete" and final is not None
    assert "none with a result" in outcome.message and "best/ has the search's best" in outcome.message
    assert "the trainer's words about OutOfMemory" in outcome.message
    assert (final.trained, final.lost, final.total, final.test_metric) == (0, 6, 6, None)
    assert bench.world.store.get(names.BEST_WEIGHTS) is None
    known = Provenance.model_validate_json(bench.world.store.get(names.BEST_PROVENANCE) or b"")
    assert (known.test_metric, known.test_sample, known.training) == (None, None, None)
    best = max((record.architecture for record in bench.of_kind(Proposed)), key=accuracy)
    assert (known.digest, known.validation_metric) == (best.digest, accuracy(best) / 2)
    assert ConvolutionalArchitecture.model_validate_json(bench.world.store.get(names.BEST_ARCHITECTURE) or b"") == best


@pytest.mark.parametrize(("fate", "words"), [("OutOfMemory", "OutOfMemory"), ("diverged", "it diverged")])
def test_a_test_that_fails_is_told(fate: str, words: str) -> None:
    bench = _bench(["result"] * 26 + [fate])
    bench.run(make_experiment(budget={"samples": 20}, finalTraining=FINAL))
    outcome = bench.sink.last.outcome
    assert outcome is not None and outcome.type == "Complete"
    assert "but the test gave no result" in outcome.message and words in outcome.message
    assert bench.world.store.get(names.BEST_WEIGHTS) is None


def test_it_runs_after_the_duration_is_over_and_in_the_parallelism_that_is_asked_for() -> None:
    bench = _bench([])
    progress = bench.world.progress

    def slowly() -> bool:
        bench.world.seconds += 40
        return progress()

    bench.world.progress = slowly  # type: ignore[method-assign]
    budget = {"samples": 100, "duration": "3m"}
    bench.run(make_experiment(parallelism=2, budget=budget, finalTraining=FINAL))
    assert bench.of_kind(Finished)[0].reason == "DurationSpent"
    running = [status.samples.running for status in bench.sink.statuses if status.samples and status.final]
    assert max(running) == 2
    final = bench.sink.last.final
    assert final is not None and final.trained == final.total > 0


def test_the_manifest_of_the_searchs_end_counts() -> None:
    bench = _bench([])
    progress, done = bench.world.progress, itertools.count()
    changed = make_experiment(budget={"samples": 10}, finalTraining={"top": 1, "epochs": 4})
    late = make_experiment(budget={"samples": 99}, finalTraining={"top": 3, "epochs": 5})

    def change() -> bool:
        match next(done):
            case 5:
                bench.search.change(changed)
            case 11:
                bench.search.change(late)
            case _:
                return progress()
        return True

    bench.world.progress = change  # type: ignore[method-assign]
    bench.run(make_experiment(parallelism=1, budget={"samples": 10}))
    assert [(record.run.epochs, record.run.settings.test) for record in bench.of_kind(FinalProposed)] == [
        (4, False),
        (4, True),
    ]
    assert Counter(record.type for record in bench.world.records())["Proposed"] == 10


def test_without_a_single_result_there_is_nothing_to_train() -> None:
    bench = _bench(["OutOfMemory"] * 10)
    bench.run(make_experiment(budget={"samples": 4}, finalTraining=FINAL))
    assert not bench.of_kind(SearchEnded) and bench.sink.last.outcome is not None
    assert bench.sink.last.outcome.reason == "SamplesSpent" and bench.sink.last.final is None


def test_the_grid_is_every_combination_and_leaves_the_rest_alone() -> None:
    optimizer = OptimizerSpec(momentum="0.8", weight_decay="0.001")
    spec = FinalTrainingSpec.model_validate({"grid": {"learningRate": ["1", "2"], "batchNormEpsilon": ["0.1", "0.2"]}})
    found = combinations(spec, optimizer)
    assert [(each.learning_rate, settings.batch_norm_epsilon) for settings, each in found] == [
        ("1", "0.1"),
        ("1", "0.2"),
        ("2", "0.1"),
        ("2", "0.2"),
    ]
    assert {(each.momentum, each.weight_decay, settings.decay_epoch) for settings, each in found} == {
        ("0.8", "0.001", None)
    }
    assert combinations(FinalTrainingSpec(), optimizer)[0][1] == optimizer
    grid = {"dropout": ["0.5", "0.6"], "initialScale": ["0.04", "0.05"], "decayEpoch": [30]}
    found = combinations(FinalTrainingSpec.model_validate({"grid": grid}), optimizer)
    assert [(settings.dropout, settings.initial_scale) for settings, _ in found] == [
        ("0.5", "0.04"),
        ("0.5", "0.05"),
        ("0.6", "0.04"),
        ("0.6", "0.05"),
    ]
    assert {(settings.decay_epoch, each) for settings, each in found} == {(30, optimizer)}


@pytest.mark.parametrize("on_validation", [True, False])
def test_the_last_training_has_the_validation_set_unless_it_is_left_out(on_validation: bool) -> None:
    bench = _bench([])
    final = {**FINAL, "trainOnValidation": on_validation}
    assert bench.run(make_experiment(budget={"samples": 10}, finalTraining=final)) is Exit.FINISHED
    runs = [record.run for record in bench.of_kind(FinalProposed)]
    assert [run.settings.test for run in runs] == [False] * (len(runs) - 1) + [True]
    assert {run.settings.on_validation for run in runs} == {on_validation}


def _by_seed(asked: TrainerInput) -> float:
    """As ``_finally``, and what the seed adds to a final training differs by up to 0.04."""
    return _finally(asked) + (0 if asked.final is None else asked.seed % 41 / 1000)


@pytest.mark.parametrize("on_validation", [True, False])
def test_with_several_seeds_the_best_mean_wins_and_its_test_repeats_one_of_them(on_validation: bool) -> None:
    bench = _bench([], _by_seed)
    final = {**FINAL, "seeds": 3, "trainOnValidation": on_validation}
    assert bench.run(make_experiment(budget={"samples": 20}, finalTraining=final)) is Exit.FINISHED
    runs = [record.run for record in bench.of_kind(FinalProposed)]
    assert len(runs) == 3 * 2 * 3 + 1
    assert runs[:6] == runs[6:12] == runs[12:18], "all of the grid with one seed, then with the next"
    asked = {job.inputs[0].sample: job.inputs[0] for job in bench.world.jobs.values()}
    assert len({asked[sample].seed for sample in range(20, 38)}) == 18
    metrics = {record.sample: record.metrics["accuracy"] for record in bench.of_kind(Observed)}

    means = [fmean(metrics[20 + at + 6 * seed] for seed in range(3)) for at in range(6)]
    won = means.index(max(means))
    same = [20 + won + 6 * seed for seed in range(3)]
    repeated = same[0] if on_validation else max(same, key=lambda sample: metrics[sample])
    assert runs[-1] == runs[won].model_copy(
        update={"settings": runs[won].settings.model_copy(update={"test": True, "repeats": repeated})}
    )
    assert asked[38].seed == asked[repeated].seed
    found, status = bench.sink.last.outcome, bench.sink.last.final
    assert found is not None and status is not None
    assert (status.total, status.trained, status.sample) == (18, 18, runs[won].of)
    assert float(status.best_metric or "nan") == pytest.approx(means[won], rel=1e-5)
    spread = stdev(metrics[sample] for sample in same)
    assert float(status.best_spread or "nan") == pytest.approx(spread, rel=1e-5)
    assert "over 3 seeds" in found.message
    known = Provenance.model_validate_json(bench.world.store.get(names.BEST_PROVENANCE) or b"")
    assert known.validation_metric == pytest.approx(means[won])
    assert known.validation_spread == pytest.approx(spread)


def test_a_seed_that_diverges_counts_against_its_mean() -> None:
    def by_rate(asked: TrainerInput) -> float:
        return 0.9 if asked.optimizer.learning_rate == "0.05" else 0.8

    # One architecture: two rates with the first seed, two with the second; the better one's second training diverges.
    final = {**FINAL, "top": 1, "seeds": 2}
    bench = _bench(["result"] * 10 + ["result", "result", "result", "diverged"], by_rate)
    bench.run(make_experiment(parallelism=1, finalTraining=final))
    status = bench.sink.last.final
    assert status is not None and (status.trained, status.best_spread) == (4, "0")
    (*_, test) = bench.of_kind(FinalProposed)
    # The mean of 0.9's reward and of the lowest, 0, is less than 0.8's.
    assert test.run.optimizer.learning_rate == "0.1"


def test_a_first_seed_that_diverged_is_not_the_one_that_is_repeated() -> None:
    def by_rate(asked: TrainerInput) -> float:
        return 0.99 if asked.optimizer.learning_rate == "0.05" else 0.3

    final = {**FINAL, "top": 1, "seeds": 2}
    bench = _bench(["result"] * 10 + ["result", "diverged", "result", "result", "result"], by_rate)
    bench.run(make_experiment(parallelism=1, finalTraining=final))
    (*_, test) = bench.of_kind(FinalProposed)
    assert (test.run.optimizer.learning_rate, test.run.settings.repeats) == ("0.05", 13)


def test_a_training_past_its_deadline_goes_on_as_long_as_it_saves_checkpoints() -> None:
    final = {"top": 1, "epochs": 2}
    fates = ["result"] * 10 + ["progressed", "progressed", "result"]
    bench = _bench(fates)
    spec = {"trainer": {"dataset": {"digits": {}}, "epochs": 1, "attempts": 1}, "finalTraining": final}
    bench.run(make_experiment(parallelism=1, **spec))
    launched = [record for record in bench.of_kind(Launched) if 10 in record.samples]
    assert [(record.attempt, record.failures) for record in launched] == [(1, 0), (2, 0), (3, 0)]
    status = bench.sink.last.final
    assert status is not None and (status.trained, status.lost) == (1, 0) and status.test_metric is not None


def test_a_training_past_its_deadline_without_a_checkpoint_of_its_own_is_lost() -> None:
    bench = _bench(["result"] * 10 + ["progressed", "DeadlineExceeded"])
    bench.run(make_experiment(parallelism=1, finalTraining={"top": 1, "epochs": 2}))
    (lost,) = bench.of_kind(Lost)
    assert (lost.sample, lost.reason) == (10, LostReason.DEADLINE_EXCEEDED)


def test_a_search_s_child_past_its_deadline_is_lost_whatever_it_has_saved() -> None:
    bench = _bench(["progressed"])
    bench.run(make_experiment(parallelism=1))
    (lost,) = bench.of_kind(Lost)
    assert (lost.sample, lost.reason) == (0, LostReason.DEADLINE_EXCEEDED)


def test_leaders_are_distinct_and_the_first_of_equals_leads() -> None:
    architecture = ConvolutionalArchitecture.parse_short("3x3:4")
    leaders: list[Leader] = []
    for sample, (reward, identity) in enumerate([(0.5, "a"), (0.7, "b"), (0.5, "c"), (0.6, "a"), (0.1, "b")]):
        leaders = ranked(leaders, Leader(sample, reward, architecture, identity))
    assert [(each.identity, each.reward, each.sample) for each in leaders] == [
        ("b", 0.7, 1),
        ("a", 0.6, 3),
        ("c", 0.5, 2),
    ]
    for sample in range(100):
        leaders = ranked(leaders, Leader(sample, 1.0 + sample, architecture, str(sample)))
    assert len(leaders) == 50 and leaders[0].reward == 100.0
