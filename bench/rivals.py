"""A searcher to compare with that the product does not offer: local search."""

import random
from collections.abc import Iterator

from torch import Tensor

from nas_api.decisions import Anchor, Choices, Decision, answer, counting
from nas_controller.policies import Proposal, Vitals


class LocalSearch:
    """Neighbours of the best, in random order, until one is better; at a local optimum it starts anew at random.

    A neighbour differs in one decision or one skip connection; what only then counts is drawn at random. Nothing is
    tried twice.
    """

    def __init__(self, seed: int, decisions: tuple[Decision, ...]) -> None:
        self._random = random.Random(f"local search {seed}")
        self._decisions = decisions
        self._best: tuple[float, Choices] | None = None
        self._open: dict[int, Choices] = {}
        self._known: set[Choices] = set()

    def propose(self, sample: int) -> Proposal:
        """See :class:`~nas_controller.policies.Policy`; the draws are from a generator, as nothing is replayed here."""
        if self._best is not None:
            neighbours = [each for each in self._neighbours(self._best[1]) if each not in self._known]
            if neighbours:
                return Proposal(self._random.choice(neighbours), 0.0, 0)
            self._best = None
        return Proposal(self._anywhere(), 0.0, 0)

    def proposed(self, sample: int, proposal: Proposal) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        self._open[sample] = proposal.choices
        self._known.add(proposal.choices)

    def observed(self, sample: int, reward: float) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        choices = self._open.pop(sample)
        if self._best is None or reward > self._best[0]:
            self._best = reward, choices

    def lost(self, sample: int) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        del self._open[sample]

    def vitals(self) -> Vitals:
        """See :class:`~nas_controller.policies.Policy`."""
        return Vitals(updates=0, entropy=None)

    def dump(self) -> dict[str, Tensor]:
        """Refuse: a benchmark takes no snapshot."""
        raise NotImplementedError("local search has no snapshots")

    def load(self, state: dict[str, Tensor]) -> None:
        """Refuse: a benchmark takes no snapshot."""
        raise NotImplementedError("local search has no snapshots")

    def _anywhere(self) -> Choices:
        for _ in range(1000):  # in a small space everything may be known
            choices = answer(self._decisions, self._drawn)
            if choices not in self._known:
                break
        return choices

    def _neighbours(self, centre: Choices) -> Iterator[Choices]:
        before = counting(self._decisions, centre)
        for step, decision in enumerate(self._decisions):
            if not before[step]:
                continue
            if isinstance(decision, Anchor):
                others = [centre[step] ^ 1 << earlier for earlier in range(decision.index)]
            else:
                others = [option for option in range(len(decision.options)) if option != centre[step]]
            for other in others:
                given = {place: choice for place, choice in enumerate(centre) if before[place]} | {step: other}
                yield self._completed(given)

    def _completed(self, given: dict[int, int]) -> Choices:
        """Answer what is given, by step, so; what counts only now is drawn at random."""
        return answer(
            self._decisions, lambda step, decision: given[step] if step in given else self._drawn(step, decision)
        )

    def _drawn(self, step: int, decision: Decision) -> int:
        return self._random.randrange(1 << decision.index if isinstance(decision, Anchor) else len(decision.options))
