"""The policy guided by a critic: it is trained on rewards that are imagined, which cost nothing.

A child takes minutes, an imagined reward microseconds. The critic, a Gaussian process over the decisions, is fitted to
what was observed; the LSTM policy is then trained on samples of its own whose reward is the critic's mean: model-based
policy optimisation, as in Angermueller et al., *Model-based reinforcement learning for biological sequence design*,
ICLR 2020. Of the policy's draws and of mutations of the best samples, the one with the largest expected improvement is
proposed.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_api.decisions import Anchor, Choices, Decision
from nas_api.experiment import GuidedSpec, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Proposal
from nas_controller.policies.critic import Critic, Encoding, counted, encoding, features, normal_scores
from nas_controller.policies.draws import Purpose, draw_count, uniforms
from nas_controller.policies.learner import Learner, Observation, fingerprint, pack, unpack
from nas_controller.policies.proximal import clipped_gain, log_likelihoods

BEST = 192
NEWEST = 192
"""The critic knows the best samples and the newest, since exact inference is cubic in their number."""
PENDING = 128
"""So many of the newest samples in flight are taken into account."""
FITTED = 256
"""To at most so many of them the length-scales are fitted."""
GROWTH = 1.15
"""The length-scales are fitted again when there are so many times as many samples as the last time."""
MUTATIONS = 3
"""The most elementary draws in which a mutant differs from its parent."""
PARENTS = 10
"""How many of the best samples are mutated, and imitated."""
IMAGINED = 48
"""Samples that the policy imagines at each update."""
EPOCHS = 4
"""Optimisation steps on them, by proximal policy optimisation."""
CLIP = 1.0
"""How far the probability ratio may leave 1."""
IMITATION_WEIGHT = 0.05
"""Weight of the imitation loss: the critic knows nothing of where it has no samples, the best ones hold it there."""


class GuidedPolicy(Learner):
    """The LSTM policy and its critic.

    Samples in flight count as if they had come out as the critic expects. The critic takes account of each
    observation at once; its length-scales and the policy learn once a batch.
    """

    def __init__(self, searcher: SearcherSpec, space: SearchSpace, dtype: torch.dtype = torch.float32) -> None:
        spec = searcher.guided or GuidedSpec()
        super().__init__(searcher.seed, space, float(spec.learning_rate), spec.batch, dtype)
        self._entropy_bonus = float(spec.entropy_bonus)
        self._candidates = spec.candidates
        self._critic = Critic(space.decisions(0))
        self._seen: list[Observation] = []  # what the critic has learnt from, in log order
        self._rewards: list[float] = []  # of all samples that were learnt from, in log order
        self._known: set[int] = set()
        self._fit_at = 0.0
        self._newest = 0
        # What the policy drew for candidates, for which parameters and decisions: no state, only kept for a while.
        self._drafts: tuple[int, tuple[Decision, ...], list[Choices]] | None = None

    def propose(self, sample: int) -> Proposal:
        """Return the new candidate with the largest expected improvement, given what is observed and in flight.

        Before the first update, and once every candidate is known, it is a draw of the policy.
        """
        decisions = self._space.decisions(sample)
        if not self._updates:
            return super().propose(sample)
        candidates = self._propose_from(sample, decisions)
        seen = [*self._seen, *self._waiting]
        targets = self._targets(seen)
        plan = self._encoding(decisions)
        samples = features(plan, [each.proposal.choices for each in seen])
        pending = features(plan, [each.choices for each in list(self._open.values())[-PENDING:]])
        # Rewards are noisy: what is to be exceeded is the best that the critic makes of them.
        asked = [*candidates, *(each.proposal.choices for each in _best(seen, PARENTS))]
        mean, variance = self._critic.imagine(plan, samples, targets, pending, features(plan, asked))
        count = len(candidates)
        gain = expected_improvement(mean[:count], variance[:count], float(mean[count:].max()))
        ranked = (candidates[place] for place in gain.argsort(descending=True, stable=True).tolist())
        choices = next((each for each in ranked if fingerprint(each) not in self._known), None)
        if choices is None:
            return super().propose(sample)
        with torch.no_grad():
            log_p = self._network.evaluate(decisions, [choices]).log_probabilities.double().sum()
        return Proposal(choices, float(log_p), self._updates)

    def _propose_from(self, sample: int, decisions: tuple[Decision, ...]) -> list[Choices]:
        """Return draws of the policy and mutations of the best samples, each once."""
        if self._drafts is None or self._drafts[:2] != (self._updates, decisions):
            drawn = self._imagine(decisions, Purpose.DRAFT, self._candidates)
            self._drafts = self._updates, decisions, drawn
        numbers = uniforms(self._seed, sample, Purpose.MUTATE, 0, self._candidates * numbers_per_mutant(decisions))
        parents = [seen.proposal.choices for seen in _best(self._seen, PARENTS)]
        mutants = mutate(decisions, parents, numbers.reshape(self._candidates, -1))
        return list(dict.fromkeys([*self._drafts[2], *mutants]))

    def proposed(self, sample: int, proposal: Proposal) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        super().proposed(sample, proposal)
        self._known.add(fingerprint(proposal.choices))
        self._newest = max(self._newest, sample)

    def _update(self, batch: Sequence[Observation]) -> None:
        self._rewards += [seen.reward for seen in batch]
        self._seen += batch
        if len(self._seen) > BEST + NEWEST:
            older, newest = self._seen[:-NEWEST], self._seen[-NEWEST:]
            best = {seen.sample for seen in _best(older, BEST)}
            self._seen = [*(seen for seen in older if seen.sample in best), *newest]
        decisions = self._space.decisions(self._newest)
        plan = self._encoding(decisions)
        samples = features(plan, [seen.proposal.choices for seen in self._seen])
        targets = self._targets(self._seen)
        if len(self._rewards) >= self._fit_at:
            stride = math.ceil(len(self._seen) / FITTED)
            self._critic.fit(plan, samples[::stride], targets[::stride])
            self._fit_at = len(self._rewards) * GROWTH
        imagined = self._imagine(decisions, Purpose.IMAGINE, IMAGINED)
        rewards, _ = self._critic.imagine(plan, samples, targets, samples[:0], features(plan, imagined))
        self._improve(decisions, imagined, rewards)

    def _imagine(self, decisions: tuple[Decision, ...], purpose: Purpose, count: int) -> list[Choices]:
        """Return draws of the policy under the present parameters, other ones for each purpose."""
        width = draw_count(decisions)
        numbers = uniforms(self._seed, self._updates, purpose, 0, count * width)
        return self._network.sample(decisions, numbers.reshape(count, width)).choices

    def _improve(self, decisions: tuple[Decision, ...], imagined: list[Choices], rewards: Tensor) -> None:
        """Train the policy on imagined rewards, (imagined,), as on any others."""
        advantages = ((rewards - rewards.mean()) / (rewards.std() + 1e-6)).to(self._network.parameters.dtype)
        best = [
            choices for seen in _best(self._seen, PARENTS) if len(choices := seen.proposal.choices) == len(decisions)
        ]
        old: Tensor | None = None
        for _ in range(EPOCHS):
            evaluation = self._network.evaluate(decisions, [*imagined, *best])
            log_p = log_likelihoods(evaluation)
            mine = log_p[: len(imagined)]
            if old is None:
                old = mine.detach()
                entropies = evaluation.mean_entropies()[: len(imagined)]
                self._entropy = sum(entropies) / len(imagined)
            gain = clipped_gain(mine, old, advantages, CLIP)
            bonus = self._entropy_bonus * evaluation.entropies[: len(imagined)].sum(1)
            loss = -(gain + bonus).mean()
            if best:
                loss = loss - IMITATION_WEIGHT * log_p[len(imagined) :].mean()
            self._step(loss)

    def _targets(self, seen: Sequence[Observation]) -> Tensor:
        """Return the normal scores of these samples' rewards among all."""
        everything = [*self._rewards, *(each.reward for each in seen[len(self._seen) :])]
        return normal_scores(np.array([each.reward for each in seen]), np.array(everything))

    def _encoding(self, decisions: tuple[Decision, ...]) -> Encoding:
        """Return the encoding of samples with up to these decisions."""
        newest = self._space.decisions(self._newest)
        return encoding(self._space.decisions(0), max(decisions, newest, key=len))

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
        self._drafts = None


