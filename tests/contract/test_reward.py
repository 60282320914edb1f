"""The reward functions of the paper."""

import pytest

from nas_api.base import duration
from nas_api.experiment import ObjectiveSpec
from nas_api.reward import reward


@pytest.mark.parametrize(
    ("objective", "metric", "expected"),
    [
        ({}, 0.9, 0.729),
        ({"reward": {"cube": {}}}, 0.5, 0.125),
        ({"reward": {"identity": {}}}, 0.9, 0.9),
        ({"goal": "Minimize", "reward": {"identity": {}}}, 0.9, -0.9),
        ({"goal": "Minimize", "reward": {"inverseSquare": {}}}, 100.0, 0.008),
        ({"goal": "Minimize", "reward": {"inverseSquare": {"constant": "40"}}}, 2.0, 10.0),
    ],
)
def test_reward(objective: dict[str, object], metric: float, expected: float) -> None:
    assert reward(ObjectiveSpec.model_validate(objective), metric) == pytest.approx(expected)


def test_a_perplexity_is_positive() -> None:
    objective = ObjectiveSpec.model_validate({"goal": "Minimize", "reward": {"inverseSquare": {}}})
    with pytest.raises(ValueError, match="needs a positive one"):
        reward(objective, 0.0)


def _penalised(**spec: object) -> ObjectiveSpec:
    penalty = {"metric": "parameters", "target": "1000", "exponent": "0.5", **spec}
    return ObjectiveSpec.model_validate({"reward": {"identity": {}}, "penalties": [penalty]})


def test_a_penalty_multiplies_the_reward() -> None:
    objective = _penalised()
    assert reward(objective, 0.8, {"parameters": 1000.0}) == pytest.approx(0.8)
    assert reward(objective, 0.8, {"parameters": 4000.0}) == pytest.approx(0.4)
    assert reward(objective, 0.8, {"parameters": 250.0}) == pytest.approx(1.6)
    assert reward(_penalised(onlyAbove=True), 0.8, {"parameters": 250.0}) == pytest.approx(0.8)
    assert reward(_penalised(onlyAbove=True), 0.8, {"parameters": 4000.0}) == pytest.approx(0.4)


def test_mnasnets_exponent_wants_five_percent_more_for_twice_the_cost() -> None:
    objective = _penalised(exponent="0.07")
    assert reward(objective, 0.8 * 1.05, {"parameters": 2000.0}) == pytest.approx(0.8, rel=1e-3)


def test_penalties_multiply_each_other() -> None:
    objective = ObjectiveSpec.model_validate(
        {
            "reward": {"identity": {}},
            "penalties": [
                {"metric": "flops", "target": "10", "exponent": "1"},
                {"metric": "latencySeconds", "target": "0.5", "exponent": "1"},
            ],
        }
    )
    assert reward(objective, 1.0, {"flops": 20.0, "latencySeconds": 1.0}) == pytest.approx(0.25)


@pytest.mark.parametrize("parameters", [500.0, 2000.0])
def test_worse_is_lower_also_below_zero(parameters: float) -> None:
    objective = _penalised().model_copy(update={"goal": "Minimize"})
    plain = reward(objective, 2.0, {"parameters": 1000.0})
    assert plain == -2.0
    penalised = reward(objective, 2.0, {"parameters": parameters})
    assert penalised < plain if parameters > 1000 else penalised > plain
    assert penalised < 0


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"accuracy": 0.8}, "names 'parameters', but metrics has only"),
        ({"parameters": 0.0}, "needs a positive number"),
        ({"parameters": float("nan")}, "needs a positive number"),
    ],
)
def test_a_penalty_needs_its_metric(metrics: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward(_penalised(), 0.8, metrics)


@pytest.mark.parametrize(("text", "seconds"), [("72h", 259_200), ("1h30m", 5400), ("45s", 45)])
def test_durations(text: str, seconds: int) -> None:
    assert duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "h", "5", "1d", "1m1h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration(text)
