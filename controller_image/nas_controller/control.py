"""The random arm beside the policy (``searcher.control``): who is drawn how, and what the difference is."""

import math
from dataclasses import dataclass, field

from nas_api.experiment import SearcherSpec
from nas_controller.policies.draws import Purpose, uniforms
from nas_log.records import Arm


def arm_of(searcher: SearcherSpec, sample: int) -> Arm:
    """Return who draws a sample; follows from the seed and the sample's number alone."""
    if searcher.control is None:
        return "policy"
    draw = float(uniforms(searcher.seed, sample, Purpose.CONTROL, 0, 1)[0])
    return "random" if draw < float(searcher.control.random) else "policy"


@dataclass
class ArmTotal:
    """What one arm has earned."""

    observed: int = 0
    reward: float = 0.0
    """Sum over its observed samples."""

    @property
    def mean(self) -> float | None:
        """Its mean reward; None before the first."""
        return self.reward / self.observed if self.observed else None


@dataclass
class Comparison:
    """The arms against each other over equal counts, in memory that does not grow.

    Each sample of the rarer arm is paired with the newest one of the other arm that has no partner yet: both of a
    pair are of the same stage of the search (and of its depth schedule), and each sample is in one pair at most. The
    difference is the mean over all pairs, so it tells what the policy was ahead in the course of the search.
    """

    policy: ArmTotal = field(default_factory=ArmTotal)
    random: ArmTotal = field(default_factory=ArmTotal)
    waiting: Arm | None = None
    """Whose newest sample has no partner yet."""
    waiting_reward: float = 0.0
    pairs: int = 0
    difference: float = 0.0
    """Mean of the policy's reward minus the random arm's over the pairs."""
    squares: float = 0.0
    """Sum of squared deviations of the pairs' differences from their mean (Welford's)."""

    def add(self, arm: Arm, reward: float) -> None:
        """Take one observed sample, in the log's order."""
        total = self.policy if arm == "policy" else self.random
        total.observed += 1
        total.reward += reward
        if self.waiting is None or self.waiting == arm:
            self.waiting, self.waiting_reward = arm, reward
            return
        difference = reward - self.waiting_reward
        if arm == "random":
            difference = -difference
        self.waiting = None
        self.pairs += 1
        deviation = difference - self.difference
        self.difference += deviation / self.pairs
        self.squares += deviation * (difference - self.difference)

    @property
    def standard_error(self) -> float | None:
        """Standard error of ``difference``; None below two pairs."""
        if self.pairs < 2:
            return None
        # What is not finite is of rewards at the end of all numbers.
        return math.sqrt(self.squares / (self.pairs - 1) / self.pairs) if self.squares >= 0 else math.nan
