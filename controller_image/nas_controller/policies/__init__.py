"""Policies: what samples architectures and learns from their rewards. Adding one is a module and a line here.

A policy is a deterministic state machine. Its state changes only through ``proposed``, ``observed`` and
``lost``, which the log replays in order; every random draw is a function of (seed, sample, purpose), so no
generator state exists; and no tensor operation's shape depends on anything but that order, so replay is
bit for bit on one machine.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nas_api.decisions import Choices

if TYPE_CHECKING:
    # Readers of a log import this package, and need not wait for torch.
    from torch import Tensor


@dataclass(frozen=True)
class Proposal:
    """One drawn architecture.

    ``log_probability`` is the sum over all decisions that count, skips included, under the parameters of ``version``
    (number of updates); 0 from a policy that knows no probabilities, NaN where another search has drawn it.
    """

    choices: Choices
    log_probability: float
    version: int


@dataclass(frozen=True)
class Vitals:
    """Signs of a policy's health: updates so far and mean entropy of a decision in nats, once known."""

    updates: int
    entropy: float | None


class Policy(Protocol):
    """What the search needs of a policy."""

    def propose(self, sample: int) -> Proposal:
        """Draw the sample-th architecture. Changes no state: only ``proposed`` does."""

    def proposed(self, sample: int, proposal: Proposal) -> None:
        """Take note of a proposal that is in the log."""

    def observed(self, sample: int, reward: float) -> None:
        """Learn from a sample's reward; each sample is observed or lost once, in any order."""

    def lost(self, sample: int) -> None:
        """Forget a sample that will have no reward."""

    def vitals(self) -> Vitals:
        """Return signs of health; costs next to nothing."""

    def dump(self) -> dict[str, "Tensor"]:
        """Return the whole state as named tensors, for a snapshot."""

    def load(self, state: dict[str, "Tensor"]) -> None:
        """Take over a state from ``dump``; afterwards both behave alike, bit for bit."""
