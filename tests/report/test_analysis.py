"""The numbers of a report against the plainest way to compute them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from report import logs

from nas_api.decisions import Anchor, Choices, counting
from nas_report import analysis, read
from nas_report.history import History, Row

CUSTOM = {
    "custom": {
        "decisions": [
            {"name": "kind", "options": ["a", "b"]},
            {"name": "onlyA", "options": ["x", "y", "z"], "when": {"decision": "kind", "in": ["a"]}},
            {"name": "row", "range": {"from": 1, "to": 4}, "repeat": 3},
        ]
    }
}
GROWING = {"convolutional": {"layers": {"initial": 2, "increment": 1, "everySamples": 40, "maximum": 4}}}


def history(space: object = logs.CONVOLUTIONAL, samples: int = 120, **changes: object) -> History:
    found = read(record for each in logs.records(space, samples, **changes) for record in each)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("count", "most", "least"), [(0, 5, 1), (3, 5, 4), (100, 7, 20), (97, 48, 20), (12800, 48, 20)]
)
def test_windows_cover_everything_once_and_are_of_one_length(count: int, most: int, least: int) -> None:
    spans = analysis.windows(count, most, least)
    assert [index for span in spans for index in range(count)[span]] == list(range(count))
    sizes = {span.stop - span.start for span in spans}
    assert len(spans) <= most and (not sizes or max(sizes) - min(sizes) <= 1)
    assert len(spans) <= 1 or min(sizes) >= least


def test_entropy_is_one_for_an_even_choice_and_nothing_for_a_settled_one() -> None:
    assert analysis._entropy(np.array([1e6] * 4)) == pytest.approx(1, abs=1e-5)
    assert analysis._entropy(np.array([0.0, 50, 0])) == 0
    assert math.isnan(analysis._entropy(np.array([0.0, 0])))
    nats = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert analysis._entropy(np.array([15.0, 5])) == pytest.approx((nats + 1 / 40) / math.log(2))


@pytest.mark.parametrize("space", [GROWING, logs.CELL, logs.DENSE, logs.PAIRS, CUSTOM])
def test_shares_are_those_of_the_proposed_architectures(space: object) -> None:
    found = history(space, 130, control="0.2")
    maps = analysis.decision_maps(found, most=3, least=20)
    samples = [sample for sample in found.samples if not sample.random]
    assert maps.first[0] == samples[0].number and maps.last[-1] == samples[-1].number
    for window, (first, last) in enumerate(zip(maps.first, maps.last, strict=True)):
        inside = [sample for sample in samples if first <= sample.number <= last]
        for kind in maps.kinds:
            counts = np.zeros(len(kind.options))
            asked = np.zeros(len(kind.options))
            for sample in inside:
                decisions = found.facts.space.decisions(sample.number)
                for decision, choice, counts_here in zip(
                    decisions, sample.choices, counting(decisions, sample.choices), strict=True
                ):
                    if isinstance(decision, Anchor) and kind.anchor:
                        for source in range(decision.index):
                            asked[decision.index - source - 1] += 1
                            counts[decision.index - source - 1] += choice >> source & 1
                    elif not isinstance(decision, Anchor) and decision.kind == kind.kind and counts_here:
                        counts[choice] += 1
                        asked += 1
            with np.errstate(invalid="ignore"):
                np.testing.assert_allclose(kind.shares[:, window], counts / asked)


def test_the_newest_map_says_which_layer_takes_which() -> None:
    found = history(GROWING, 100)
    maps = analysis.decision_maps(found, most=2, least=20)
    skips = next(kind for kind in maps.kinds if kind.anchor)
    inside = [sample for sample in found.samples if sample.number >= maps.first[-1]]
    third = [sample.choices[11] >> 1 & 1 for sample in inside if len(sample.choices) > 11]
    assert skips.newest[1, 2] == pytest.approx(np.mean(third))
    assert np.isnan(skips.newest[2, 2]) and np.isnan(skips.newest[2, 1])
    assert np.isnan(skips.entropy[0]).all()


def test_arms_are_compared_at_equal_counts() -> None:
    found = history(samples=300, control="0.3", losses=0.02)
    compared = analysis.compare(found)
    assert not isinstance(compared, str) and compared.random
    arms = {arm: [s.metric for s in found.trained() if s.random == arm] for arm in (False, True)}
    assert compared.counts[-1] == min(map(len, arms.values()))
    for top in analysis.TOPS:
        for count, value in zip(compared.counts, compared.differences[top], strict=True):
            policy, random = (np.mean(sorted(arms[arm][:count])[-top:]) for arm in (False, True))
            assert value == pytest.approx(policy - random)


def test_for_a_perplexity_less_is_better() -> None:
    objective = {"metric": "perplexity", "goal": "Minimize", "reward": {"inverseSquare": {}}}
    found = history(logs.CELL, 300, objective=objective, rate=20.0)
    compared = analysis.compare(found)
    assert not isinstance(compared, str) and not compared.random
    networks: dict[Choices, float] = {}
    for sample in found.trained():
        networks.setdefault(sample.choices, sample.metric)
    metrics = [*networks.values()]
    window = compared.window
    assert compared.differences[1][-1] == pytest.approx(min(metrics[:window]) - min(metrics[-window:]))
    assert compared.differences[15][-1] > 0, "the policy has learnt nothing, or the sign is wrong"


def test_a_network_counts_once_however_often_a_policy_repeats_it() -> None:
    """A policy that has settled takes its best network's result again and again: that is not 15 good networks."""
    found = history(samples=200, control="0.3")
    before = analysis.compare(found)
    early = [each for each in found.trained() if not each.random][:20]
    best = max(early, key=lambda each: each.reward)
    place = found.samples.index(early[-1]) + 1
    found.samples[place:place] = [replace(best, reused=True) for _ in range(40)]
    assert analysis.compare(found) == before


def test_too_few_samples_are_not_compared() -> None:
    assert "60 different networks; there are" in str(analysis.compare(history(samples=20)))
    assert "of each arm" in str(analysis.compare(history(samples=20, control="0.2")))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_front_is_what_nothing_beats(sign: int) -> None:
    draw = np.random.default_rng(3)
    samples = []
    for number in range(200):
        sample = Row(number, (0,), random=False)
        sample.cost, sample.metric = float(draw.integers(1, 30)), float(draw.integers(0, 30))
        samples.append(sample)
    front = analysis.pareto_front(samples, sign)

    def beats(one: Row, other: Row) -> bool:
        better = one.cost <= other.cost and sign * one.metric >= sign * other.metric
        return better and (one.cost, one.metric) != (other.cost, other.metric)

    best = {(each.cost, each.metric) for each in samples if not any(beats(other, each) for other in samples)}
    assert {(each.cost, each.metric) for each in front} == best
    assert [each.cost for each in front] == sorted({each.cost for each in front})
