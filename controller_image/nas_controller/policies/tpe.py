"""Optuna's tree-structured Parzen estimator (Bergstra et al., 2011), behind our protocol. The algorithm is not ours.

Each decision is a categorical parameter named by its step and kind, and each possible skip connection one of two
options. A decision that does not count is no parameter of its trial. Samples in flight count as bad ones (the constant
liar), so that children asked for together differ; a sample that came before is drawn again, a few times.

Optuna is shown our trials through a storage of our own and asked for each sample by a fresh sampler, seeded by (seed,
sample): it keeps nothing, so replay is bit for bit. For the same reason the cost of a proposal grows with the samples.
Measured on one core, without redraws: after 200 and 2,000 samples 6 and 62 ms in the space of cells (34 decisions), 34
and 114 ms for 15 layers with skips (165); where a small space is nearly spent, every redraw costs as much again.
"""

import math
import warnings
from collections.abc import Container, Mapping
from functools import lru_cache
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from nas_api.decisions import Anchor, Choices, Decision, answer, counting
from nas_api.experiment import SearcherSpec, TpeSpec
from nas_api.search_space import SearchSpace
from nas_controller.policies import Proposal, Vitals
from nas_controller.policies.draws import Purpose, uniforms
from nas_controller.policies.learner import pack, unpack

REDRAWS = 16
"""How often a sample that came before is drawn again; then a repeat is accepted. The best of many candidates is what an
estimator that is sure of itself always draws; a redraw takes the first candidate, which strays from it."""
_STUDY = "search"


class _Trials(InMemoryStorage):
    """Shows Optuna the trials that are in the log, without a copy, and lets it write nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.by_sample: dict[int, FrozenTrial] = {}

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials by number; Optuna copies what it changes."""
        trials = sorted(self.by_sample.values(), key=lambda trial: trial.number)
        return [trial for trial in trials if states is None or trial.state in states]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep nothing: here a sampler notes a draw for other processes, but a draw counts once it is in the log."""


class TpePolicy:
    """The tree-structured Parzen estimator over all decisions at once.

    A proposal's log-probability is 0, for Optuna tells none; its version is the number of samples observed before it.
    """

    def __init__(self, searcher: SearcherSpec, space: SearchSpace) -> None:
        self._seed = searcher.seed
        self._startup = (searcher.tpe or TpeSpec()).startup
        self._space = space
        self._trials = _Trials()
        self._choices: dict[int, Choices] = {}
        self._observed = 0
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        optuna.create_study(study_name=_STUDY, storage=self._trials, direction="maximize")

    def propose(self, sample: int) -> Proposal:
        """See :class:`~nas_controller.policies.Policy`."""
        known = set(self._choices.values())
        first = self._draw(sample, attempt=0, candidates=24)
        if first not in known:
            return Proposal(first, 0.0, self._observed)
        redrawn = (self._draw(sample, attempt, candidates=1) for attempt in range(1, REDRAWS + 1))
        choices = next((choices for choices in redrawn if choices not in known), first)
        return Proposal(choices, 0.0, self._observed)

    def _draw(self, sample: int, attempt: int, candidates: int) -> Choices:
        """Return the best of so many candidates from the density of good samples, other ones for each attempt.

        It is made as Optuna's own trials make it: first all parameters together, then what is missing.
        """
        trial = _trial(sample, {}, {})
        with warnings.catch_warnings():
            # Optuna calls its groups of parameters that occur together experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = TPESampler(
                n_startup_trials=self._startup,
                n_ei_candidates=candidates,
                seed=int(uniforms(self._seed, sample, Purpose.PROPOSE, attempt, 1)[0] * 2**32),
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        # A study caches the trials that it has seen, so each draw gets one of its own.
        study = optuna.load_study(study_name=_STUDY, storage=self._trials, sampler=sampler)
        drawn = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))

        def choose(step: int, decision: Decision) -> int:
            options = [
                drawn[name] if name in drawn else sampler.sample_independent(study, trial, name, distribution)
                for name, distribution in _parameters(step, decision).items()
            ]
            return sum(option << place for place, option in enumerate(options))

        return answer(self._space.decisions(sample), choose)

    def proposed(self, sample: int, proposal: Proposal) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        decisions = self._space.decisions(sample)
        options: dict[str, int] = {}
        distributions: dict[str, BaseDistribution] = {}
        for step, counts in enumerate(counting(decisions, proposal.choices)):
            if counts:
                for place, (name, distribution) in enumerate(_parameters(step, decisions[step]).items()):
                    mask = isinstance(decisions[step], Anchor)
                    options[name] = proposal.choices[step] >> place & 1 if mask else proposal.choices[step]
                    distributions[name] = distribution
        self._choices[sample] = proposal.choices
        self._trials.by_sample[sample] = _trial(sample, options, distributions)

    def observed(self, sample: int, reward: float) -> None:
        """See :class:`~nas_controller.policies.Policy`; a reward that is not finite is worse than all others."""
        trial = self._trials.by_sample[sample]
        trial.values = [reward if math.isfinite(reward) else -math.inf]
        trial.state = TrialState.COMPLETE
        self._observed += 1

    def lost(self, sample: int) -> None:
        """See :class:`~nas_controller.policies.Policy`; it is not drawn again, but says nothing of its kind."""
        self._trials.by_sample[sample].state = TrialState.FAIL

    def vitals(self) -> Vitals:
        """See :class:`~nas_controller.policies.Policy`: each observed sample changes the estimator."""
        return Vitals(updates=self._observed, entropy=None)

    def dump(self) -> dict[str, Tensor]:
        """See :class:`~nas_controller.policies.Policy`. The rewards of samples in flight and of lost ones are NaN."""
        trials = self._trials.by_sample
        rewards = [math.nan if trial.values is None else trial.values[0] for trial in trials.values()]
        rows = [(sample, Proposal(self._choices[sample], 0.0, 0)) for sample in trials]
        return {
            **pack("trial", [(*row, reward) for row, reward in zip(rows, rewards, strict=True)]),
            "trial.lost": torch.tensor([trial.state is TrialState.FAIL for trial in trials.values()], dtype=torch.bool),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """See :class:`~nas_controller.policies.Policy`."""
        self._trials.by_sample, self._choices, self._observed = {}, {}, 0
        for (sample, proposal, reward), lost in zip(unpack("trial", state), state["trial.lost"].tolist(), strict=True):
            self.proposed(sample, proposal)
            if lost:
                self.lost(sample)
            elif not math.isnan(reward):
                self.observed(sample, reward)


@lru_cache(maxsize=4096)
def _parameters(step: int, decision: Decision) -> Mapping[str, CategoricalDistribution]:
    """Return Optuna's parameters of a decision by name; none where there is nothing to choose."""
    if isinstance(decision, Anchor):
        return {f"{step}:{earlier}": CategoricalDistribution((0, 1)) for earlier in range(decision.index)}
    options = len(decision.options)
    return {f"{step}:{decision.kind}": CategoricalDistribution(tuple(range(options)))} if options > 1 else {}


def _trial(number: int, options: dict[str, int], distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    """Return a running trial with these options chosen."""
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, params=options, distributions=distributions)
    trial.number = number
    return trial
