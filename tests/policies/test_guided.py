"""The guided policy: what it proposes, what it learns from imagination, and what it keeps.

That its state is a function of the log is tested with every other policy's in ``test_state.py``.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from nas_api.decisions import Anchor, Categorical, Choices, Decision, When, counting
from nas_api.experiment import Empty, GuidedSpec, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import guided
from nas_controller.policies.draws import Purpose, uniforms
from nas_controller.policies.factory import make_policy
from nas_controller.policies.guided import GuidedPolicy, expected_improvement, mutate, numbers_per_mutant

Search = Callable[..., list[Choices]]
FlatSpace = Callable[[int, int], SearchSpace]


def make(space: SearchSpace, seed: int = 0, spec: GuidedSpec | None = None) -> GuidedPolicy:
    policy = make_policy(SearcherSpec(seed=seed, guided=spec or GuidedSpec(candidates=60)), space)
    assert isinstance(policy, GuidedPolicy)
    return policy


def pairs_of_ones(choices: Choices) -> float:
    """Return a reward to which neighbours contribute only together."""
    return sum(one == other == 1 for one, other in pairwise(choices)) / (len(choices) - 1)


def numbers(decisions: tuple[Decision, ...], count: int) -> np.ndarray:
    width = numbers_per_mutant(decisions)
    return uniforms(0, 0, Purpose.MUTATE, 0, count * width).reshape(count, width)


def test_finds_in_40_samples_what_random_search_does_not_in_200(flat_space: FlatSpace, search: Search) -> None:
    space = flat_space(8, 3)
    for seed in range(3):
        mine = max(map(pairs_of_ones, search(make(space, seed), 40, pairs_of_ones)))
        control = make_policy(SearcherSpec(seed=seed, random=Empty()), space)
        assert mine > max(map(pairs_of_ones, search(control, 200, pairs_of_ones)))


def test_the_policy_itself_learns_from_imagined_rewards(flat_space: FlatSpace, search: Search) -> None:
    policy = make(flat_space(8, 3))
    search(policy, 40, pairs_of_ones)
    first = policy.vitals()
    search(policy, 80, pairs_of_ones, first=40)
    last = policy.vitals()
    assert (first.updates, last.updates) == (10, 30)
    assert first.entropy is not None
    assert last.entropy is not None
    assert last.entropy < first.entropy < math.log(3)
    drawn = policy._draw(10**6, attempt=0, count=400)
    assert sum(pairs_of_ones(draw.choices) for draw in drawn) / 400 > 2 / 9, "twice what uniform draws have"


def test_results_may_come_in_any_order(flat_space: FlatSpace) -> None:
    """Eight in flight, the newest observed first: a reward belongs to its own sample, and samples in flight differ."""
    policy = make(flat_space(8, 3))
    seen: list[Choices] = []
    for base in range(0, 64, 8):
        proposals = {}
        for sample in range(base, base + 8):
            proposals[sample] = policy.propose(sample)
            policy.proposed(sample, proposals[sample])
        for sample in reversed(proposals):
            policy.observed(sample, pairs_of_ones(proposals[sample].choices))
        seen += [proposal.choices for proposal in proposals.values()]
    assert len(set(seen)) == 64
    assert max(map(pairs_of_ones, seen)) >= 6 / 7


def test_it_is_the_default(flat_space: FlatSpace) -> None:
    assert isinstance(make_policy(SearcherSpec(), flat_space(3, 3)), GuidedPolicy)


def test_goes_on_when_everything_has_been_drawn(flat_space: FlatSpace, search: Search) -> None:
    assert len(set(search(make(flat_space(2, 2)), 20, pairs_of_ones))) == 4


@pytest.mark.parametrize("diverged", [math.nan, math.inf, -math.inf])
def test_a_diverged_child_neither_stalls_nor_poisons(diverged: float, flat_space: FlatSpace, search: Search) -> None:
    policy = make(flat_space(6, 3))
    seen = search(policy, 60, lambda choices: diverged if choices[0] == 0 else pairs_of_ones(choices))
    state = policy.dump()
    assert torch.isfinite(state["parameters"]).all()
    assert torch.isfinite(state["critic"]).all()
    assert sum(choices[0] == 0 for choices in seen[20:]) < 40 / 3


@pytest.mark.parametrize("same", [0.0, 1.0])
def test_rewards_that_are_all_equal_do_no_harm(same: float, flat_space: FlatSpace, search: Search) -> None:
    policy = make(flat_space(6, 3))
    assert len(set(search(policy, 24, lambda choices: same))) == 24
    assert torch.isfinite(policy.dump()["parameters"]).all()


def test_keeps_the_best_and_the_newest(flat_space: FlatSpace, search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory, its snapshot and the cost of an update are bounded, whatever the number of samples."""
    monkeypatch.setattr(guided, "BEST", 5)
    monkeypatch.setattr(guided, "NEWEST", 8)
    policy = make(flat_space(8, 3))
    rewards = [((sample * 37) % 101) / 101 for sample in range(60)]
    for sample, reward in enumerate(rewards):
        policy.proposed(sample, policy.propose(sample))
        policy.observed(sample, reward)
    kept = [seen.sample for seen in policy._seen]
    older = sorted(range(52), key=lambda sample: -rewards[sample])[:5]
    assert kept == [*sorted(older), *range(52, 60)]
    assert len(policy.dump()["seen.sample"]) == 13


