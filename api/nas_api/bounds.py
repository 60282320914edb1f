"""What may come in as a result: how large its numbers are, and what its words are made of. Pure.

These bounds hold where results come in and nowhere else: what an older version has let into a log stays readable.
Whatever is within them can be added up, drawn and written down, however many there are of it.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Annotated

from pydantic import AfterValidator, Field

from nas_api.harmless import harmless

LARGEST = 1e15
"""The size up to which a metric is one, and a time in seconds; a float32 holds its square."""
LARGEST_REWARD = 1e60
"""The size up to which a reward is one: the cube of the largest metric, with some penalties."""
LARGEST_COUNT = 2**63 - 1
"""The largest whole number that every program reads."""

Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Seconds = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]


def usable(metric: float) -> bool:
    """Return whether a metric is a number that can be worked with: neither NaN nor infinite, nor as good as that."""
    return abs(metric) <= LARGEST


def mean(values: Sequence[float]) -> float:
    """Return the mean of finite numbers, at least one, whatever their sum is."""
    try:
        return fmean(values)
    except OverflowError:
        return math.fsum(value / len(values) for value in values)


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation of at least two finite numbers; infinity where it is beyond all numbers."""
    try:
        return stdev(values)
    except OverflowError:
        return math.inf


def _one_line(longest: int) -> AfterValidator:
    return AfterValidator(lambda text: " ".join(harmless(text[: 2 * longest]).split())[:longest])


Name = Annotated[str, _one_line(100)]
"""What something calls itself: one line without control characters; what is too long is cut off."""
Place = Annotated[str, _one_line(500)]
"""Where to look, for people; likewise."""
Sentence = Annotated[str, _one_line(1000)]
"""What is wrong, for people; likewise."""
