"""The network and the policies' gradients against an enumeration of a whole tiny space, in float64.

The reference below is written step by step in numpy from the paper's formulas and shares nothing with the
network but its weights; its derivatives are central differences.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nas_api.decisions import Anchor, Choices, Decision, counting
from nas_api.experiment import PpoSpec, ReinforceSpec, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Proposal
from nas_controller.policies.draws import Purpose, draw_count, uniforms
from nas_controller.policies.network import HIDDEN, LAYERS, Network, vocabulary
from nas_controller.policies.ppo import PpoPolicy
from nas_controller.policies.reinforce import ReinforcePolicy

Vector = NDArray[np.float64]


def sigmoid(x: Vector) -> Vector:
    return 1 / (1 + np.exp(-x))


def reference(w: dict[str, Vector], decisions: tuple[Decision, ...], choices: Choices) -> tuple[float, float]:
    """Return log P(choices) and the sum of the entropies of all distributions on the way."""
    hidden = [np.zeros(HIDDEN) for _ in range(LAYERS)]
    cell = [np.zeros(HIDDEN) for _ in range(LAYERS)]
    anchors: list[Vector] = []
    x = w["start"]
    log_p = entropy = 0.0
    for decision, choice, counts in zip(decisions, choices, counting(decisions, choices), strict=True):
        for layer in range(LAYERS):
            name = f"lstm.{layer}"
            gates = w[f"{name}.input"] @ x + w[f"{name}.input_bias"]
            gates = gates + w[f"{name}.hidden"] @ hidden[layer] + w[f"{name}.hidden_bias"]
            i, f, g, o = np.split(gates, 4)
            cell[layer] = sigmoid(f) * cell[layer] + sigmoid(i) * np.tanh(g)
            hidden[layer] = sigmoid(o) * np.tanh(cell[layer])
            x = hidden[layer]
        if isinstance(decision, Anchor):
            chosen = []
            for earlier, anchor in enumerate(anchors):
                p = float(sigmoid(w["anchor.v"] @ np.tanh(anchor @ w["anchor.previous"] + x @ w["anchor.current"])))
                is_input = choice >> earlier & 1
                log_p += math.log(p if is_input else 1 - p)
                entropy -= p * math.log(p) + (1 - p) * math.log(1 - p)
                if is_input:
                    chosen.append(w["anchor.embedding"][earlier])
            anchors.append(x)
            x = np.mean(chosen, axis=0) if chosen else w["anchor.none"]
        elif not counts:
            assert choice == 0
            x = np.zeros(HIDDEN)
        else:
            logits = x @ w[f"softmax.{decision.kind}.weight"] + w[f"softmax.{decision.kind}.bias"]
            p_all = np.exp(logits) / np.exp(logits).sum()
            log_p += math.log(p_all[choice])
            entropy -= float(p_all @ np.log(p_all))
            x = w[f"embedding.{decision.kind}"][choice]
    return log_p, entropy


def enumerate_space(decisions: tuple[Decision, ...]) -> list[Choices]:
    widths = [2**d.index if isinstance(d, Anchor) else len(d.options) for d in decisions]
    return [
        choices
        for choices in itertools.product(*map(range, widths))
        if not any(choice and not counts for choice, counts in zip(choices, counting(decisions, choices), strict=True))
    ]


def numpy_weights(network: Network) -> dict[str, Vector]:
    return {name: weight.detach().numpy() for name, weight in network.weights().items()}


def widen(network: Network) -> None:
    """Make the weights ten times as large: at their start all probabilities are nearly equal."""
    with torch.no_grad():
        network.parameters.mul_(10)


def slope(network: Network, direction: torch.Tensor, function: Callable[[], float]) -> float:
    """Return the derivative of ``function``, of the network's weights, along a direction."""
    step = 1e-5
    with torch.no_grad():
        network.parameters.add_(direction, alpha=step)
        above = function()
        network.parameters.add_(direction, alpha=-2 * step)
        below = function()
        network.parameters.add_(direction, alpha=step)
    return (above - below) / (2 * step)


