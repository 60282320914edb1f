"""The policy guided by a critic: it is trained on rewards that are imagined, which cost nothing.

A child takes minutes, an imagined reward microseconds. The critic, a Gaussian process over the decisions, is fitted to
what was observed; the LSTM policy then learns by REINFORCE from samples of its own whose reward is the critic's
mean (model-based policy optimisation). Of the policy's samples and of mutations of the best, the one with the largest
expected improvement is proposed.
"""

import math
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_api.decisions import Anchor, Categorical, Choices, Decision
from nas_api.experiment import GuidedSpec, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Proposal
from nas_controller.policies.critic import Critic, Encoding, encoding, features, normal_scores
from nas_controller.policies.draws import Purpose, uniforms
from nas_controller.policies.learner import Learner, Observation, pack, unpack
from nas_controller.policies.network import layout

BEST = 256
NEWEST = 256
"""The critic knows the best samples and the newest; exact inference is cubic in their number."""
FITTED = 256
"""To how many samples the length-scales are fitted."""
GROWTH = 1.15
"""The length-scales are fitted again whenever there are so many times as many samples."""
PARENTS = 10
STEPS = 4
IMAGINED = 128
IMITATION = 0.05
CLAMP = 20.0


class GuidedPolicy(Learner):
    """The LSTM policy and its critic."""

    def __init__(self, searcher: SearcherSpec, space: SearchSpace, dtype: torch.dtype = torch.float32) -> None:
        spec = searcher.guided or GuidedSpec()
        super().__init__(searcher.seed, space, float(spec.learning_rate), spec.batch, dtype)
        self._entropy_bonus = float(spec.entropy_bonus)
        self._candidates = spec.candidates
        self._first = space.decisions(0)
        self._critic = Critic(self._first)
        self._seen: list[Observation] = []  # what the critic knows, in log order
        self._rewards: list[float] = []  # of all samples
        self._known: set[int] = set()
        self._fit_at = 0.0
        self._newest = 0

    def propose(self, sample: int) -> Proposal:
        """Return the candidate with the largest expected improvement, given what is observed and in flight."""
        if not self._updates:
            return super().propose(sample)
        decisions = self._space.decisions(sample)
        pool = self._pool(sample, decisions)
        if not pool:
            return super().propose(sample)
        longest = self._longest(decisions)
        seen = features(longest, [seen.proposal.choices for seen in self._seen])
        pending = features(longest, [open.choices for open in self._open.values()])
        asked = torch.cat([features(longest, pool), seen])
        mean, variance = self._critic.imagine(longest, seen, self._targets(), pending, asked)
        gain = _expected_improvement(mean[: len(pool)], variance[: len(pool)].sqrt(), float(mean[len(pool) :].max()))
        choices = pool[int(gain.argmax())]
        with torch.no_grad():
            log_p = self._network.evaluate(decisions, [choices]).log_probabilities.double().sum()
        return Proposal(choices, float(log_p), self._updates)

    def _pool(self, sample: int, decisions: tuple[Decision, ...]) -> list[Choices]:
        drawn = [draw.choices for draw in self._draw(sample, attempt=1, count=self._candidates)]
        parents = [seen.proposal.choices for seen in self._best()]
        numbers = uniforms(self._seed, sample, Purpose.MUTATE, 0, self._candidates * mutation_draws(decisions))
        mutants = mutate(decisions, parents, numbers.reshape(self._candidates, -1))
        return [choices for choices in dict.fromkeys([*drawn, *mutants]) if _fingerprint(choices) not in self._known]

    def _best(self) -> list[Observation]:
        return sorted(self._seen, key=lambda seen: (-seen.reward, seen.sample))[:PARENTS]

    def proposed(self, sample: int, proposal: Proposal) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        super().proposed(sample, proposal)
        self._known.add(_fingerprint(proposal.choices))
        self._newest = max(self._newest, sample)

    def _update(self, batch: Sequence[Observation]) -> None:
        self._rewards += [seen.reward for seen in batch]
        self._seen += batch
        if len(self._seen) > BEST + NEWEST:
            older = sorted(self._seen[:-NEWEST], key=lambda seen: (-seen.reward, seen.sample))[:BEST]
            self._seen = sorted(older, key=lambda seen: seen.sample) + self._seen[-NEWEST:]
        decisions = self._space.decisions(self._newest)
        longest = self._longest(decisions)
        seen = features(longest, [seen.proposal.choices for seen in self._seen])
        targets = self._targets()
        if len(self._rewards) >= self._fit_at:
            self._critic.fit(longest, seen[-FITTED:], targets[-FITTED:])
            self._fit_at = len(self._rewards) * GROWTH
        for step in range(STEPS):
            self._dream(step, decisions, longest, seen, targets)

    def _dream(
        self, step: int, decisions: tuple[Decision, ...], longest: Encoding, seen: Tensor, targets: Tensor
    ) -> None:
        width = layout(decisions).draws
        numbers = uniforms(self._seed, self._updates, Purpose.IMAGINE, step, IMAGINED * width)
        choices = self._network.sample(decisions, numbers.reshape(IMAGINED, width)).choices
        mean, _ = self._critic.imagine(longest, seen, targets, seen[:0], features(longest, choices))
        advantages = ((mean - mean.mean()) / (mean.std() + 1e-6)).to(self._network.parameters.dtype)
        best = [seen.proposal.choices for seen in self._best() if len(seen.proposal.choices) == len(decisions)]
        evaluation = self._network.evaluate(decisions, [*choices, *best])
        log_p = evaluation.log_probabilities.clamp(min=-CLAMP).sum(1)
        entropies = evaluation.entropies[:IMAGINED]
        loss = -(advantages * log_p[:IMAGINED] + self._entropy_bonus * entropies.sum(1)).mean()
        if best:
            loss = loss - IMITATION * log_p[IMAGINED:].mean()
        self._step(loss)
        if step == 0:
            self._entropy = float(entropies.detach().mean())

    def _targets(self) -> Tensor:
        return normal_scores(np.array([seen.reward for seen in self._seen]), np.array(self._rewards))

    def _longest(self, decisions: tuple[Decision, ...]) -> Encoding:
        newest = self._space.decisions(self._newest)
        return encoding(self._first, max(decisions, newest, key=len))

    def dump(self) -> dict[str, Tensor]:
        """See :class:`~nas_controller.policies.Policy`."""
        return {
            **super().dump(),
            "critic": self._critic.parameters.clone(),
            "rewards": torch.tensor(self._rewards, dtype=torch.float64),
            "known": torch.tensor(sorted(self._known), dtype=torch.int64),
            "fit_at": torch.tensor([self._fit_at], dtype=torch.float64),
            "newest": torch.tensor([self._newest]),
            **pack("seen", [(seen.sample, seen.proposal, seen.reward) for seen in self._seen]),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        super().load(state)
        self._critic.parameters = state["critic"].clone()
        self._rewards = state["rewards"].tolist()
        self._known = set(state["known"].tolist())
        self._fit_at = float(state["fit_at"])
        self._newest = int(state["newest"])
        self._seen = [Observation(*row) for row in unpack("seen", state)]


def mutation_draws(decisions: tuple[Decision, ...]) -> int:
    """Return how many uniform numbers a mutant takes."""
    return 1 + 2 * MUTATIONS + len(decisions)


MUTATIONS = 3


def mutate(decisions: tuple[Decision, ...], parents: Sequence[Choices], numbers: NDArray[np.float64]) -> list[Choices]:
    """Return one mutant for each row of numbers: a parent with 1 to 3 of its elementary draws changed.

    A skip connection is switched, another option is chosen. Decisions that the parent did not take, because it is
    shallower or they did not count, are drawn uniformly.
    """
    count, steps = len(numbers), len(decisions)
    fresh = numbers[:, 1 + 2 * MUTATIONS :]
    options = np.array(
        [1 << decision.index if isinstance(decision, Anchor) else len(decision.options) for decision in decisions]
    )
    table = (fresh * options).astype(np.int64)
    counted = np.zeros((count, steps), dtype=bool)
    for row in range(count):
        parent = parents[row % len(parents)]
        table[row, : len(parent)] = parent
        counted[row, : len(parent)] = True
    before = _counting(decisions, table) & counted
    places = [
        (step, bit)
        for step, decision in enumerate(decisions)
        for bit in (range(decision.index) if isinstance(decision, Anchor) else (-1,))
    ]
    where = np.array(places)
    often = 1 + (numbers[:, 0] * MUTATIONS).astype(np.int64)
    rows = np.arange(count)
    for turn in range(MUTATIONS):
        step, bit = where[(numbers[:, 1 + 2 * turn] * len(places)).astype(np.int64)].T
        old = table[rows, step]
        size = options[step]
        other = (old + 1 + (numbers[:, 2 + 2 * turn] * (size - 1)).astype(np.int64)) % size
        new = np.where(bit >= 0, old ^ (1 << np.maximum(bit, 0)), other)
        table[rows, step] = np.where(turn < often, new, old)
    drawn = (fresh * options).astype(np.int64)
    for step, decision in enumerate(decisions):
        if isinstance(decision, Categorical) and decision.when is not None:
            table[:, step] = np.where(before[:, step], table[:, step], drawn[:, step])
    table[~_counting(decisions, table)] = 0
    return list(map(tuple, table.tolist()))


def _counting(decisions: tuple[Decision, ...], table: NDArray[np.int64]) -> NDArray[np.bool_]:
    counts = np.ones(table.shape, dtype=bool)
    for step, decision in enumerate(decisions):
        when = decision.when if isinstance(decision, Categorical) else None
        if when is not None:
            counts[:, step] = counts[:, when.step] & np.isin(table[:, when.step], list(when.choices))
    return counts


def _expected_improvement(mean: Tensor, deviation: Tensor, incumbent: float) -> Tensor:
    z = (mean - incumbent) / deviation
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return deviation * (z * torch.special.ndtr(z) + density)


def _fingerprint(choices: Choices) -> int:
    digest = blake2b(",".join(map(str, choices)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
