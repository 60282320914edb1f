"""The critic against what is known of Gaussian processes, and its features against the meaning of decisions."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from nas_api.decisions import Anchor, Categorical, Choices, Decision, When
from nas_controller.policies.critic import Critic, counted, encoding, features, normal_scores

WORDS = (Categorical("a", ("x", "y", "z")), Categorical("b", ("x", "y")), Categorical("c", ("x", "y")))


def distances(decisions: tuple[Decision, ...], rows: list[Choices]) -> torch.Tensor:
    """Return what the differences between samples cost at weight 1 for each length-scale."""
    plan = encoding(decisions, decisions)
    vectors = features(plan, rows)
    return ((vectors.unsqueeze(0) - vectors.unsqueeze(1)).abs() * plan.share).sum(2)


def test_words_differ_or_not() -> None:
    assert distances(WORDS, [(0, 0, 0), (1, 0, 0), (2, 1, 0)]).tolist() == [[0, 1, 2], [1, 0, 2], [2, 2, 0]]


def test_numbers_further_apart_differ_more() -> None:
    numbers = (Categorical("width", ("8", "16", "32", "64")),)
    near, far = distances(numbers, [(0,), (1,), (3,)])[0, 1:].tolist()
    assert 0 < near < far


def test_each_skip_connection_counts() -> None:
    decisions = (Anchor(0), Anchor(1), Anchor(2))
    assert distances(decisions, [(0, 0, 0), (0, 1, 2), (0, 0, 3)])[0].tolist() == [0, 2, 2]


def test_what_does_not_count_makes_no_difference() -> None:
    decisions = (Categorical("a", ("x", "y")), Categorical("b", ("x", "y"), When(0, frozenset({1}))))
    table = distances(decisions, [(0, 0), (0, 1), (1, 0), (1, 1)])
    assert table[0, 1] == 0
    assert table[2, 3] == 1
    assert table[0, 2] == table[0, 3] > 1, "a decision that counts differs from one that does not"
    deep = (*decisions, Categorical("c", ("x", "y"), When(1, frozenset({0}))))
    chosen = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1]])
    assert counted(deep, chosen).tolist() == [[True, False, False], [True, True, True], [True, True, False]]


def test_a_deeper_sample_is_encoded_beside_shallower_ones() -> None:
    """The depth schedule: later layers take the length-scale of the last of their kind, whose number never changes."""
    layer = (Categorical("size", ("x", "y")), Categorical("filters", ("p", "q", "r")))
    plan = encoding((*layer, *layer), (*layer, *layer, *layer))
    assert plan.groups == len(set(plan.group.tolist())) == 4
    rows = features(plan, [(0, 1, 1, 2), (0, 1, 1, 2, 1, 2)])
    assert rows.shape[1] == len(plan.step)
    assert (rows[0] != rows[1]).sum() == 2, "only the layer that one of them has makes a difference"


def test_skip_connections_may_come_only_later() -> None:
    one, two = (Categorical("size", ("x", "y")), Anchor(0)), (Categorical("size", ("x", "y")), Anchor(1))
    assert encoding(one, one).groups == encoding(one, (*one, *two)).groups == 2


def test_many_decisions_share_length_scales_by_kind() -> None:
    cell = (Categorical("combination", ("add", "mul")), Categorical("activation", ("tanh", "relu"))) * 30
    assert encoding(cell, cell).groups == 2


def test_normal_scores_need_no_scale() -> None:
    skewed = np.array([0.0, 0.0, 1e-9, 5.0, 1e6])
    scored = normal_scores(skewed, skewed)
    assert scored[0] == scored[1] < scored[2] < scored[3] < scored[4]
    assert scored[3] == pytest.approx(0.5244, abs=1e-4), "rank 3.5 of 5: the 0.7 quantile"
    assert torch.equal(scored, normal_scores(np.log(skewed + 1), np.log(skewed + 1)))


def test_imagination_is_the_posterior_in_closed_form() -> None:
    plan = encoding(WORDS, WORDS)
    critic = Critic(WORDS)
    critic.parameters = torch.tensor([-0.5, 0.2, -1.0, -2.0], dtype=torch.float64)
    weights = critic.parameters[:-1].exp()
    noise = math.exp(-2.0) + 1e-6
    seen, asked = [(0, 0, 0), (1, 1, 0), (2, 0, 1)], [(0, 0, 1), (2, 1, 1)]
    targets = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)

    def kernel(one: Sequence[Choices], other: Sequence[Choices]) -> torch.Tensor:
        differ = torch.tensor(one).unsqueeze(1) != torch.tensor(other).unsqueeze(0)
        return torch.exp(-(differ * weights).sum(2))

    inverse = torch.linalg.inv(kernel(seen, seen) + noise * torch.eye(3, dtype=torch.float64))
    cross = kernel(asked, seen)
    mean, variance = critic.imagine(
        plan, features(plan, seen), targets, features(plan, seen)[:0], features(plan, asked)
    )
    torch.testing.assert_close(mean, cross @ inverse @ targets)
    torch.testing.assert_close(variance, 1 - (cross @ inverse * cross).sum(1))


def test_a_sample_in_flight_counts_as_if_it_came_out_as_expected() -> None:
    plan = encoding(WORDS, WORDS)
    critic = Critic(WORDS)
    seen, pending, asked = (features(plan, rows) for rows in ([(0, 0, 0), (1, 1, 0)], [(2, 0, 1)], [(2, 0, 0)]))
    targets = torch.tensor([0.8, -0.8], dtype=torch.float64)
    expected, _ = critic.imagine(plan, seen, targets, pending[:0], pending)
    told = critic.imagine(plan, torch.cat([seen, pending]), torch.cat([targets, expected]), pending[:0], asked)
    in_flight = critic.imagine(plan, seen, targets, pending, asked)
    without = critic.imagine(plan, seen, targets, pending[:0], asked)
    torch.testing.assert_close(in_flight, told)
    torch.testing.assert_close(in_flight[0], without[0])
    assert in_flight[1] < without[1]


def test_fitting_finds_what_matters_and_how_noisy_it_is() -> None:
    plan = encoding(WORDS, WORDS)
    rows = list(itertools.product(range(3), range(2), range(2))) * 8
    samples = features(plan, rows)
    generator = torch.Generator().manual_seed(0)
    luck = torch.randn(len(rows), generator=generator, dtype=torch.float64)

    def fitted(noise: float) -> list[float]:
        targets = torch.tensor([row[0] - 1.0 for row in rows], dtype=torch.float64) + noise * luck
        critic = Critic(WORDS)
        for _ in range(4):
            critic.fit(plan, samples, targets / targets.std())
        return critic.parameters.exp().tolist()

    quiet, loud = fitted(0.1), fitted(1.0)
    assert quiet[0] > 5 * max(quiet[1:3]), "the first decision alone decides"
    assert loud[-1] > 5 * quiet[-1]
