"""Counter-based randomness: every draw is a function of (seed, sample, purpose, counter).

There is no generator whose state would have to be saved, replayed or shared: the same four values give the
same numbers in any process, in any order of calls.
"""

from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from nas_api.decisions import Anchor, Decision


class Purpose(StrEnum):
    """What draws are for. Draws of different purposes are independent; names must never change."""

    PROPOSE = "propose"
    INITIALISE = "initialise"
    CONTROL = "control"
    IMAGINE = "imagine"
    DRAFT = "draft"
    MUTATE = "mutate"


def uniforms(seed: int, sample: int, purpose: Purpose, counter: int, size: int) -> NDArray[np.float64]:
    """Return ``size`` independent numbers, uniform in [0, 1) with 53 bits each.

    Philox is keyed by a hash of the four values. Its raw output is used, which numpy promises never to
    change, rather than a distribution's method, which numpy may improve.
    """
    name = f"{seed}/{sample}/{purpose}/{counter}".encode()
    key = int.from_bytes(blake2b(name, digest_size=16).digest(), "little")
    raw = np.random.Philox(key=key).random_raw(size)
    return np.asarray(raw >> np.uint64(11), dtype=np.float64) * 2.0**-53


def draw_count(decisions: Sequence[Decision]) -> int:
    """Return the number of elementary draws in a sample: one for each option, and one for each skip connection.

    So many numbers are enough for a sample, whatever is chosen.
    """
    return sum(decision.index if isinstance(decision, Anchor) else 1 for decision in decisions)
