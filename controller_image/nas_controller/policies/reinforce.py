"""The paper's policy gradient (section 3.2): REINFORCE with a moving-average baseline.

For m samples with rewards R_k and the baseline b of rewards before them, one step of Adam along

    1/m  sum_k  sum_t  d/dtheta log P(a_t | a_1 .. a_(t-1)) (R_k - b)

where the a_t are the choices that were sampled, skip connections included. There is no entropy bonus.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nas_api.experiment import ReinforceSpec, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies.learner import Learner, Observation, by_decisions


class ReinforcePolicy(Learner):
    """The paper's policy.

    The first batch has no past rewards: its own mean is its baseline, and the moving average starts there. The
    paper says neither this nor the average's decay.
    """

    def __init__(self, searcher: SearcherSpec, space: SearchSpace, dtype: torch.dtype = torch.float32) -> None:
        spec = searcher.reinforce or ReinforceSpec()
        super().__init__(searcher.seed, space, float(spec.learning_rate), spec.batch, dtype)
        self._decay = float(spec.baseline_decay)
        self._baseline = math.nan

    def _update(self, batch: Sequence[Observation]) -> None:
        if math.isnan(self._baseline):
            self._baseline = sum(seen.reward for seen in batch) / len(batch)
        loss = self._tensor([]).sum()
        entropy = 0.0
        for decisions, group in by_decisions(self._space, batch).items():
            evaluation = self._network.evaluate(decisions, [seen.proposal.choices for seen in group])
            advantages = self._tensor([seen.reward - self._baseline for seen in group])
            loss = loss - (advantages @ evaluation.log_probabilities.sum(1)) / len(batch)
            entropy += sum(evaluation.mean_entropies()) / len(batch)
        self._step(loss)
        self._entropy = entropy
        for seen in batch:
            self._baseline = self._decay * self._baseline + (1 - self._decay) * seen.reward

    def dump(self) -> dict[str, Tensor]:
        """See :class:`~nas_controller.policies.Policy`."""
        return {**super().dump(), "baseline": torch.tensor([self._baseline], dtype=torch.float64)}

    def load(self, state: dict[str, Tensor]) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        super().load(state)
        self._baseline = float(state["baseline"])
