"""The critic: a Gaussian process over decisions that imagines the reward of samples that nobody has trained.

Choices become binary features: one for each option of a decision, for each step along options that are numbers, and
for each skip connection. Two samples resemble each other as

    k(x, y) = exp(-sum_f s_f [x_f != y_f]),

so that each decision, or each kind of decision, has a length-scale of its own. A decision that does not count, and
one that a shallower network does not have, has no feature set: it is the same for all samples without it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas_api.decisions import Anchor, Categorical, Choices, Decision
from nas_controller.policies.draws import draw_count

MOST_SCALES = 40
"""With more elementary draws in a sample than this, length-scales belong to kinds of decisions, not to steps."""
PRIOR_DISTANCE = 2.4
"""What all decisions together weigh before anything is known: samples with nothing in common correlate by exp(-2.4)."""
PRIOR_NOISE = 0.1
"""Variance of the noise before anything is known; the rewards' normal scores have variance 1."""
PRIOR_SPREAD = 1.0
"""Standard deviation, in nats, of the log-normal priors."""
APART = 0.5
ALONG = 1.5
"""Two words are 1 apart. Two numbers are ``APART``, since numbers may be mere labels, and more by how much of the way
from the first option to the last is between them: ``ALONG`` for all of it."""
FIT_STEPS = 25
FIT_RATE = 0.1
"""Of Adam, on the logarithms; each fit goes on from where the one before came to."""


@dataclass(frozen=True)
class Encoding:
    """How the choices of a space become features; ``features`` of them, each of one length-scale's group."""

    decisions: tuple[Decision, ...]
    """Those of the longest sample; a shorter one's are their beginning."""
    step: NDArray[np.int64]
    """The step whose choice decides each feature."""
    value: NDArray[np.int64]
    """Option, threshold or bit: what the choice is compared with."""
    rule: NDArray[np.int64]
    """0: set if the choice is that option; 1: if it is beyond that option; 2: if that bit of the mask is set."""
    group: Tensor
    """Which length-scale each feature takes."""
    share: Tensor
    """The part of its group's weight that a difference in this feature costs."""
    groups: int
    """Number of length-scales."""


@lru_cache(maxsize=64)
def encoding(first: tuple[Decision, ...], longest: tuple[Decision, ...]) -> Encoding:
    """Return the encoding of a space.

    Args:
        first: the decisions of the space's first sample, which fix the number of length-scales.
        longest: those of the longest sample to encode; steps beyond ``first`` share the length-scales of the last
            step of their kind there.
    """
    few = draw_count(first) <= MOST_SCALES
    groups: dict[tuple[str, int], int] = {}
    rows: list[tuple[int, int, int, int, float]] = []
    last: dict[str, int] = {}
    for step, decision in enumerate(longest):
        kind = "" if isinstance(decision, Anchor) else decision.kind
        if step < len(first):
            last[kind] = step if few and kind else 0
        group = groups.setdefault((kind, last[kind]), len(groups))
        if isinstance(decision, Anchor):
            rows += [(step, bit, 2, group, 1.0) for bit in range(decision.index)]
            continue
        count = len(decision.options)
        if count > 2 and all(map(_is_number, decision.options)):
            rows += [(step, option, 1, group, ALONG / (count - 1)) for option in range(count - 1)]
            rows += [(step, option, 0, group, APART / 2) for option in range(count)]
        else:
            # Where two choices differ, two of these features do.
            rows += [(step, option, 0, group, 1 / 2) for option in range(count)]
    table = np.array([row[:4] for row in rows], dtype=np.int64).reshape(-1, 4)
    share = torch.tensor([row[4] for row in rows], dtype=torch.float64)
    return Encoding(longest, table[:, 0], table[:, 1], table[:, 2], torch.tensor(table[:, 3]), share, len(groups))


def features(encoding: Encoding, choices: Sequence[Choices]) -> Tensor:
    """Return the features, (samples, features) of zeros and ones in float64."""
    table = np.full((len(choices), len(encoding.decisions)), -1, dtype=np.int64)
    for row, answers in zip(table, choices, strict=True):
        row[: len(answers)] = answers
    table[~counted(encoding.decisions, table)] = -1
    chosen = table[:, encoding.step]
    value, rule = encoding.value, encoding.rule
    bits = np.maximum(chosen, 0) >> np.where(rule == 2, value, 0) & 1
    out = np.where(rule == 0, chosen == value, np.where(rule == 1, chosen > value, bits == 1))
    return torch.from_numpy(out.astype(np.float64))


