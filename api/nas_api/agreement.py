"""Does one ranking agree with another? Kendall's tau-b with an interval, for the final training's check of the search.

The search ranks by a cheap reward, the final training by a long one; tau says how far the first foretells the second
(1: the same order, 0: none, -1: reversed).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

# Standard deviations of a two-sided 95 % interval.
_TWO_SIDED_95 = 1.959964
# Variance of Fisher's z of tau is 0.437 / (n - 4) (Fieller, Hartley and Pearson, Biometrika 1957).
_VARIANCE = 0.437
_FEWEST = 5


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b and its 95 % interval; None for the interval below five items."""

    tau: float
    low: float | None = None
    high: float | None = None


def kendall(left: Sequence[float], right: Sequence[float]) -> Agreement | None:
    """Return how far two scores of the same items order them alike, or None where one of them orders nothing.

    Tau-b counts pairs: concordant minus discordant, over the geometric mean of the pairs that are not tied on the left
    and on the right. Its interval is Fieller's, through Fisher's z; a tau at the very end counts for it as half a pair
    less, so that five items in perfect order do not pass for certainty.

    Args:
        left: one number an item.
        right: as many.

    Raises:
        ValueError: the numbers of items differ.
    """
    if len(left) != len(right):
        raise ValueError(f"{len(left)} items on the left, {len(right)} on the right")
    score = untied_left = untied_right = 0
    pairs = 0
    for one, other in combinations(range(len(left)), 2):
        a, b = _sign(left[one] - left[other]), _sign(right[one] - right[other])
        score += a * b
        untied_left += abs(a)
        untied_right += abs(b)
        pairs += 1
    if untied_left == 0 or untied_right == 0:
        return None
    tau = score / math.sqrt(untied_left * untied_right)
    if len(left) < _FEWEST:
        return Agreement(tau)
    inner = max(-1 + 1 / pairs, min(1 - 1 / pairs, tau))
    z, error = math.atanh(inner), math.sqrt(_VARIANCE / (len(left) - 4))
    low, high = math.tanh(z - _TWO_SIDED_95 * error), math.tanh(z + _TWO_SIDED_95 * error)
    return Agreement(tau, min(low, tau), max(high, tau))


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
