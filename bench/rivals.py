"""A searcher to compare with that the product does not offer: local search."""

import random
from collections.abc import Iterator

from torch import Tensor

from nas_api.decisions import Categorical, Choices, Decision, counting
from nas_controller.policies import Proposal, Vitals


class LocalSearch:
    """Neighbours of the best, in random order, until one is better; at a local optimum it starts anew at random.

    A neighbour differs in one decision; what only then counts is drawn at random. Nothing is tried twice.
    """

    def __init__(self, seed: int, decisions: tuple[Decision, ...]) -> None:
        self._random = random.Random(f"local search {seed}")
        self._decisions = [decision for decision in decisions if isinstance(decision, Categorical)]
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
            choices = self._settled([self._random.randrange(len(each.options)) for each in self._decisions], None)
            if choices not in self._known:
                break
        return choices

    def _neighbours(self, centre: Choices) -> Iterator[Choices]:
        for step, decision in enumerate(self._decisions):
            for option in range(len(decision.options)):
                if option != centre[step]:
                    yield self._settled([*centre[:step], option, *centre[step + 1 :]], centre)

    def _settled(self, choices: list[int], origin: Choices | None) -> Choices:
        """Return choices with 0 where they do not count, and new draws where they count but did not in ``origin``."""
        before = counting(self._decisions, origin) if origin is not None else (True,) * len(choices)
        for step, decision in enumerate(self._decisions):
            if not counting(self._decisions, tuple(choices))[step]:
                choices[step] = 0
            elif not before[step]:
                choices[step] = self._random.randrange(len(decision.options))
        return tuple(choices)