def counted(decisions: tuple[Decision, ...], table: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each decision counts, (samples, steps), given the choices in a table of that shape."""
    out = np.ones(table.shape, dtype=bool)
    for step, decision in enumerate(decisions):
        when = decision.when if isinstance(decision, Categorical) else None
        if when is not None:
            out[:, step] = out[:, when.step] & np.isin(table[:, when.step], list(when.choices))
    return out


def normal_scores(values: NDArray[np.float64], among: NDArray[np.float64]) -> Tensor:
    """Return the normal quantile of each value's rank in ``among``, which holds it; equals share their mean rank.

    Neither the rewards' scale nor their skew nor an outlier matters.
    """
    ordered = np.sort(among)
    below = np.searchsorted(ordered, values, side="left")
    upto = np.searchsorted(ordered, values, side="right")
    ranks = (below + upto) / (2 * len(ordered))
    scores: Tensor = torch.special.ndtri(torch.from_numpy(ranks))
    return scores


class Critic:
    """A Gaussian process with zero mean and unit variance. Its hyperparameters are its whole state.

    Args:
        first: the decisions of the space's first sample.
    """

    def __init__(self, first: tuple[Decision, ...]) -> None:
        weight = PRIOR_DISTANCE / max(1, draw_count(first))
        self._prior = torch.full((encoding(first, first).groups + 1,), math.log(weight), dtype=torch.float64)
        self._prior[-1] = math.log(PRIOR_NOISE)
        self.parameters = self._prior.clone()
        """Logarithms of the length-scales' weights, then of the noise's variance."""

    def fit(self, encoding: Encoding, samples: Tensor, targets: Tensor) -> None:
        """Move the hyperparameters towards the largest marginal likelihood under their prior.

        Args:
            encoding: of the samples.
            samples: features, (samples, features).
            targets: (samples,), of about zero mean and unit variance.
        """
        parameters = self.parameters.requires_grad_()
        adam = torch.optim.Adam([parameters], lr=FIT_RATE)
        for _ in range(FIT_STEPS):
            factor = torch.linalg.cholesky(self._covariance(encoding, samples))
            white = torch.linalg.solve_triangular(factor, targets.unsqueeze(1), upper=False)
            likelihood = -white.square().sum() / 2 - factor.diagonal().log().sum()
            prior = -((parameters - self._prior) / PRIOR_SPREAD).square().sum() / 2
            adam.zero_grad()
            torch.autograd.backward(-(likelihood + prior))
            adam.step()
        self.parameters = parameters.detach()

    @torch.no_grad()
    def imagine(
        self, encoding: Encoding, samples: Tensor, targets: Tensor, pending: Tensor, asked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and the variance of noise-free targets, (asked,) each.

        Args:
            encoding: of all that follows.
            samples: features of observed samples.
            targets: theirs.
            pending: features of samples in flight. They are taken to come out as expected: they leave the mean as
                it is and lower the variance around them.
            asked: features of what is asked for.
        """
        known = torch.cat([samples, pending])
        factor = torch.linalg.cholesky(self._covariance(encoding, known))
        # That a pending sample comes out as expected is a zero here.
        padded = torch.cat([targets, targets.new_zeros(len(pending))])
        observed = factor[: len(samples), : len(samples)]
        padded[: len(samples)] = torch.linalg.solve_triangular(observed, targets.unsqueeze(1), upper=False).squeeze(1)
        cross = torch.linalg.solve_triangular(factor, self._kernel(encoding, known, asked), upper=False)
        return padded @ cross, (1 - cross.square().sum(0)).clamp(min=1e-9)

    def _kernel(self, encoding: Encoding, one: Tensor, other: Tensor) -> Tensor:
        weights = self.parameters[:-1].exp()[encoding.group] * encoding.share
        # Of binary features the squared distance is the number of differences.
        distance = (one * weights).sum(1, keepdim=True) + other @ weights - 2 * (one * weights) @ other.T
        return torch.exp(-distance)

    def _covariance(self, encoding: Encoding, samples: Tensor) -> Tensor:
        noise = self.parameters[-1].exp() + 1e-6
        return self._kernel(encoding, samples, samples) + noise * torch.eye(len(samples), dtype=torch.float64)


def _is_number(option: str) -> bool:
    try:
        return math.isfinite(float(option))
    except ValueError:  # a word: its options have no order
        return False
