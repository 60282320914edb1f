"""Kendall's tau-b against published values and its definition."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_api.agreement import kendall


def test_against_worked_values() -> None:
    # Two classical examples: one with ties on both sides, one without.
    tied = kendall([12, 2, 1, 12, 2], [1, 4, 7, 1, 0])
    assert tied is not None and tied.tau == pytest.approx(-0.471404520791)
    plain = kendall([1, 2, 3, 4, 5, 6, 7], [1, 3, 6, 2, 7, 4, 5])
    assert plain is not None and plain.tau == pytest.approx(9 / 21)


def test_the_same_order_is_1_and_the_reverse_is_minus_1() -> None:
    same, reverse = kendall([1, 2, 3], [10, 20, 30]), kendall([1, 2, 3], [3, 2, 1])
    assert same is not None and (same.tau, same.low) == (1.0, None)
    assert reverse is not None and reverse.tau == -1.0


@pytest.mark.parametrize("right", [[], [1.0], [1.0, 1.0, 1.0]])
def test_what_orders_nothing_says_nothing(right: list[float]) -> None:
    assert kendall(list(range(len(right))), right) is None


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="2 items on the left, 1 on the right"):
        kendall([1, 2], [1])


def test_five_in_perfect_order_are_no_certainty() -> None:
    five, fifty = kendall(range(5), range(5)), kendall(range(50), range(50))
    assert five is not None and fifty is not None and five.low is not None and fifty.low is not None
    assert 0 < five.low < 0.5 and five.high == 1.0
    assert fifty.low > 0.9


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=5, max_size=30))
def test_the_interval_holds_tau_and_is_mirrored(rows: list[tuple[int, int]]) -> None:
    left, right = [row[0] for row in rows], [row[1] for row in rows]
    there, back = kendall(left, right), kendall(left, [-value for value in right])
    if there is None:
        assert back is None
        return
    assert back is not None and there.low is not None and there.high is not None and back.high is not None
    assert -1 <= there.low <= there.tau <= there.high <= 1
    assert back.tau == pytest.approx(-there.tau) and back.high == pytest.approx(-there.low)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    # Two independent rankings: tau is 0. Over 400 tries of 12 items, 95 % within five standard deviations.
    draw = random.Random(0)
    held = 0
    for _ in range(400):
        found = kendall([draw.random() for _ in range(12)], [draw.random() for _ in range(12)])
        assert found is not None and found.low is not None and found.high is not None
        held += found.low <= 0 <= found.high
    assert abs(held - 380) < 5 * (400 * 0.95 * 0.05) ** 0.5


def test_by_its_definition_without_ties() -> None:
    for order in itertools.permutations(range(4)):
        found = kendall(range(4), order)
        concordant = sum(order[one] < order[other] for one, other in itertools.combinations(range(4), 2))
        assert found is not None and found.tau == pytest.approx((2 * concordant - 6) / 6)
