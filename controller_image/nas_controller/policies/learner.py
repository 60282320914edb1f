"""What the learning policies share: samples in flight, batches in log order, the optimiser, snapshots.

A learner waits until ``batch`` samples have been observed and then makes one update of them. The order of the
records alone decides which samples meet in a batch and which proposals an update follows.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import torch
from torch import Tensor

from nas_api.bounds import LARGEST
from nas_api.decisions import Choices, Decision
from nas_api.search_space import SearchSpace
from nas_controller.policies import Proposal, Vitals
from nas_controller.policies.draws import Purpose, draw_count, uniforms
from nas_controller.policies.network import Network, vocabulary


@dataclass(frozen=True)
class Observation:
    """One sample with the reward that it, and no other, has earned."""

    sample: int
    proposal: Proposal
    reward: float


class Learner(ABC):
    """The LSTM controller with whatever ``_update`` makes of a batch.

    The space's first sample must show every kind of decision that will ever come. Tests compute in float64.
    """

    def __init__(self, seed: int, space: SearchSpace, learning_rate: float, batch: int, dtype: torch.dtype) -> None:
        self._seed = seed
        self._space = space
        self._batch = batch
        self._network = Network(vocabulary(space.decisions(0)), seed, dtype)
        self._adam = torch.optim.Adam([self._network.parameters], lr=learning_rate)
        self._updates = 0
        self._entropy = math.nan
        self._worst = math.inf
        self._open: dict[int, Proposal] = {}
        self._waiting: list[Observation] = []

    @abstractmethod
    def _update(self, batch: Sequence[Observation]) -> None:
        """Learn from a full batch, in log order. The learner counts updates itself."""

    def propose(self, sample: int) -> Proposal:
        """See :class:`~nas_controller.policies.Policy`."""
        return self._draw(sample, attempt=0, count=1)[0]

    def proposed(self, sample: int, proposal: Proposal) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        self._open[sample] = proposal

    def observed(self, sample: int, reward: float) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        self._waiting.append(self._observation(sample, reward))
        if len(self._waiting) == self._batch:
            self._update(self._waiting)
            self._updates += 1
            self._waiting = []

    def _observation(self, sample: int, reward: float) -> Observation:
        """Take a sample out of those in flight.

        A reward that is not finite counts as the lowest so far: one diverged child teaches as much as a bad
        one, and never turns the weights into NaN.
        """
        if math.isfinite(reward):
            self._worst = min(self._worst, reward)
        else:
            reward = self._worst if math.isfinite(self._worst) else 0.0
        return Observation(sample, self._open.pop(sample), reward)

    def lost(self, sample: int) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        del self._open[sample]

    def vitals(self) -> Vitals:
        """See :class:`~nas_controller.policies.Policy`. Each skip connection counts as a decision here."""
        return Vitals(self._updates, None if math.isnan(self._entropy) else self._entropy)

    def _draw(
        self,
        sample: int,
        attempt: int,
        count: int,
        temperatures: Sequence[float] | None = None,
        old: tuple[int, Tensor] | None = None,
    ) -> list[Proposal]:
        """Return ``count`` draws for a sample, other ones for each attempt.

        ``temperatures``, one a draw, is explained at ``Network.sample``; ``old`` is a version with its parameters, to
        draw under them instead of the newest.
        """
        decisions = self._space.decisions(sample)
        width = draw_count(decisions)
        numbers = uniforms(self._seed, sample, Purpose.PROPOSE, attempt, count * width).reshape(count, width)
        version, network = (self._updates, self._network) if old is None else (old[0], self._network.at(old[1]))
        drawn = network.sample(decisions, numbers, temperatures)
        return [
            Proposal(choices, log_probability, version)
            for choices, log_probability in zip(drawn.choices, drawn.log_probabilities, strict=True)
        ]

    def _tensor(self, values: Sequence[float]) -> Tensor:
        # One infinite gradient would end all learning: the largest reward's cube is more than a float32 holds.
        within = [max(-LARGEST, min(LARGEST, value)) for value in values]
        return torch.tensor(within, dtype=self._network.parameters.dtype)

    def _step(self, loss: Tensor) -> None:
        """Make one step of the optimiser down a loss."""
        self._adam.zero_grad()
        torch.autograd.backward(loss)
        self._adam.step()

    def dump(self) -> dict[str, Tensor]:
        """See :class:`~nas_controller.policies.Policy`."""
        parameters = self._network.parameters
        moments = self._adam.state.get(parameters) or {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameters),
            "exp_avg_sq": torch.zeros_like(parameters),
        }
        return {
            "parameters": parameters.detach().clone(),
            **{f"adam.{name}": moment.detach().clone() for name, moment in moments.items()},
            "updates": torch.tensor([self._updates]),
            "entropy": torch.tensor([self._entropy], dtype=torch.float64),
            "worst": torch.tensor([self._worst], dtype=torch.float64),
            **pack("open", [(sample, proposal, math.nan) for sample, proposal in self._open.items()]),
            **pack("waiting", [(seen.sample, seen.proposal, seen.reward) for seen in self._waiting]),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        with torch.no_grad():
            self._network.parameters.copy_(state["parameters"])
        self._adam.state[self._network.parameters] = {
            name: state[f"adam.{name}"].clone() for name in ("step", "exp_avg", "exp_avg_sq")
        }
        self._updates = int(state["updates"])
        self._entropy = float(state["entropy"])
        self._worst = float(state["worst"])
        self._open = {sample: proposal for sample, proposal, _ in unpack("open", state)}
        self._waiting = [Observation(*row) for row in unpack("waiting", state)]


def by_decisions(
    space: SearchSpace, observations: Sequence[Observation]
) -> dict[tuple[Decision, ...], list[Observation]]:
    """Group observations that can be evaluated together, in the order in which each group first appears."""
    groups: dict[tuple[Decision, ...], list[Observation]] = {}
    for observation in observations:
        groups.setdefault(space.decisions(observation.sample), []).append(observation)
    return groups


def pack(name: str, rows: Sequence[tuple[int, Proposal, float]]) -> dict[str, Tensor]:
    """Return rows of (sample, proposal, reward) as tensors named ``name.*``; choices of any length."""
    choices: list[Choices] = [proposal.choices for _, proposal, _ in rows]
    return {
        f"{name}.sample": torch.tensor([sample for sample, _, _ in rows], dtype=torch.int64),
        f"{name}.version": torch.tensor([proposal.version for _, proposal, _ in rows], dtype=torch.int64),
        f"{name}.length": torch.tensor([len(row) for row in choices], dtype=torch.int64),
        f"{name}.choices": torch.tensor([choice for row in choices for choice in row], dtype=torch.int64),
        f"{name}.log_probability": torch.tensor(
            [proposal.log_probability for _, proposal, _ in rows], dtype=torch.float64
        ),
        f"{name}.reward": torch.tensor([reward for _, _, reward in rows], dtype=torch.float64),
    }


def unpack(name: str, state: dict[str, Tensor]) -> list[tuple[int, Proposal, float]]:
    """Return the rows that ``pack`` was given."""
    columns = [state[f"{name}.{key}"].tolist() for key in ("sample", "version", "length", "log_probability", "reward")]
    choices = iter(state[f"{name}.choices"].tolist())
    return [
        (sample, Proposal(tuple(islice(choices, length)), log_probability, version), reward)
        for sample, version, length, log_probability, reward in zip(*columns, strict=True)
    ]


def fingerprint(choices: Choices) -> int:
    """Return 64 bits that stand for the choices: a rare collision costs one needless redraw."""
    digest = blake2b(",".join(map(str, choices)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
