"""Do the policies learn, and stay sane where others went wrong? (Pitfalls known from reimplementations of the paper.)

Pitfalls of gradients and entropies are in ``test_brute_force.py``, a lost state in ``test_state.py``.
"""

import math
from collections.abc import Callable

import pytest
import torch

from nas_api.decisions import Choices
from nas_api.experiment import Empty, PpoSpec, ReinforceSpec, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Policy, Proposal
from nas_controller.policies.factory import make_policy
from nas_controller.policies.learner import Learner

# It takes many samples to see whether something is learnt.
pytestmark = pytest.mark.slow

Search = Callable[..., list[Choices]]
FlatSpace = Callable[[int, int], SearchSpace]


def share_of_ones(choices: Choices) -> float:
    return sum(choice == 1 for choice in choices) / len(choices)


def mean_of_policy(policy: Policy) -> float:
    """Return the mean reward of what the policy itself would draw, repeats and all."""
    assert isinstance(policy, Learner)
    draws = policy._draw(10**6, attempt=0, count=400)
    return sum(share_of_ones(draw.choices) for draw in draws) / len(draws)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reinforce_learns_a_known_answer_at_the_papers_learning_rate(
    seed: int, flat_space: FlatSpace, search: Search
) -> None:
    policy = make_policy(SearcherSpec(seed=seed, reinforce=ReinforceSpec()), flat_space(12, 4))
    seen = search(policy, 1500, share_of_ones)
    assert abs(sum(map(share_of_ones, seen[:50])) / 50 - 0.25) < 0.06
    assert sum(map(share_of_ones, seen[-100:])) / 100 > 0.9
    assert mean_of_policy(policy) > 0.9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_learns_a_known_answer(seed: int, flat_space: FlatSpace, search: Search) -> None:
    """Judged by the policy's own draws: of different samples only 37 have 11 or 12 right, so those run out."""
    policy = make_policy(SearcherSpec(seed=seed, ppo=PpoSpec()), flat_space(12, 4))
    seen: list[Choices] = []
    while len(seen) < 1500 and mean_of_policy(policy) <= 0.9:
        seen += search(policy, 100, share_of_ones, first=len(seen))
    assert mean_of_policy(policy) > 0.9
    assert max(map(share_of_ones, seen)) == 1
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    "spec", [SearcherSpec(ppo=PpoSpec()), SearcherSpec(reinforce=ReinforceSpec(learning_rate="0.003"))]
)
def test_a_reward_belongs_to_its_own_sample_whatever_the_order(spec: SearcherSpec, flat_space: FlatSpace) -> None:
    """Eight in flight, observed newest first: the good option's probability must rise, not fall."""
    policy = make_policy(spec, flat_space(1, 4))
    assert isinstance(policy, Learner)
    for base in range(0, 800, 8):
        proposals = {sample: policy.propose(sample) for sample in range(base, base + 8)}
        for sample, proposal in proposals.items():
            policy.proposed(sample, proposal)
        for sample in reversed(proposals):
            policy.observed(sample, float(proposals[sample].choices == (2,)))
    drawn = [draw.choices[0] for draw in policy._draw(10**6, attempt=0, count=400)]
    assert drawn.count(2) > 150


@pytest.mark.parametrize("spec", [SearcherSpec(ppo=PpoSpec()), SearcherSpec(reinforce=ReinforceSpec())])
@pytest.mark.parametrize("diverged", [math.nan, math.inf, -math.inf])
def test_a_diverged_child_neither_stalls_nor_poisons(
    spec: SearcherSpec, diverged: float, flat_space: FlatSpace, search: Search
) -> None:
    """It counts as the lowest reward so far, so that the search learns to keep away from it."""

    def reward(choices: Choices) -> float:
        return diverged if choices[0] == 0 else share_of_ones(choices)

    policy = make_policy(spec, flat_space(6, 3))
    search(policy, 160, reward)
    state = policy.dump()
    assert torch.isfinite(state["parameters"]).all()
    assert policy.vitals().updates == 160 // (4 if spec.ppo else 8)
    assert isinstance(policy, Learner)
    drawn = [draw.choices[0] for draw in policy._draw(10**6, attempt=0, count=400)]
    assert drawn.count(0) < 133


def test_ppo_survives_a_forced_sample_that_it_holds_impossible(flat_space: FlatSpace) -> None:
    """The recorded probability is far from today's, in both directions, at a high learning rate."""
    policy = make_policy(SearcherSpec(ppo=PpoSpec(learning_rate="0.1")), flat_space(8, 3))
    for sample in range(200):
        log_probability = (-1e4, -60.0, 0.0)[sample % 3]
        policy.proposed(sample, Proposal((sample % 3,) * 8, log_probability, version=0))
        policy.observed(sample, float(sample % 3 == 0))
    assert torch.isfinite(policy.dump()["parameters"]).all()
    assert math.isfinite(policy.propose(200).log_probability)


def test_ppo_learns_from_samples_that_a_search_without_probabilities_has_drawn(flat_space: FlatSpace) -> None:
    """A warm start from evolution: without imitation only the gradient of the policy itself can have moved it."""
    space = flat_space(12, 4)
    policy = make_policy(SearcherSpec(ppo=PpoSpec(imitation_weight="0")), space)
    drawn = make_policy(SearcherSpec(seed=1, random=Empty()), space)
    before = mean_of_policy(policy)
    for sample in range(400):
        choices = drawn.propose(sample).choices
        policy.proposed(sample, Proposal(choices, math.nan, version=0))
        policy.observed(sample, share_of_ones(choices))
    assert mean_of_policy(policy) > before + 0.1


def test_ppo_draws_no_sample_twice_while_there_are_others(flat_space: FlatSpace, search: Search) -> None:
    policy = make_policy(SearcherSpec(ppo=PpoSpec()), flat_space(6, 3))
    seen = search(policy, 200, share_of_ones)
    assert len(set(seen)) == 200
    plain = search(make_policy(SearcherSpec(random=Empty()), flat_space(6, 3)), 200, share_of_ones)
    assert len(set(plain)) < 190, "random search is the control and draws independently"


def test_ppo_goes_on_when_everything_has_been_drawn(flat_space: FlatSpace, search: Search) -> None:
    policy = make_policy(SearcherSpec(ppo=PpoSpec()), flat_space(2, 2))
    assert len(set(search(policy, 20, share_of_ones))) == 4


def test_entropy_starts_near_uniform_and_falls_as_the_policy_learns(flat_space: FlatSpace, search: Search) -> None:
    policy = make_policy(SearcherSpec(reinforce=ReinforceSpec(learning_rate="0.006")), flat_space(12, 4))
    assert policy.vitals().entropy is None
    search(policy, 8, share_of_ones)
    first = policy.vitals()
    assert first.entropy == pytest.approx(math.log(4), abs=0.01)
    search(policy, 792, share_of_ones, first=8)
    last = policy.vitals()
    assert last.updates == 100
    assert last.entropy is not None
    assert last.entropy < 0.1
