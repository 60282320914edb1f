"""Regularised evolution: who may be a parent, and what a child may differ in."""

import math
from collections import Counter
from collections.abc import Callable

import pytest

from nas_api.decisions import Anchor, Choices, counting
from nas_api.experiment import Empty, EvolutionSpec, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Policy, Proposal
from nas_controller.policies.evolution import EvolutionPolicy
from nas_controller.policies.factory import make_policy

Search = Callable[..., list[Choices]]
FlatSpace = Callable[[int, int], SearchSpace]


def evolution(space: SearchSpace, population: int, tournament: int, seed: int = 0) -> EvolutionPolicy:
    spec = EvolutionSpec(population=population, tournament=tournament)
    return EvolutionPolicy(SearcherSpec(seed=seed, evolution=spec), space)


def tell(policy: Policy, sample: int, choices: Choices, reward: float) -> None:
    policy.proposed(sample, Proposal(choices, 0.0, 0))
    policy.observed(sample, reward)


def different(one: Choices, other: Choices) -> list[int]:
    return [step for step, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]


def test_a_child_is_its_parent_with_one_other_value(flat_space: FlatSpace) -> None:
    """The whole population competes here, so the best one is the parent; every other value comes as often."""
    policy = evolution(flat_space(4, 3), population=3, tournament=3)
    parent = (0, 1, 2, 1)
    for sample, (choices, reward) in enumerate([((0,) * 4, 0.1), (parent, 0.9), ((2,) * 4, 0.5)]):
        assert len(different(policy.propose(sample).choices, parent)) > 1, "the population is not full yet"
        tell(policy, sample, choices, reward)
    children = Counter(policy.propose(sample).choices for sample in range(3, 4003))
    assert {len(different(child, parent)) for child in children} == {1}
    assert len(children) == 4 * 2
    assert min(children.values()) > 500 - 5 * 21


def test_the_oldest_dies_however_good_it_is(flat_space: FlatSpace) -> None:
    policy = evolution(flat_space(4, 3), population=3, tournament=3)
    for sample, choices in enumerate([(1,) * 4, (0,) * 4, (2,) * 4]):
        tell(policy, sample, choices, 1 - sample / 10)
    assert len(different(policy.propose(3).choices, (1,) * 4)) == 1
    tell(policy, 3, (2,) * 4, 0.0)
    assert len(different(policy.propose(4).choices, (0,) * 4)) == 1


def test_age_is_the_order_of_observation(flat_space: FlatSpace) -> None:
    policy = evolution(flat_space(4, 3), population=2, tournament=2)
    for sample, choices in enumerate([(0,) * 4, (1,) * 4, (2,) * 4]):
        policy.proposed(sample, Proposal(choices, 0.0, 0))
    for sample, reward in ((2, 0.9), (1, 0.5), (0, 0.1)):
        policy.observed(sample, reward)
    assert len(different(policy.propose(3).choices, (1,) * 4)) == 1


def test_a_tournament_is_a_part_of_the_population(flat_space: FlatSpace) -> None:
    """The parent's rank among 4 with tournaments of 2: the best wins 3 of 6 pairs, then 2, 1 and 0."""
    policy = evolution(flat_space(6, 5), population=4, tournament=2)
    for sample in range(4):
        tell(policy, sample, (sample,) * 6, sample / 10)
    parents = Counter(Counter(policy.propose(sample).choices).most_common(1)[0][0] for sample in range(4, 3004))
    assert parents[0] == 0
    for member, share in ((1, 1 / 6), (2, 2 / 6), (3, 3 / 6)):
        assert abs(parents[member] / 3000 - share) < 5 * (share * (1 - share) / 3000) ** 0.5


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_diverged_sample_is_no_parent(reward: float, flat_space: FlatSpace) -> None:
    policy = evolution(flat_space(4, 3), population=2, tournament=2)
    tell(policy, 0, (1,) * 4, -5.0)
    tell(policy, 1, (2,) * 4, reward)
    assert len(different(policy.propose(2).choices, (1,) * 4)) == 1


