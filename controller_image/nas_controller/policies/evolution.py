"""Regularised evolution (Real et al., *Regularized Evolution for Image Classifier Architecture Search*, 2018).

The population is the newest ``population`` observed samples: the oldest dies, however good it is, so that a reward
that was luck is not for ever. A child is a copy of the best of ``tournament`` members, drawn without replacement, in
which one decision has another value, or one skip connection is flipped. Samples are uniform until the population is
full. Children arrive in any order; the order in which they are observed is their age.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nas_api.decisions import Anchor, Choices, Decision, counting
from nas_api.experiment import EvolutionSpec, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Proposal, Vitals
from nas_controller.policies.draws import Purpose, draw_count, uniforms
from nas_controller.policies.learner import pack, unpack
from nas_controller.policies.random import uniform_choices


@dataclass(frozen=True)
class Member:
    """One of the population."""

    sample: int
    choices: Choices
    reward: float


class EvolutionPolicy:
    """Regularised evolution.

    A proposal's log-probability is 0, for none is known; its version is the number of samples observed before it.
    """

    def __init__(self, searcher: SearcherSpec, space: SearchSpace) -> None:
        spec = searcher.evolution or EvolutionSpec()
        self._seed = searcher.seed
        self._space = space
        self._tournament = min(spec.tournament, spec.population)
        self._members: deque[Member] = deque(maxlen=spec.population)
        self._open: dict[int, Proposal] = {}
        self._observed = 0

    def propose(self, sample: int) -> Proposal:
        """See :class:`~nas_controller.policies.Policy`."""
        decisions = self._space.decisions(sample)
        size = self._tournament + 2 + draw_count(decisions)
        numbers = uniforms(self._seed, sample, Purpose.PROPOSE, 0, size).tolist()
        fresh = numbers[self._tournament + 2 :]
        if len(self._members) < (self._members.maxlen or 0):
            return Proposal(uniform_choices(decisions, fresh), 0.0, self._observed)
        parent = self._parent(numbers[: self._tournament])
        given = _shared(self._space.decisions(parent.sample), parent.choices, decisions)
        # What the parent does not have, in a deeper space, is drawn.
        whole = uniform_choices(decisions, fresh, given)
        which, value = numbers[self._tournament : self._tournament + 2]
        return Proposal(_mutant(decisions, whole, which, value, fresh), 0.0, self._observed)

    def _parent(self, numbers: Sequence[float]) -> Member:
        """Return the best of as many members as there are numbers; of equals the youngest."""
        left = list(range(len(self._members)))
        drawn = sorted(left.pop(int(number * len(left))) for number in numbers)
        return self._members[max(drawn, key=lambda place: (self._members[place].reward, place))]

    def proposed(self, sample: int, proposal: Proposal) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        self._open[sample] = proposal

    def observed(self, sample: int, reward: float) -> None:
        """See :class:`~nas_controller.policies.Policy`; one that is not finite wins no tournament."""
        choices = self._open.pop(sample).choices
        self._members.append(Member(sample, choices, reward if math.isfinite(reward) else -math.inf))
        self._observed += 1

    def lost(self, sample: int) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        del self._open[sample]

    def vitals(self) -> Vitals:
        """See :class:`~nas_controller.policies.Policy`: each observed sample changes the population."""
        return Vitals(updates=self._observed, entropy=None)

    def dump(self) -> dict[str, Tensor]:
        """See :class:`~nas_controller.policies.Policy`."""
        return {
            "observed": torch.tensor([self._observed]),
            **pack("open", [(sample, proposal, math.nan) for sample, proposal in self._open.items()]),
            **pack("member", [(each.sample, Proposal(each.choices, 0.0, 0), each.reward) for each in self._members]),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        self._observed = int(state["observed"])
        self._open = {sample: proposal for sample, proposal, _ in unpack("open", state)}
        members = [Member(sample, proposal.choices, reward) for sample, proposal, reward in unpack("member", state)]
        self._members = deque(members, self._members.maxlen)


def _shared(theirs: Sequence[Decision], choices: Choices, mine: Sequence[Decision]) -> dict[int, int]:
    """Return a parent's choices at the steps that ask a child the same."""
    return {
        step: choice
        for step, (one, choice, other) in enumerate(zip(theirs, choices, mine, strict=False))
        if one == other
    }


def _mutant(
    decisions: Sequence[Decision], choices: Choices, which: float, value: float, fresh: Sequence[float]
) -> Choices:
    """Return choices with one change: a decision that counts gets another value, or a skip connection is flipped.

    A decision that counts only now is drawn from ``fresh``; one that no longer counts becomes 0. What has no
    alternative is never picked; where nothing has, the choices stay.

    Args:
        decisions: what is asked for.
        choices: one for each.
        which: decides, uniformly among decisions, which one changes; in [0, 1).
        value: decides what it becomes; in [0, 1).
        fresh: ``draw_count(decisions)`` numbers for decisions that begin to count.
    """
    before = counting(decisions, choices)
    places = [
        step
        for step, (decision, counts) in enumerate(zip(decisions, before, strict=True))
        if counts and (decision.index > 0 if isinstance(decision, Anchor) else len(decision.options) > 1)
    ]
    if not places:
        return choices
    place = places[int(which * len(places))]
    decision = decisions[place]
    given = {step: choice for step, choice in enumerate(choices) if before[step]}
    if isinstance(decision, Anchor):
        given[place] ^= 1 << int(value * decision.index)
    else:
        other = int(value * (len(decision.options) - 1))
        given[place] = other + (other >= choices[place])
    return uniform_choices(decisions, fresh, given)
