"""The paper's policy gradient (section 3.2): REINFORCE with a moving-average baseline, on asynchronous replicas.

For m samples with rewards R_k and the baseline b of rewards before them, the gradient is

    1/m  sum_k  sum_t  d/dtheta log P(a_t | a_1 .. a_(t-1)) (R_k - b)

where the a_t are the choices that were sampled, skip connections included. There is no entropy bonus.

The paper distributes this (section 3.2, figure 3): each of K controller replicas fetches the parameters, samples m
children with them, and sends the gradient once their rewards are in; parameter servers make a step of Adam of each
gradient, or of every 10. Meanwhile others have sent theirs, so a gradient belongs to parameters that are no longer the
newest. Here the replicas are logical, and one process makes the very same steps. The paper also splits the parameters
over S servers, which changes where numbers are kept and none of them, so that there is nothing to set.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from nas_api.experiment import ReinforceSpec, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Proposal
from nas_controller.policies.learner import Learner, Observation, by_decisions


class ReinforcePolicy(Learner):
    """The paper's policy.

    Samples are dealt to the replicas in turn, to those first whose batch has room. A replica draws from the parameters
    that it fetched last: when it sent a gradient, or, if it had nothing left to do then, when it is dealt a sample
    again. A search keeps its children's number up, so a replica may be dealt the first samples of its next batch
    before this one is full.

    A gradient is the mean over a batch, each sample's taken at the parameters that drew it, and an update is the mean
    of ``gradientsPerUpdate`` gradients. One parameter vector is kept for each version that still has a sample or a
    replica: at most as many as there are replicas and samples in flight, far fewer where gradients are gathered.

    The first batch has no past rewards: its own mean is its baseline, and the moving average starts there. The
    paper says neither this nor the average's decay, nor whether replicas share it; here they do.
    """

    def __init__(self, searcher: SearcherSpec, space: SearchSpace, dtype: torch.dtype = torch.float32) -> None:
        spec = searcher.reinforce or ReinforceSpec()
        super().__init__(searcher.seed, space, float(spec.learning_rate), spec.batch, dtype)
        self._decay = float(spec.baseline_decay)
        self._baseline = math.nan
        self._replicas = spec.replicas
        self._gradients_per_update = spec.gradients_per_update
        self._next = 0
        """The replica after the one that was dealt the last sample."""
        self._dealt: dict[int, int] = {}
        """Sample, in flight or waiting, to its replica."""
        self._fetched: dict[int, int] = {}
        """Replica that has samples to the version of its parameters."""
        self._old: dict[int, Tensor] = {}
        """Version, older than the newest, to its parameters."""
        self._gathered = torch.zeros_like(self._network.parameters.detach())
        """Sum of the gradients that wait for an update."""
        self._gathered_count = 0

    def propose(self, sample: int) -> Proposal:
        """See :class:`~nas_controller.policies.Policy`."""
        version = self._fetched.get(self._turn(), self._updates)
        parameters = self._old.get(version)
        old = None if parameters is None else (version, parameters)
        return self._draw(sample, attempt=0, count=1, old=old)[0]

    def proposed(self, sample: int, proposal: Proposal) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        super().proposed(sample, proposal)
        replica = self._turn()
        self._dealt[sample] = replica
        self._fetched.setdefault(replica, self._updates)
        self._next = (replica + 1) % self._replicas

    def observed(self, sample: int, reward: float) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        self._waiting.append(self._observation(sample, reward))
        replica = self._dealt[sample]
        batch = [seen for seen in self._waiting if self._dealt[seen.sample] == replica]
        if len(batch) < self._batch:
            return
        self._waiting = [seen for seen in self._waiting if self._dealt[seen.sample] != replica]
        for seen in batch:
            del self._dealt[seen.sample]
        del self._fetched[replica]
        self._update(batch)
        if replica in self._dealt.values():
            self._fetched[replica] = self._updates

    def lost(self, sample: int) -> None:
        """See :class:`~nas_controller.policies.Policy`; its replica fills the batch with a later one."""
        super().lost(sample)
        replica = self._dealt.pop(sample)
        if replica not in self._dealt.values():
            del self._fetched[replica]

    def _turn(self) -> int:
        """Return the replica that is dealt the next sample."""
        load = Counter(self._dealt.values())
        turns = (*range(self._next, self._replicas), *range(self._next))
        return next((replica for replica in turns if load[replica] < self._batch), self._next)

    def _update(self, batch: Sequence[Observation]) -> None:
        """Take a replica's gradient, and make an update where it completes one."""
        if math.isnan(self._baseline):
            self._baseline = sum(seen.reward for seen in batch) / len(batch)
        by_version: dict[int, list[Observation]] = {}
        for seen in batch:
            # What was drawn elsewhere, as in another experiment's log, is taken at the newest parameters.
            version = seen.proposal.version if seen.proposal.version in self._old else self._updates
            by_version.setdefault(version, []).append(seen)
        entropy = 0.0
        for version, rows in by_version.items():
            parameters = self._old.get(version, self._network.parameters).detach().requires_grad_()
            network = self._network.at(parameters)
            loss = self._tensor([]).sum()
            for decisions, group in by_decisions(self._space, rows).items():
                evaluation = network.evaluate(decisions, [seen.proposal.choices for seen in group])
                advantages = self._tensor([seen.reward - self._baseline for seen in group])
                loss = loss - (advantages @ evaluation.log_probabilities.sum(1)) / len(batch)
                entropy += sum(evaluation.mean_entropies()) / len(batch)
            self._gathered += torch.autograd.grad(loss, parameters)[0]
        self._entropy = entropy
        for seen in batch:
            self._baseline = self._decay * self._baseline + (1 - self._decay) * seen.reward
        self._gathered_count += 1
        if self._gathered_count == self._gradients_per_update:
            self._apply()

    def _apply(self) -> None:
        """Make one step of the optimiser along the gathered gradients' mean; keep the parameters still needed."""
        drawn = [*self._open.values(), *(seen.proposal for seen in self._waiting)]
        needed = {*self._fetched.values(), *(proposal.version for proposal in drawn)}
        old = {version: parameters for version, parameters in self._old.items() if version in needed}
        if self._updates in needed:
            old[self._updates] = self._network.parameters.detach().clone()
        self._old = old
        self._network.parameters.grad = self._gathered / self._gathered_count
        self._adam.step()
        self._updates += 1
        self._gathered = torch.zeros_like(self._gathered)
        self._gathered_count = 0

    def dump(self) -> dict[str, Tensor]:
        """See :class:`~nas_controller.policies.Policy`. Parameters are stored once a version, not once a replica."""
        old = list(self._old.values())
        return {
            **super().dump(),
            "baseline": torch.tensor([self._baseline], dtype=torch.float64),
            "next": torch.tensor([self._next]),
            "dealt": torch.tensor(list(self._dealt.items()), dtype=torch.int64).reshape(-1, 2),
            "fetched": torch.tensor(list(self._fetched.items()), dtype=torch.int64).reshape(-1, 2),
            "gathered": self._gathered.clone(),
            "gathered.count": torch.tensor([self._gathered_count]),
            "old.version": torch.tensor(list(self._old), dtype=torch.int64),
            "old.parameters": torch.stack(old) if old else self._gathered.new_zeros(0, len(self._gathered)),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        super().load(state)
        self._baseline = float(state["baseline"])
        self._next = int(state["next"])
        self._dealt = dict(state["dealt"].tolist())
        self._fetched = dict(state["fetched"].tolist())
        self._gathered = state["gathered"].clone()
        self._gathered_count = int(state["gathered.count"])
        self._old = dict(zip(state["old.version"].tolist(), state["old.parameters"].clone().unbind(), strict=True))
