"""Optuna's estimator behind our protocol: what it is told, what it draws from, and that nothing of it leaks."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from nas_api.decisions import Choices
from nas_api.experiment import Empty, SearcherSpec, TpeSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Proposal
from nas_controller.policies.factory import make_policy
from nas_controller.policies.tpe import TpePolicy

Search = Callable[..., list[Choices]]
FlatSpace = Callable[[int, int], SearchSpace]


def tpe(space: SearchSpace, startup: int = 10, seed: int = 0) -> TpePolicy:
    return TpePolicy(SearcherSpec(seed=seed, tpe=TpeSpec(startup=startup)), space)


def share_of_ones(choices: Choices) -> float:
    return sum(choice == 1 for choice in choices) / len(choices)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tpe_beats_random_search(seed: int, flat_space: FlatSpace, search: Search) -> None:
    control = make_policy(SearcherSpec(seed=seed, random=Empty()), flat_space(12, 4))
    best = max(map(share_of_ones, search(control, 150, share_of_ones)))
    assert max(map(share_of_ones, search(tpe(flat_space(12, 4), seed=seed), 150, share_of_ones))) >= best + 0.2


def test_the_first_samples_are_random(flat_space: FlatSpace, search: Search) -> None:
    """Until ``startup`` samples are observed, rewards make no difference."""
    one, other = tpe(flat_space(6, 4), startup=20), tpe(flat_space(6, 4), startup=20)
    assert search(one, 20, share_of_ones) == search(other, 20, lambda choices: -share_of_ones(choices))
    assert [one.propose(sample).choices for sample in range(20, 30)] != [
        other.propose(sample).choices for sample in range(20, 30)
    ]


def test_samples_in_flight_are_kept_away_from(flat_space: FlatSpace) -> None:
    """With half of one option's samples in flight, the other option looks better; rewards say nothing."""
    space = flat_space(12, 2)

    def zeros(pending: bool) -> int:
        policy = tpe(space)
        for sample in range(40):
            choices = tuple((sample * 7 + step * 5 + sample // 3) % 2 for step in range(12))
            policy.proposed(sample, Proposal(choices, 0.0, 0))
            policy.observed(sample, 0.5)
        if pending:
            for sample in range(40, 80):
                policy.proposed(sample, Proposal((0,) * 11 + (sample % 2,), 0.0, 0))
        return sum(policy.propose(sample).choices.count(0) for sample in range(100, 130))

    assert zeros(pending=True) < zeros(pending=False) * 0.8


def test_a_sample_is_seldom_drawn_twice_while_there_are_others(flat_space: FlatSpace, search: Search) -> None:
    """The estimator alone would draw 79 different ones here."""
    seen = search(tpe(flat_space(6, 3)), 100, share_of_ones)
    assert len(set(seen)) >= 96


def test_a_space_that_is_spent_repeats_itself(flat_space: FlatSpace, search: Search) -> None:
    assert len(set(search(tpe(flat_space(2, 2)), 20, share_of_ones))) == 4


def test_conditional_decisions_are_learnt_where_they_count(conditional_space: SearchSpace, search: Search) -> None:
    """Only convolutions with k5 and two groups of 8 are good: three conditions deep."""

    def reward(choices: Choices) -> float:
        return float(choices[0] == 1) + float(choices[1] == 2) + choices[2] + choices[3]

    seen = search(tpe(conditional_space), 80, reward)
    best = [choices for choices in set(seen) if reward(choices) == 4]
    assert len(best) >= 6, "8 of the 84 choices"


def test_skip_connections_are_learnt_bit_by_bit(tiny_space: SearchSpace, search: Search) -> None:
    def reward(choices: Choices) -> float:
        return sum(bit == "1" for bit in f"{choices[7]:b}{choices[11]:b}")

    seen = search(tpe(tiny_space), 120, reward)
    assert sum(reward(choices) == 3 for choices in seen) > 15 + 4 * 3.6, "15 by chance, with a deviation of 3.6"


def test_a_diverged_sample_is_the_worst(flat_space: FlatSpace, search: Search) -> None:
    def reward(choices: Choices) -> float:
        return float("nan") if choices[0] == 0 else -10.0

    seen = search(tpe(flat_space(4, 4)), 120, reward)
    assert sum(choices[0] == 0 for choices in seen[40:]) < 80 / 4


@pytest.mark.slow
def test_no_set_order_decides() -> None:
    """Optuna works with sets of names, whose order differs between processes."""
    program = """
from nas_api.experiment import SearcherSpec, TpeSpec
from nas_api.search_space import SearchSpaceSpec, search_space
from nas_controller.policies.factory import make_policy
decisions = [{"name": "a", "options": ["x", "y"]}] + [
    {"name": name, "options": ["1", "2", "3"], "when": {"decision": "a", "in": [option]}}
    for name, option in (("b", "x"), ("c", "y"), ("d", "x"), ("e", "y"))
]
policy = make_policy(SearcherSpec(tpe=TpeSpec()), search_space(SearchSpaceSpec(custom={"decisions": decisions})))
for sample in range(30):
    proposal = policy.propose(sample)
    policy.proposed(sample, proposal)
    policy.observed(sample, sum(proposal.choices))
    print(proposal.choices)
"""
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in "12"
    }
    assert len(runs) == 1


@pytest.mark.slow
def test_optuna_is_loaded_only_where_it_is_asked_for_and_is_quiet() -> None:
    program = """
import sys
from nas_api.experiment import Empty, SearcherSpec, TpeSpec
from nas_api.search_space import SearchSpaceSpec, search_space
from nas_controller.policies.factory import make_policy
space = search_space(SearchSpaceSpec(recurrent_cell={"base": 2}))
make_policy(SearcherSpec(random=Empty()), space)
assert "optuna" not in sys.modules
make_policy(SearcherSpec(tpe=TpeSpec()), space).propose(0)
assert "optuna" in sys.modules
assert "sqlalchemy" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
