"""A log folded for a report: what has become of each sample, and what it took."""

from collections import Counter
from datetime import timedelta

import pytest
from experiments import manifest
from report import logs

from nas_api.experiment import NASExperiment
from nas_api.reasons import LostReason
from nas_api.search_space import SearchSpaceSpec
from nas_api.stopping import Rung
from nas_log.errors import LogDamaged
from nas_log.reader import Reader
from nas_log.records import Inherited, Launched, Lost, Observed, Proposed, Record, Started, WarmStarted
from nas_report import panels, read, render
from nas_report.history import Fate, History


def records(samples: int = 30, **changes: object) -> list[Record]:
    return [record for each in logs.records(logs.CONVOLUTIONAL, samples, **changes) for record in each]  # type: ignore[arg-type]


def test_each_sample_has_the_fate_that_the_log_says() -> None:
    found = records(200, losses=0.05)
    history = read(found)
    assert history is not None
    fates = Counter(
        "lost" if isinstance(each, Lost) else "diverged" if each.diverged else "trained"
        for each in found
        if isinstance(each, Lost | Observed)
    )
    assert min(fates.values()) > 3
    assert {fate.value: history.count(fate) for fate in Fate if fate is not Fate.OPEN} == fates
    proposed = [each for each in found if isinstance(each, Proposed)]
    assert [history.architecture(sample) for sample in history.samples] == [each.architecture for each in proposed]


def test_a_log_may_be_taken_in_pieces() -> None:
    objects = list(logs.records(logs.CONVOLUTIONAL, 50, losses=0.1))
    whole = read(record for each in objects for record in each)
    assert whole is not None
    log = Reader()
    pieces = History(log)
    for each in objects:
        pieces.add(log.take(each))
    assert (pieces.samples, pieces.facts.slot_seconds, pieces.facts.end) == (
        whole.samples,
        whole.facts.slot_seconds,
        whole.facts.end,
    )


def test_no_log_and_a_log_without_its_beginning() -> None:
    assert read([]) is None
    with pytest.raises(LogDamaged, match="not with Started"):
        read(records()[1:])


def test_slots_and_losses_are_timed() -> None:
    found = records(1, losses=0.0, parallelism=3)
    history = read(found)
    assert history is not None and history.facts.timed
    launched = next(each for each in found if isinstance(each, Launched))
    observed = next(each for each in found if isinstance(each, Observed))
    assert launched.moment is not None and observed.moment is not None
    assert history.facts.slot_seconds == pytest.approx(3 * (observed.moment - launched.moment).total_seconds())

    end = launched.moment + timedelta(seconds=40)
    lost = Lost(sample=0, reason=LostReason.TRAINER_FAILED, moment=end)
    history = read([lost if isinstance(each, Observed) else each for each in found][:-1])
    assert history is not None
    assert history.lost_seconds == 40
    assert (history.samples[0].fate, history.samples[0].reason) == (Fate.LOST, "TrainerFailed")


def test_a_log_of_an_older_writer_has_no_times() -> None:
    found = [each.model_copy(update={"moment": None}) if not isinstance(each, Started) else each for each in records(5)]
    history = read(found)
    assert history is not None
    assert not history.facts.timed and history.facts.slot_seconds == 0


def test_a_reused_result_costs_nothing_and_has_the_parameters_of_its_original() -> None:
    found = records(2, losses=0.0)
    first, second = (each for each in found if isinstance(each, Observed))
    reused = second.model_copy(update={"reused": 0, "parameters": 0, "seconds": 0.0})
    history = read([reused if each is second else each for each in found])
    assert history is not None
    sample = history.samples[1]
    assert (sample.reused, sample.parameters, sample.cost) == (True, first.parameters, first.parameters)
    assert sum(each.seconds for each in history.samples) == first.seconds


def test_children_of_one_pod_cost_one_pod() -> None:
    found = records(4, losses=0.0)
    observed = [each for each in found if isinstance(each, Observed)]
    before = [each for each in found[: found.index(observed[0])] if not isinstance(each, Proposed | Launched)]
    proposed = [each for each in found if isinstance(each, Proposed)]
    pods = [Launched(launch=0, samples=(0, 1, 2), attempt=1), Launched(launch=1, samples=(3,), attempt=1)]
    history = read([*before, *proposed, *pods, *observed])
    assert history is not None
    seconds = [each.seconds for each in observed]
    assert sum(seconds) - history.shared_seconds == pytest.approx(max(seconds[:3]) + seconds[3])
    assert "Children shared pods, which trained for" in panels.cost(history).lead
    alone = read(found)
    assert alone is not None and alone.shared_seconds == 0 and "shared" not in panels.cost(alone).lead


