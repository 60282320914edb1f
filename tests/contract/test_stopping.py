"""The rule of early stopping by itself."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_api.experiment import EarlyStoppingSpec, Goal
from nas_api.stopping import Rung, StopRule

SPEC = EarlyStoppingSpec(epoch=2, worst="0.25", startup=4)


def test_a_rung_is_the_best_finite_metric_up_to_the_epoch() -> None:
    assert Rung.of((0.3, 0.2, 0.9), 2, "Maximize") == Rung(epoch=2, metric=0.3)
    assert Rung.of((30.0, 20.0, 9.0), 2, "Minimize") == Rung(epoch=2, metric=20.0)
    assert Rung.of((math.nan, 0.2), 2, "Maximize") == Rung(epoch=2, metric=0.2)
    assert Rung.of((math.inf, 20.0), 2, "Minimize") == Rung(epoch=2, metric=20.0)


@pytest.mark.parametrize("history", [(), (0.3,), (math.nan, math.inf)])
def test_who_has_not_come_so_far_or_has_nothing_finite_has_no_rung(history: tuple[float, ...]) -> None:
    assert Rung.of(history, 2, "Maximize") is None


def test_there_is_no_rule_before_there_are_enough_children() -> None:
    assert StopRule.among([0.1, 0.2, 0.3], SPEC, "Maximize") is None
    assert StopRule.among([0.1, 0.2, 0.3, 0.4], SPEC, "Maximize") == StopRule(epoch=2, bound=0.2, goal="Maximize")


@pytest.mark.parametrize(("goal", "bound"), [("Maximize", 29.0), ("Minimize", 70.0)])
def test_the_share_is_exact_though_floats_are_not(goal: Goal, bound: float) -> None:
    # 0.29 * 100 is 28.999999999999996.
    spec = EarlyStoppingSpec(epoch=2, worst="0.29", startup=1)
    rule = StopRule.among([float(value) for value in range(100)], spec, goal)
    assert rule is not None and rule.bound == bound
    assert sum(rule.ends(Rung(epoch=2, metric=float(value))) for value in range(100)) == 29


@given(
    st.lists(st.floats(0, 100), min_size=4, max_size=100),
    st.sampled_from(["0", "0.1", "0.25", "0.5", "0.9"]),
    st.sampled_from(["Maximize", "Minimize"]),
)
def test_never_more_than_the_share_is_refused_and_never_the_best(metrics: list[float], worst: str, goal: Goal) -> None:
    rule = StopRule.among(metrics, EarlyStoppingSpec(epoch=2, worst=worst, startup=4), goal)
    assert rule is not None
    refused = [metric for metric in metrics if rule.ends(Rung(epoch=2, metric=metric))]
    assert len(refused) <= float(worst) * len(metrics) + 1e-9
    assert (max(metrics) if goal == "Maximize" else min(metrics)) not in refused


def test_equals_go_on_and_who_has_nothing_finite_ends() -> None:
    rule = StopRule(epoch=2, bound=0.5, goal="Maximize")
    assert not rule.ends(Rung(epoch=2, metric=0.5))
    assert rule.ends(Rung(epoch=2, metric=0.4))
    assert rule.ends(None)
    assert StopRule(epoch=2, bound=0.5, goal="Minimize").ends(Rung(epoch=2, metric=0.6))