def directions(network: Network, count: int) -> list[torch.Tensor]:
    """Return random directions over all weights, none of them special to any one."""
    size = network.parameters.numel()
    return [torch.from_numpy(uniforms(1, index, Purpose.INITIALISE, 0, size) - 0.5) for index in range(count)]


SPACES = {"tiny_space": 512, "tiny_cell_space": 144, "conditional_space": (1 + 2 * 9 + 2) * 4}
"""Fixtures of spaces, and how many different choices each has."""


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> SearchSpace:
    made: SearchSpace = request.getfixturevalue(request.param)
    assert len(enumerate_space(made.decisions(0))) == made.size(0) == SPACES[request.param]
    return made


@pytest.fixture
def network(space: SearchSpace) -> Network:
    made = Network(vocabulary(space.decisions(0)), seed=3, dtype=torch.float64)
    widen(made)
    return made


def numbers(space: SearchSpace, count: int, seed: int = 0) -> NDArray[np.float64]:
    width = draw_count(space.decisions(0))
    return uniforms(seed, 0, Purpose.PROPOSE, 0, count * width).reshape(count, width)


def test_initial_weights_are_uniform_within_the_papers_bounds(tiny_space: SearchSpace) -> None:
    weights = Network(vocabulary(tiny_space.decisions(0)), seed=0).parameters.detach()
    assert -0.08 <= float(weights.min()) < -0.0799
    assert 0.0799 < float(weights.max()) <= 0.08
    assert abs(float(weights.mean())) < 0.001
    assert float(weights.std()) == pytest.approx(0.16 / 12**0.5, rel=0.01)


def test_every_probability_agrees_and_they_sum_to_one(network: Network, space: SearchSpace) -> None:
    decisions = space.decisions(0)
    everything = enumerate_space(decisions)
    evaluation = network.evaluate(decisions, everything)
    log_p = evaluation.log_probabilities.sum(1).detach().numpy()
    w = numpy_weights(network)
    expected = [reference(w, decisions, choices) for choices in everything]
    np.testing.assert_allclose(log_p, [log for log, _ in expected], atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        evaluation.entropies.sum(1).detach().numpy(), [entropy for _, entropy in expected], atol=1e-6, rtol=0
    )
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-6)
    assert np.exp(log_p).max() > 2 / len(everything), "the distribution must be far from uniform to test anything"


def test_the_mean_entropy_is_over_draws_that_count(network: Network, space: SearchSpace) -> None:
    """A skip connection is a draw of its own; what does not count must not make the policy look surer."""
    decisions = space.decisions(0)
    everything = enumerate_space(decisions)
    w = numpy_weights(network)
    for choices, mean in zip(everything, network.evaluate(decisions, everything).mean_entropies(), strict=True):
        number = sum(
            decision.index if isinstance(decision, Anchor) else int(counts)
            for decision, counts in zip(decisions, counting(decisions, choices), strict=True)
        )
        assert mean == pytest.approx(reference(w, decisions, choices)[1] / number, abs=1e-6)


def test_entropy_is_that_of_whole_distributions(network: Network, space: SearchSpace) -> None:
    """Chain rule: the mean over samples of the summed entropies is the entropy of the joint distribution.

    It fails when the entropy is taken of the sampled options alone.
    """
    decisions = space.decisions(0)
    evaluation = network.evaluate(decisions, enumerate_space(decisions))
    log_p = evaluation.log_probabilities.sum(1).detach()
    joint = -(log_p.exp() * log_p).sum()
    assert float((log_p.exp() * evaluation.entropies.detach().sum(1)).sum()) == pytest.approx(float(joint), abs=1e-6)