def _best(seen: Sequence[Observation], count: int) -> list[Observation]:
    """Return the best samples, the best first; of equals the earlier first."""
    return sorted(seen, key=lambda each: (-each.reward, each.sample))[:count]


def numbers_per_mutant(decisions: tuple[Decision, ...]) -> int:
    """Return how many numbers a mutant takes."""
    return 1 + 2 * MUTATIONS + len(decisions)


def mutate(decisions: tuple[Decision, ...], parents: Sequence[Choices], numbers: NDArray[np.float64]) -> list[Choices]:
    """Return one mutant for each row of numbers: a parent in which 1 to 3 elementary draws came out otherwise.

    A skip connection is switched, or another option chosen. What the parent has no answer for, because it is
    shallower or the decision did not count, is drawn anew.

    Args:
        decisions: what the mutants answer.
        parents: taken in turn; each answers a beginning of the decisions.
        numbers: uniform in [0, 1), of shape (mutants, numbers_per_mutant(decisions)).
    """
    sizes = np.array([1 << each.index if isinstance(each, Anchor) else len(each.options) for each in decisions])
    table = (numbers[:, 1 + 2 * MUTATIONS :] * sizes).astype(np.int64)
    for place, parent in enumerate(parents):
        chosen = np.array([parent])
        given = np.flatnonzero(counted(decisions[: len(parent)], chosen)[0])
        table[place :: len(parents), given] = chosen[0, given]
    # Step and bit of each elementary draw; -1 for what is not a mask.
    elementary = np.array(
        [
            (step, bit)
            for step, each in enumerate(decisions)
            for bit in (range(each.index) if isinstance(each, Anchor) else (-1,))
        ]
    )
    changes = 1 + (numbers[:, 0] * MUTATIONS).astype(np.int64)
    for turn in range(MUTATIONS):
        rows = np.flatnonzero(turn < changes)
        which, value = numbers[rows, 1 + 2 * turn], numbers[rows, 2 + 2 * turn]
        step, bit = elementary[(which * len(elementary)).astype(np.int64)].T
        old = table[rows, step]
        other = (old + 1 + (value * (sizes[step] - 1)).astype(np.int64)) % sizes[step]
        table[rows, step] = np.where(bit < 0, other, old ^ (1 << np.maximum(bit, 0)))
    table[~counted(decisions, table)] = 0
    return list(map(tuple, table.tolist()))


def expected_improvement(mean: Tensor, variance: Tensor, best: float) -> Tensor:
    """Return by how much normal variables are expected to exceed ``best``, where they exceed it; else 0."""
    deviation = variance.sqrt()
    z = (mean - best) / deviation
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    gain: Tensor = deviation * (z * torch.special.ndtr(z) + density)
    return gain