def test_an_anchor_flips_one_connection(tiny_space: SearchSpace) -> None:
    parent = (0, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 2)
    policy = evolution(tiny_space, population=2, tournament=2)
    for sample in range(2):
        tell(policy, sample, parent, 0.5)
    children = Counter(policy.propose(sample).choices for sample in range(2, 2002))
    decisions = tiny_space.decisions(0)
    changed: set[tuple[int, int]] = set()
    for child in children:
        (step,) = different(child, parent)
        changed.add((step, child[step] ^ parent[step] if isinstance(decisions[step], Anchor) else 0))
        tiny_space.decode(child)
    # Filter widths have one option only, and the first layer no earlier one.
    assert changed == {(0, 0), (2, 0), (4, 0), (6, 0), (7, 1), (8, 0), (10, 0), (11, 1), (11, 2)}


def test_what_begins_to_count_is_drawn_and_what_ends_is_0(conditional_space: SearchSpace) -> None:
    decisions = conditional_space.decisions(0)
    policy = evolution(conditional_space, population=2, tournament=2)
    parent = (0, 0, 0, 0, 0, 1, 0)
    for sample in range(2):
        tell(policy, sample, parent, 0.5)
    children = {policy.propose(sample).choices for sample in range(2, 2002)}
    # Three decisions count: the block, which brings all there is below it, and both biases.
    assert {child for child in children if child[0] == 0} == {(0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 1, 1)}
    assert len({child for child in children if child[0] == 1}) == 2 * (1 + 2 * 2**2)
    assert len({child for child in children if child[0] == 2}) == 2
    for child in children:
        assert conditional_space.encode(conditional_space.decode(child)) == child
        assert child[5:] == parent[5:] or child[0] == 0
    deep = (1, 2, 1, 1, 1, 1, 1)
    for sample in range(2, 4):
        tell(policy, sample, deep, 0.9)
    for sample in range(4, 1004):
        child = policy.propose(sample).choices
        if child[0] == 1 and child[1] == 2:
            assert len(different(child, deep)) == 1
        elif child[0] == 2:
            assert child[1:4] == (0, 0, 0)
            assert child[4:] == deep[4:], "what counts before and after is inherited"
        counts = counting(decisions, child)
        assert all(choice == 0 for choice, it_counts in zip(child, counts, strict=True) if not it_counts)


def test_a_deeper_child_keeps_its_shallow_parents_layers(growing_space: SearchSpace) -> None:
    """Sample 6 is the first of three layers: its parents have two, and the third is drawn."""
    policy = evolution(growing_space, population=2, tournament=2)
    parent = (2, 1, 1, 0, 2, 1, 1, 1)
    for sample in range(2):
        tell(policy, sample, parent, 0.5)
    thirds = set()
    for seed in range(50):
        other = evolution(growing_space, population=2, tournament=2, seed=seed)
        other.load(policy.dump())
        child = other.propose(6).choices
        growing_space.decode(child)
        assert len(child) == 12
        assert len(different(child[:8], parent)) <= 1
        thirds.add(child[8:])
    assert len(thirds) > 20


def test_one_choice_in_all_is_no_trouble(flat_space: FlatSpace, search: Search) -> None:
    policy = evolution(flat_space(3, 1), population=2, tournament=2)
    assert set(search(policy, 6, lambda choices: 1.0)) == {(0, 0, 0)}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_evolution_beats_random_search(seed: int, flat_space: FlatSpace, search: Search) -> None:
    def reward(choices: Choices) -> float:
        return sum(choice == 1 for choice in choices) / len(choices)

    policy = make_policy(SearcherSpec(seed=seed, evolution=EvolutionSpec()), flat_space(16, 4))
    control = make_policy(SearcherSpec(seed=seed, random=Empty()), flat_space(16, 4))
    assert max(map(reward, search(policy, 500, reward))) >= max(map(reward, search(control, 500, reward))) + 0.2