@pytest.mark.parametrize("temperatures", [None, [4.0] * 64])
def test_sampling_reports_the_probability_of_what_it_sampled(
    network: Network, space: SearchSpace, temperatures: list[float] | None
) -> None:
    """Fails when the argmax, or anything but the sampled option, is fed to the next step.

    At any temperature of the draw, the probability is the network's own.
    """
    decisions = space.decisions(0)
    drawn = network.sample(decisions, numbers(space, 64), temperatures)
    assert len(set(drawn.choices)) > 10
    w = numpy_weights(network)
    expected = [reference(w, decisions, choices)[0] for choices in drawn.choices]
    np.testing.assert_allclose(drawn.log_probabilities, expected, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_high_temperature_draws_from_everything_alike(tiny_space: SearchSpace) -> None:
    decisions = tiny_space.decisions(0)
    network = Network(vocabulary(decisions), seed=3, dtype=torch.float64)
    widen(network)
    count = 20_000
    assert draw_count(decisions) == 9 + 3
    hot = Counter(network.sample(decisions, numbers(tiny_space, count), [1e6] * count).choices)
    cold = Counter(network.sample(decisions, numbers(tiny_space, count)).choices)
    # 39 of each are expected, with a standard deviation of 6.
    assert len(hot) == 512
    assert max(hot.values()) < 39 + 5 * 6.3 < max(cold.values())


@pytest.mark.slow
def test_samples_come_as_often_as_their_probability_says(network: Network, space: SearchSpace) -> None:
    decisions = space.decisions(0)
    everything = enumerate_space(decisions)
    p = network.evaluate(decisions, everything).log_probabilities.sum(1).exp().detach().numpy()
    count = 40_000
    drawn = network.sample(decisions, numbers(space, count))
    place = {choices: index for index, choices in enumerate(everything)}
    seen = np.bincount([place[choices] for choices in drawn.choices], minlength=len(everything))
    chi_square = ((seen - count * p) ** 2 / (count * p)).sum()
    # Mean: the degrees of freedom; variance: twice that, and more where options are expected less than once.
    freedom = len(everything) - 1
    assert chi_square < freedom + 5 * (2 * freedom + (1 / (count * p)).sum()) ** 0.5


def test_gradient_of_the_expected_reward_over_the_whole_space(network: Network, space: SearchSpace) -> None:
    """The policy gradient theorem, exactly: E[R d log p] is the derivative of E[R]."""
    decisions = space.decisions(0)
    everything = enumerate_space(decisions)
    rewards = uniforms(0, 0, Purpose.PROPOSE, 7, len(everything))
    log_p = network.evaluate(decisions, everything).log_probabilities.sum(1)
    (log_p.detach().exp() * torch.from_numpy(rewards) * log_p).sum().backward()  # type: ignore[no-untyped-call]
    w = numpy_weights(network)

    def expected_reward() -> float:
        return sum(
            math.exp(reference(w, decisions, choices)[0]) * float(reward)
            for choices, reward in zip(everything, rewards, strict=True)
        )

    assert network.parameters.grad is not None
    for direction in directions(network, 3):
        assert float(network.parameters.grad @ direction) == pytest.approx(
            slope(network, direction, expected_reward), abs=1e-6
        )


def test_what_does_not_count_has_no_gradient(conditional_space: SearchSpace) -> None:
    """The softmaxes and embeddings of decisions that were not taken stay as they are."""
    decisions = conditional_space.decisions(0)
    network = Network(vocabulary(decisions), seed=3, dtype=torch.float64)
    evaluation = network.evaluate(decisions, [(0, 0, 0, 0, 0, 1, 0)] * 2)
    (evaluation.log_probabilities.sum() + evaluation.entropies.sum()).backward()  # type: ignore[no-untyped-call]
    gradient = network.parameters.grad
    assert gradient is not None
    offset = 0
    for name, weight in network.weights().items():
        moves = bool(gradient[offset : offset + weight.numel()].any())
        offset += weight.numel()
        if name.split(".")[0] in ("softmax", "embedding"):
            assert moves == (name.split(".")[1] in ("block", "bias")), name


FORCED: list[tuple[Choices, float]] = [
    ((0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 2), 0.9),
    ((1, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 3), 0.2),
    ((0, 0, 0, 0, 1, 0, 1, 1, 1, 0, 1, 0), 0.5),
]


def force(policy: ReinforcePolicy | PpoPolicy, first: int, log_probabilities: list[float]) -> None:
    """Give the policy one batch of ``FORCED``: all proposed, then observed in another order."""
    for offset, (choices, _) in enumerate(FORCED):
        policy.proposed(first + offset, Proposal(choices, log_probabilities[offset], version=0))
    for offset in (2, 0, 1):
        policy.observed(first + offset, FORCED[offset][1])


@pytest.mark.slow
def test_reinforce_makes_the_papers_gradient(tiny_space: SearchSpace) -> None:
    """1/m sum_k (R_k - b) d log p(sampled), with b from the rewards before this batch.

    Fails when log-probabilities are of freshly drawn options, when rewards are averaged over trials, when the
    batch's own rewards enter its baseline, or when skip connections are left out.
    """
    spec = SearcherSpec(reinforce=ReinforceSpec(batch=3, baseline_decay="0.9"))
    policy = ReinforcePolicy(spec, tiny_space, torch.float64)
    network = policy._network
    widen(network)
    force(policy, 0, [0.0] * 3)
    baseline = (0.9 + 0.2 + 0.5) / 3
    for reward in (0.5, 0.9, 0.2):  # as observed
        baseline = 0.9 * baseline + 0.1 * reward
    before = network.parameters.detach().clone()
    force(policy, 3, [0.0] * 3)
    after = network.parameters.detach().clone()
    with torch.no_grad():
        network.parameters.copy_(before)
    gradient = network.parameters.grad
    assert gradient is not None
    decisions, w = tiny_space.decisions(0), numpy_weights(network)

    def loss() -> float:
        return -sum((reward - baseline) * reference(w, decisions, choices)[0] for choices, reward in FORCED) / 3

    for direction in directions(network, 3):
        assert float(gradient @ direction) == pytest.approx(slope(network, direction, loss), abs=1e-6)
    # One step of Adam per batch, no more: each weight moves at most a little more than the learning rate.
    moved = (after - before).abs().max()
    assert 0 < float(moved) < 0.0006 * 1.5


@pytest.mark.slow
def test_ppo_makes_the_clipped_gradient_with_full_entropy_and_imitation(tiny_space: SearchSpace) -> None:
    """One epoch against the formula; the ratio's denominator is the probability in the log."""
    spec = SearcherSpec(
        ppo=PpoSpec(batch=3, epochs=1, clip="0.2", imitation=2, imitation_weight="0.3", entropy_bonus="0.07")
    )
    policy = PpoPolicy(spec, tiny_space, torch.float64)
    network = policy._network
    widen(network)
    before = network.parameters.detach().clone()
    decisions, w = tiny_space.decisions(0), numpy_weights(network)
    now = [reference(w, decisions, choices)[0] for choices, _ in FORCED]
    # The best one has become more likely than the clip allows: its gain is flat there.
    old = [now[0] - 0.5, now[1] + 0.1, now[2] - 0.1]
    force(policy, 0, old)
    with torch.no_grad():
        network.parameters.copy_(before)
    gradient = network.parameters.grad
    assert gradient is not None
    advantages = (2 / 3, -2 / 3, 0.0)  # ranks of 0.9, 0.2 and 0.5

    def loss() -> float:
        total = 0.0
        for (choices, _), log_old, advantage in zip(FORCED, old, advantages, strict=True):
            log_p, entropy = reference(w, decisions, choices)
            ratio = math.exp(log_p - log_old)
            clipped = min(max(ratio, 0.8), 1.2)
            total -= (min(ratio * advantage, clipped * advantage) + 0.07 * entropy) / 3
        best = [FORCED[0][0], FORCED[2][0]]
        return total - 0.3 * sum(reference(w, decisions, choices)[0] for choices in best) / 2

    for direction in directions(network, 3):
        assert float(gradient @ direction) == pytest.approx(slope(network, direction, loss), abs=1e-6)
