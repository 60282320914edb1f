"""Uniform random search: the control that every policy must beat (paper section 4.2, figure 6)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from nas_api.decisions import Anchor, Choices, Decision, answer, counting
from nas_api.experiment import SearcherSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Proposal, Vitals
from nas_controller.policies.draws import Purpose, draw_count, uniforms

if TYPE_CHECKING:
    # Readers of a log fold it with this policy, and need not have torch.
    from torch import Tensor


class RandomPolicy:
    """Every option of a decision is equally likely and every skip connection a fair coin.

    Samples are independent, so one may come twice, as in any random search. There is no state at all.
    """

    def __init__(self, searcher: SearcherSpec, space: SearchSpace) -> None:
        self._seed = searcher.seed
        self._space = space

    def propose(self, sample: int) -> Proposal:
        """See :class:`~nas_controller.policies.Policy`."""
        decisions = self._space.decisions(sample)
        choices = uniform_choices(decisions, uniforms(self._seed, sample, Purpose.PROPOSE, 0, draw_count(decisions)))
        log_probability = 0.0
        for decision, counts in zip(decisions, counting(decisions, choices), strict=True):
            if isinstance(decision, Anchor):
                log_probability -= decision.index * math.log(2)
            elif counts:
                log_probability -= math.log(len(decision.options))
        return Proposal(choices, log_probability, version=0)

    def proposed(self, sample: int, proposal: Proposal) -> None:
        """Nothing to note: samples are independent."""

    def observed(self, sample: int, reward: float) -> None:
        """Nothing to learn."""

    def lost(self, sample: int) -> None:
        """Nothing to forget."""

    def vitals(self) -> Vitals:
        """See :class:`~nas_controller.policies.Policy`."""
        return Vitals(updates=0, entropy=None)

    def dump(self) -> dict[str, "Tensor"]:
        """Return the empty state."""
        return {}

    def load(self, state: dict[str, "Tensor"]) -> None:
        """Take over the empty state.

        Raises:
            ValueError: the state is another policy's.
        """
        if state:
            raise ValueError(f"random search has no state, but the snapshot holds {sorted(state)}")


def uniform_choices(
    decisions: Sequence[Decision], numbers: Iterable[float], given: Mapping[int, int] | None = None
) -> Choices:
    """Choose each decision uniformly; one that does not count is answered with 0.

    Args:
        decisions: what is asked for.
        numbers: uniform in [0, 1); ``draw_count(decisions)`` of them are enough, whatever is chosen.
        given: choices that are fixed, by step; they matter only where their decisions count.
    """
    given = given or {}
    left = iter(numbers)

    def choose(step: int, decision: Decision) -> int:
        if step in given:
            return given[step]
        if isinstance(decision, Anchor):
            # Up to 63 bits of a mask come from as many coins, an option from one number.
            return sum((next(left) < 0.5) << earlier for earlier in range(decision.index))
        return int(next(left) * len(decision.options))

    return answer(decisions, choose)
