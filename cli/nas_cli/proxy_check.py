"""``nas proxy-check``: how noisy is the reward, and what does that cost the search? A few architectures, each repeated.

The architectures are drawn at random and trained as the search would train them, each several times with other seeds.
What differs between trainings of one architecture is noise; what is left of the differences between architectures is
what a search can find.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nas_api.child import StoreLocation
from nas_api.experiment import Empty, NASExperiment, SearcherSpec
from nas_api.search_space import SearchSpace
from nas_cli import local_run
from nas_cli.errors import Refusal
from nas_cli.experiment_store import read_samples
from nas_controller.policies import Proposal
from nas_controller.policies.random import RandomPolicy
from nas_controller.state import MakePolicy
from nas_log.reader import Sample
from nas_store import open_store

_NORMAL = statistics.NormalDist()
# What is asked of a search: one of the best 1 % of the space.
_TOP = 0.01


@dataclass(frozen=True)
class Noise:
    """A one-way analysis of variance of rewards: architectures against repeats."""

    architectures: int
    trainings: int
    mean: float
    noise: float
    """Standard deviation between trainings of one architecture."""
    signal: float
    """Standard deviation between architectures, without the noise; 0 where the noise explains all."""

    @property
    def reliability(self) -> float:
        """Share of a single reward's variance that is the architecture's, from 0 to 1."""
        total = self.signal**2 + self.noise**2
        return self.signal**2 / total if total else 0.0

    def worth(self, samples: int) -> float:
        """Return how many samples without noise are worth as much as these, for a search at random.

        The best of n normal rewards lies about z(n) deviations above the mean (Blom); of that, noise leaves the
        square root of the reliability in the architecture itself.
        """
        quantile = _NORMAL.cdf(math.sqrt(self.reliability) * _best_of(samples))
        # Blom's formula, solved for n.
        return max(1.0, (0.375 + 0.25 * quantile) / (1 - quantile))

    def needed(self) -> int | None:
        """Return how many samples a search at random needs to expect one of the best 1 %; None: no number is enough."""
        if not self.reliability:
            return None
        quantile = _NORMAL.cdf(_NORMAL.inv_cdf(1 - _TOP) / math.sqrt(self.reliability))
        return math.ceil((0.375 + 0.25 * quantile) / (1 - quantile)) if quantile < 1 else None


def _best_of(samples: int) -> float:
    return _NORMAL.inv_cdf((samples - 0.375) / (samples + 0.25)) if samples > 1 else 0.0


def noise(groups: Sequence[Sequence[float]]) -> Noise | None:
    """Return the analysis of rewards by architecture, no group empty; None where nothing is repeated or compared."""
    count = sum(map(len, groups))
    if len(groups) < 2 or count == len(groups):
        return None
    mean = statistics.fmean(reward for group in groups for reward in group)
    means = [statistics.fmean(group) for group in groups]
    within = sum((reward - centre) ** 2 for group, centre in zip(groups, means, strict=True) for reward in group)
    between = sum(len(group) * (centre - mean) ** 2 for group, centre in zip(groups, means, strict=True))
    within_square = within / (count - len(groups))
    # Of unequal groups, where a training was lost, this is their size that the formula wants.
    size = (count - sum(len(group) ** 2 for group in groups) / count) / (len(groups) - 1)
    signal_square = max(0.0, (between / (len(groups) - 1) - within_square) / size)
    return Noise(len(groups), count, mean, math.sqrt(within_square), math.sqrt(signal_square))


class _Repeating(RandomPolicy):
    """Random architectures, the same few again and again."""

    def __init__(self, searcher: SearcherSpec, space: SearchSpace, architectures: int) -> None:
        super().__init__(searcher, space)
        self._architectures = architectures

    def propose(self, sample: int) -> Proposal:
        """See :class:`~nas_controller.policies.Policy`."""
        return super().propose(sample % self._architectures)


def _repeating(architectures: int) -> MakePolicy:
    return lambda searcher, space: _Repeating(searcher, space, architectures)


def check(
    experiment: NASExperiment,
    folder: Path,
    parallelism: int | None,
    console: Console,
    *,
    architectures: int,
    repeats: int,
    here: Path,
    again: str,
) -> None:
    """Train each of some random architectures several times, as ``nas run`` would, and print what that tells.

    Raises:
        Refusal: as ``nas run``; or too few trainings have a result.
    """
    spec = experiment.spec
    searcher = SearcherSpec(seed=spec.searcher.seed, random=Empty(), duplicates="Train")
    budget = spec.budget.model_copy(update={"samples": architectures * repeats, "duration": None})
    # Stopped early, the trainings of one architecture would differ by more than noise.
    trainer = spec.trainer.model_copy(update={"early_stopping": None})
    changes = {"searcher": searcher, "budget": budget, "trainer": trainer, "final_training": None}
    repeated = experiment.model_copy(update={"spec": spec.model_copy(update=changes)})
    local_run.run(repeated, folder, parallelism, console, here=here, again=again, make_policy=_repeating(architectures))
    samples = read_samples(repeated, open_store(StoreLocation(folder=str(folder))))
    found = noise(_by_architecture(samples))
    if found is None:
        raise Refusal("too few training runs have a result: raise --architectures or --repeats")
    for line in lines(found, spec.budget.samples):
        console.print(line, highlight=False, soft_wrap=True)


def _by_architecture(samples: Iterable[Sample]) -> list[list[float]]:
    """Return the rewards of each architecture; a diverged training tells nothing of the noise of others."""
    groups: dict[str, list[float]] = {}
    for sample in samples:
        if sample.state == "Observed" and sample.reward is not None:
            groups.setdefault(sample.architecture.digest, []).append(sample.reward)
    return [*groups.values()]


def lines(found: Noise, samples: int) -> list[str]:
    """Return what people want to know, a line each; ``samples`` is the search's budget."""
    freedom = found.trainings - found.architectures
    out = [
        f"mean reward {found.mean:.4g} over {found.trainings} training runs of {found.architectures} architectures",
        f"noise: {found.noise:.2g} between runs of one architecture (+- {50 * math.sqrt(2 / freedom):.0f} %)",
        f"signal: {found.signal:.2g} between architectures; {found.reliability:.0%} of a reward's variance",
    ]
    needed = found.needed()
    if needed is None:
        return [*out, "no difference between architectures is visible: train longer, or repeat more"]
    return [
        *out,
        f"random search needs about {needed:,} samples to find one of the best 1 %; without noise, {_noise_free():,}",
        f"the {samples:,} samples of the budget are worth {found.worth(samples):,.0f} without noise",
    ]


def _noise_free() -> int:
    needed = Noise(2, 4, 0.0, 0.0, 1.0).needed()
    assert needed is not None
    return needed