def test_the_best_are_different_networks_from_the_highest_reward_down() -> None:
    history = read(records(40, losses=0.0))
    assert history is not None
    ranked = sorted(history.samples, key=lambda sample: -sample.reward)
    copies = [(ranked[0], ranked[4]), (ranked[2], ranked[7])]
    for original, copy in copies:
        copy.choices = original.choices
    left = [sample for sample in ranked if sample not in (ranked[4], ranked[7])]
    assert history.best(8) == left[:8]


def test_those_that_were_stopped_early_are_never_the_best() -> None:
    whole = read(records(40, losses=0.0))
    assert whole is not None
    middle = sorted(sample.metric for sample in whole.samples)[20]
    history = read(logs.stopped_early(records(40, losses=0.0), bound=middle / 2))
    assert history is not None
    stopped = [sample for sample in history.samples if sample.stopped is not None]
    assert {sample.number for sample in stopped} == {each.number for each in whole.samples if each.metric < middle}
    stopped[0].reward = 9.0
    assert not {sample.number for sample in history.best(40)} & {sample.number for sample in stopped}
    assert len(history.trained()) == 40


def test_a_rung_of_another_epoch_does_not_say_who_is_hopeless() -> None:
    found = [*logs.stopped_early(records(10, losses=0.0, control="0.9"), bound=9.0)]
    other = [
        each.model_copy(update={"rung": Rung(epoch=4, metric=0.1)}) if isinstance(each, Observed) else each
        for each in found
    ]
    for log, number in ((found, 10), (other, 0)):
        history = read(log)
        assert history is not None
        assert sum(sample.hopeless for sample in history.samples) == number


def test_a_warm_start_goes_on_with_the_earlier_numbers() -> None:
    found = records(20, losses=0.0)
    first = next(each for each in found if isinstance(each, Proposed))
    inherited: list[Record] = [
        WarmStarted(experiment="earlier", uid="1", uri="s3://b/log", samples=2, first_sample=2),
        *(
            Inherited(sample=number, architecture=first.architecture, log_probability=-1, metrics={}, reward=0.5)
            for number in range(2)
        ),
    ]
    shifted: list[Record] = []
    for each in found:
        if isinstance(each, Launched):
            shifted.append(each.model_copy(update={"samples": tuple(number + 2 for number in each.samples)}))
        elif isinstance(each, Proposed | Observed):
            shifted.append(each.model_copy(update={"sample": each.sample + 2}))
        else:
            shifted.append(each)
    history, plain = read([*shifted[:2], *inherited, *shifted[2:]]), read(found)
    assert history is not None and plain is not None
    assert history.facts.inherited == 2 and history.facts.warm_start == inherited[0]
    assert [sample.number for sample in history.samples] == list(range(2, 22))
    assert [sample.reward for sample in history.samples] == [sample.reward for sample in plain.samples]
    text = render(history, NASExperiment.model_validate(manifest()), logs.BEGIN)
    assert "warm start with 2 samples of earlier" in text
    assert f"sample {plain.best(1)[0].number + 2:,}" in text


def test_a_fixed_space_is_drawn_as_what_it_stands_for() -> None:
    found = records(6, losses=0.0)
    started = found[0]
    assert isinstance(started, Started)
    architecture = next(each.architecture for each in found if isinstance(each, Proposed))
    fixed = SearchSpaceSpec.model_validate({"fixed": {"experiment": "earlier"}})
    changed = [
        started.model_copy(update={"search_space": fixed, "architecture": architecture}),
        *(
            each.model_copy(update={"architecture": architecture}) if isinstance(each, Proposed) else each
            for each in found[1:]
        ),
    ]
    history = read(changed)
    assert history is not None
    text = render(history, NASExperiment.model_validate(manifest()), logs.BEGIN)
    assert "the network that earlier has found" in text
    assert "Nothing: the space has one architecture." in text
    assert architecture.short().replace("<", "&lt;") in text
