"""The paper's controller without a critic, trained with what helps at a few hundred samples.

Against plain REINFORCE: proximal policy optimisation (Schulman et al., arXiv 1707.06347) takes several steps
on each small batch; rewards count by their rank among the newest ones, so neither their scale nor an outlier matters;
an entropy bonus and redrawn duplicates keep the policy from collapsing; and the best samples so far are imitated.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nas_api.experiment import PpoSpec, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Proposal
from nas_controller.policies.learner import Learner, Observation, by_decisions, fingerprint, pack, unpack
from nas_controller.policies.proximal import clipped_gain, log_likelihoods

TEMPERATURES = tuple(2 ** (redraw / 4) for redraw in range(32))
"""Of the redraws for a sample whose first draw was proposed before. The first is the policy's own; a policy that
knows what it wants would repeat itself for ever, so each later one strays a little further, at last to anywhere."""
WINDOW = 16
"""How many of the newest rewards a reward is ranked among. Against all so far, a policy that has learnt finds
whatever it draws good, and reinforces itself until it collapses; against its batch alone, ranks are noise."""


class PpoPolicy(Learner):
    """Proximal policy optimisation on ranked rewards.

    The probability ratio is that of whole samples, its denominator the probability that the log recorded when the
    sample was proposed, however many updates ago. Of a sample that another search has drawn it is this policy's own
    at the beginning of the update, as if it had just proposed it.
    """

    def __init__(self, searcher: SearcherSpec, space: SearchSpace, dtype: torch.dtype = torch.float32) -> None:
        spec = searcher.ppo or PpoSpec()
        super().__init__(searcher.seed, space, float(spec.learning_rate), spec.batch, dtype)
        self._epochs = spec.epochs
        self._clip = float(spec.clip)
        self._entropy_bonus = float(spec.entropy_bonus)
        self._imitated = spec.imitation
        self._imitation_weight = float(spec.imitation_weight)
        self._recent: list[float] = []
        self._best: list[Observation] = []  # best first; of equals the earlier first
        self._known: set[int] = set()

    def propose(self, sample: int) -> Proposal:
        """Draw until the choices are new, at most once per ``TEMPERATURES`` more; then a repeat is accepted."""
        first = super().propose(sample)
        if fingerprint(first.choices) not in self._known:
            return first
        redrawn = self._draw(sample, attempt=1, count=len(TEMPERATURES), temperatures=TEMPERATURES)
        return next((draw for draw in redrawn if fingerprint(draw.choices) not in self._known), first)

    def proposed(self, sample: int, proposal: Proposal) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        super().proposed(sample, proposal)
        self._known.add(fingerprint(proposal.choices))

    def _update(self, batch: Sequence[Observation]) -> None:
        window = max(WINDOW, len(batch))
        self._recent = [*self._recent, *(seen.reward for seen in batch)][-window:]
        best = sorted([*self._best, *batch], key=lambda seen: (-seen.reward, seen.sample))
        self._best = best[: self._imitated]
        advantages = {seen.sample: self._advantage(seen.reward) for seen in batch}
        batch = self._as_proposed(batch)
        for epoch in range(self._epochs):
            loss, entropy = self._loss(batch, advantages)
            self._step(loss)
            if epoch == 0:
                self._entropy = entropy

    def _as_proposed(self, batch: Sequence[Observation]) -> list[Observation]:
        """Return the batch with this policy's probabilities for what another search has drawn."""
        own: dict[int, float] = {}
        foreign = [seen for seen in batch if math.isnan(seen.proposal.log_probability)]
        for decisions, group in by_decisions(self._space, foreign).items():
            with torch.no_grad():
                evaluation = self._network.evaluate(decisions, [seen.proposal.choices for seen in group])
            log_p = log_likelihoods(evaluation)
            own |= {seen.sample: value for seen, value in zip(group, log_p.tolist(), strict=True)}
        return [
            replace(seen, proposal=replace(seen.proposal, log_probability=own[seen.sample]))
            if seen.sample in own
            else seen
            for seen in batch
        ]

    def _advantage(self, reward: float) -> float:
        """Return where a reward ranks among the newest: -1 below all, 1 above all, 0 in the middle."""
        below = sum(other < reward for other in self._recent)
        above = sum(other > reward for other in self._recent)
        return (below - above) / len(self._recent)

    def _loss(self, batch: Sequence[Observation], advantages: dict[int, float]) -> tuple[Tensor, float]:
        """Return the loss and the mean entropy of a draw in the batch, in nats."""
        loss = self._tensor([]).sum()
        entropy = 0.0
        # One evaluation for both purposes: first those of the batch, then those imitated.
        learnt = by_decisions(self._space, batch)
        imitated = by_decisions(self._space, self._best)
        for decisions in learnt | imitated:
            mine, theirs = learnt.get(decisions, []), imitated.get(decisions, [])
            evaluation = self._network.evaluate(decisions, [seen.proposal.choices for seen in (*mine, *theirs)])
            log_p = log_likelihoods(evaluation)
            if mine:
                old = self._tensor([seen.proposal.log_probability for seen in mine])
                advantage = self._tensor([advantages[seen.sample] for seen in mine])
                gain = clipped_gain(log_p[: len(mine)], old, advantage, self._clip)
                bonus = self._entropy_bonus * evaluation.entropies[: len(mine)].sum(1)
                loss = loss - (gain + bonus).sum() / len(batch)
                entropy += sum(evaluation.mean_entropies()[: len(mine)]) / len(batch)
            if theirs:
                loss = loss - self._imitation_weight * log_p[len(mine) :].sum() / len(self._best)
        return loss, entropy

    def dump(self) -> dict[str, Tensor]:
        """See :class:`~nas_controller.policies.Policy`."""
        return {
            **super().dump(),
            "recent": torch.tensor(self._recent, dtype=torch.float64),
            "known": torch.tensor(sorted(self._known), dtype=torch.int64),
            **pack("best", [(seen.sample, seen.proposal, seen.reward) for seen in self._best]),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        super().load(state)
        self._recent = state["recent"].tolist()
        self._known = set(state["known"].tolist())
        self._best = [Observation(*row) for row in unpack("best", state)]