def test_what_it_drew_before_a_load_is_forgotten(flat_space: FlatSpace, search: Search) -> None:
    one, other = make(flat_space(8, 3)), make(flat_space(8, 3))
    search(one, 8, pairs_of_ones)
    search(other, 8, lambda choices: -pairs_of_ones(choices))
    one.propose(8)
    one.load(other.dump())
    decisions = one._space.decisions(8)
    assert one._propose_from(8, decisions) == other._propose_from(8, decisions)


def test_the_log_probability_is_the_policys_own(tiny_space: SearchSpace, search: Search) -> None:
    policy = make(tiny_space)
    search(policy, 8, lambda choices: float(choices[0]))
    proposal = policy.propose(8)
    evaluation = policy._network.evaluate(tiny_space.decisions(8), [proposal.choices])
    assert proposal.log_probability == pytest.approx(float(evaluation.log_probabilities.detach().sum()), rel=1e-6)
    assert proposal.version == 2


def test_depth_grows_in_a_running_search(growing_space: SearchSpace, search: Search) -> None:
    seen = search(make(growing_space), 24, lambda choices: sum(choices) / 100)
    assert [len(choices) for choices in seen] == [len(growing_space.decisions(sample)) for sample in range(24)]
    for choices in seen:
        growing_space.decode(choices)


def test_expected_improvement_is_the_mean_of_what_exceeds_the_best() -> None:
    mean, variance = torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([1.0, 0.25, 4.0]).double()
    quantiles = torch.special.ndtri((torch.arange(200_000).double() + 0.5) / 200_000)
    drawn = mean.unsqueeze(1) + variance.sqrt().unsqueeze(1) * quantiles
    torch.testing.assert_close(
        expected_improvement(mean, variance, 0.5), (drawn - 0.5).clamp(min=0).mean(1), rtol=1e-3, atol=1e-6
    )


def test_mutants_differ_from_their_parent_in_one_to_three_draws() -> None:
    decisions = (Categorical("a", tuple("uvw")), Anchor(0), Categorical("a", tuple("uvw")), Anchor(1), Anchor(2))
    parents = [(0, 0, 1, 1, 2), (2, 0, 2, 0, 3)]
    mutants = mutate(decisions, parents, numbers(decisions, 400))
    differences = []
    for place, mutant in enumerate(mutants):
        parent = parents[place % 2]
        assert all(0 <= choice < size for choice, size in zip(mutant, (3, 1, 3, 2, 4), strict=True))
        skips = (mutant[3] ^ parent[3]).bit_count() + (mutant[4] ^ parent[4]).bit_count()
        differences.append(skips + (mutant[0] != parent[0]) + (mutant[2] != parent[2]))
    assert max(differences) == 3
    assert sum(difference == 1 for difference in differences) > 100
    assert len(set(mutants)) > 50


def test_mutants_answer_what_begins_to_count_and_zero_what_does_not() -> None:
    inner = tuple(Categorical(name, tuple("uvw"), When(0, frozenset({1}))) for name in "bc")
    decisions = (Categorical("a", ("x", "y")), *inner)
    mutants = mutate(decisions, [(0, 0, 0)], numbers(decisions, 300))
    for mutant in mutants:
        assert all(counts or choice == 0 for choice, counts in zip(mutant, counting(decisions, mutant), strict=True))
    assert {mutant[1:] for mutant in mutants if mutant[0] == 1} == {(b, c) for b in range(3) for c in range(3)}


def test_mutants_of_a_shallower_parent_are_whole() -> None:
    decisions = tuple(Categorical("a", tuple("uvw")) for _ in range(5))
    mutants = mutate(decisions, [(1, 2)], numbers(decisions, 200))
    assert {len(mutant) for mutant in mutants} == {5}
    assert sum(mutant[:2] == (1, 2) for mutant in mutants) > 50
    assert len({mutant[2:] for mutant in mutants}) == 27
