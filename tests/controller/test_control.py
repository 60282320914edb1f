"""The random arm's arithmetic: against numbers worked out by hand and by the standard library."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_api.experiment import SearcherSpec
from nas_controller.control import Comparison, arm_of
from nas_log.records import Arm


def _compared(*rows: tuple[Arm, float]) -> Comparison:
    comparison = Comparison()
    for arm, reward in rows:
        comparison.add(arm, reward)
    return comparison


def test_each_sample_is_paired_with_its_newest_neighbour_of_the_other_arm() -> None:
    comparison = _compared(
        ("policy", 0.1), ("policy", 0.5), ("random", 0.2),  # 0.5 - 0.2
        ("random", 0.3), ("policy", 0.9),  # 0.9 - 0.3
        ("policy", 0.4),
    )  # fmt: skip
    assert comparison.pairs == 2
    assert comparison.difference == pytest.approx(0.45)
    assert comparison.standard_error == pytest.approx(statistics.stdev([0.3, 0.6]) / math.sqrt(2))
    assert (comparison.policy.observed, comparison.random.observed) == (4, 2)
    assert comparison.policy.mean == pytest.approx(0.475)


def test_nothing_is_said_before_it_is_known() -> None:
    assert (Comparison().policy.mean, Comparison().standard_error) == (None, None)
    assert _compared(("policy", 1.0), ("random", 0.0)).standard_error is None


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=50))
def test_mean_and_error_are_those_of_the_pairs(pairs: list[tuple[float, float]]) -> None:
    comparison = Comparison()
    for policy, random in pairs:
        comparison.add("policy", policy)
        comparison.add("random", random)
    differences = [policy - random for policy, random in pairs]
    assert comparison.difference == pytest.approx(statistics.fmean(differences), abs=1e-9)
    expected = statistics.stdev(differences) / math.sqrt(len(differences))
    assert comparison.standard_error == pytest.approx(expected, abs=1e-9)


def test_the_share_is_what_the_manifest_says_and_follows_from_seed_and_sample() -> None:
    searcher = SearcherSpec.model_validate({"seed": 1, "control": {"random": "0.1"}})
    arms = [arm_of(searcher, sample) for sample in range(5000)]
    assert arms == [arm_of(searcher, sample) for sample in range(5000)]
    # Five standard deviations of a binomial.
    assert abs(arms.count("random") - 500) < 5 * math.sqrt(5000 * 0.1 * 0.9)
    assert arms != [arm_of(searcher.model_copy(update={"seed": 2}), sample) for sample in range(5000)]
