"""The search's part of the resource's status, the port it leaves through, and what is told there when."""

import math
from decimal import ROUND_HALF_EVEN, Context
from decimal import Decimal as Number
from typing import Protocol

from nas_api.base import Model
from nas_api.bounds import mean
from nas_api.experiment import (
    LONGEST_MESSAGE,
    ArmStatus,
    Best,
    ControlStatus,
    FinalStatus,
    LogHead,
    NASExperimentStatus,
    Outcome,
    PolicyVitals,
    Problem,
    SampleCounts,
)
from nas_api.reasons import Reason
from nas_api.search_space import arranged
from nas_controller.control import ArmTotal, Comparison
from nas_controller.final_stage import FinalStage
from nas_controller.state import SearchState

_LARGEST = 10**12 - 1
_LONGEST_ARCHITECTURE = 8192
_SIX_DIGITS = Context(prec=6, rounding=ROUND_HALF_EVEN)


class SearchStatus(Model):
    """What the controller says about the search; the fields and their meaning are NASExperimentStatus's."""

    epoch: int | None = None
    samples: SampleCounts | None = None
    progress: str | None = None
    best: Best | None = None
    policy: PolicyVitals | None = None
    control: ControlStatus | None = None
    final: FinalStatus | None = None
    problem: Problem | None = None
    outcome: Outcome | None = None
    log: LogHead | None = None

    @classmethod
    def of(cls, status: NASExperimentStatus) -> "SearchStatus":
        """Return the search's part of a resource's status."""
        return cls(**{name: getattr(status, name) for name in cls.model_fields})


def decimal(value: float) -> str:
    """Return a finite number as the API's ``Decimal``: six significant digits, at most twelve decimals."""
    if abs(value) > _LARGEST:
        return str(_LARGEST if value > 0 else -_LARGEST)
    number = _SIX_DIGITS.create_decimal_from_float(value).quantize(Number("1e-12"), context=Context(prec=30))
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def search_status(
    state: SearchState,
    *,
    running: int,
    best_uri: str,
    problem: Problem | None,
    queued: int = 0,
    head: LogHead | None = None,
) -> SearchStatus:
    """Return the status of a state.

    Args:
        state: the fold of what is in the log.
        running: children that the executor has now.
        queued: of these, those that wait in their queue.
        best_uri: where the best architecture is kept.
        problem: what keeps the search from going on, if anything.
        head: the newest object of the log.
    """
    core = state.core
    budget = core.budget.samples if core.budget is not None else 0
    vitals = state.policy.vitals()
    best = core.best
    return SearchStatus(
        epoch=core.epoch,
        samples=SampleCounts(
            budget=budget,
            proposed=core.proposed,
            running=running,
            queued=queued,
            observed=core.observed,
            lost=core.lost,
            diverged=core.diverged,
            stopped=len(core.stopped),
            retried=core.retried,
            reused=core.reused,
            inherited=core.inherited,
        ),
        progress=f"{core.observed + core.lost}/{budget}",
        best=None
        if best is None
        else Best(
            sample=best.sample,
            reward=decimal(best.reward),
            metric=decimal(best.metric),
            architecture=arranged(state.space, best.architecture).short()[:_LONGEST_ARCHITECTURE],
            digest=best.architecture.digest,
            uri=best_uri,
        ),
        policy=PolicyVitals(
            updates=vitals.updates,
            entropy=_optional(vitals.entropy),
            mean_reward=decimal(mean(core.last_rewards)) if core.last_rewards else None,
            first_mean_reward=decimal(mean(core.first_rewards)) if core.first_rewards else None,
        ),
        control=None if core.comparison is None else _control(core.comparison),
        final=None if core.final is None else _final(core.final),
        problem=problem,
        outcome=core.outcome,
        log=head,
    )


def _final(stage: FinalStage) -> FinalStatus:
    winner, trial, agreement = stage.winner, stage.winning, stage.agreement
    return FinalStatus(
        trained=stage.trained,
        lost=stage.lost,
        total=stage.total,
        sample=None if winner is None else winner.sample,
        best_metric=_optional(None if winner is None else winner.metric),
        best_spread=_optional(None if trial is None else trial.spread),
        test_metric=_optional(stage.test_metric),
        kendall_tau=_optional(None if agreement is None else agreement.tau),
        kendall_low=_optional(None if agreement is None else agreement.low),
        kendall_high=_optional(None if agreement is None else agreement.high),
    )


def _optional(value: float | None) -> str | None:
    # What is made of rewards at the end of all numbers, as older versions let in, may be none.
    return None if value is None or math.isnan(value) else decimal(value)


def _control(comparison: Comparison) -> ControlStatus:
    error = comparison.standard_error
    return ControlStatus(
        policy=_arm(comparison.policy),
        random=_arm(comparison.random),
        pairs=comparison.pairs,
        difference=_optional(comparison.difference) if comparison.pairs else None,
        standard_error=_optional(error),
    )


def _arm(total: ArmTotal) -> ArmStatus:
    return ArmStatus(observed=total.observed, mean_reward=_optional(total.mean))


class StatusSink(Protocol):
    """Takes the newest status to whoever wants it: the API server, a terminal, a test."""

    def publish(self, status: SearchStatus) -> None:
        """Take note of the newest status and return at once; called from the search's thread.

        Called after each change that is in the log, and when a problem comes or goes; how often it is
        shown is the sink's affair.
        """


class Announcer:
    """Tells a sink each change of the status once; what the store suffers from is told beside what is in the log."""

    def __init__(self, sink: StatusSink) -> None:
        self._sink = sink
        self._durable: SearchStatus | None = None
        self._shown: SearchStatus | None = None
        self.store_problem: Problem | None = None
        """What the store's newest failure says; None when it works."""

    @property
    def begun(self) -> bool:
        """Whether anything has been told; before that there is nothing to show a problem with."""
        return self._durable is not None

    def publish(self, status: SearchStatus) -> None:
        """Tell a status that follows from what is in the log."""
        self._durable = status
        self._show(status)

    def store_failed(self, reason: Reason, message: str) -> None:
        """Tell that the store is in trouble."""
        self.store_problem = Problem(reason=reason, message=message[:LONGEST_MESSAGE])
        if self._durable is not None:
            self._show(self._durable.model_copy(update={"problem": self.store_problem}))

    def rests(self) -> None:
        """Tell that no child is left, before the log can say anything."""
        durable = self._durable
        if durable is not None and durable.samples is not None:
            samples = durable.samples.model_copy(update={"running": 0, "queued": 0})
            self._durable = durable.model_copy(update={"samples": samples})
            self._show(self._durable.model_copy(update={"problem": self.store_problem}))

    def store_works(self) -> None:
        """Take note that the store is in no trouble any more; the next status says so."""
        self.store_problem = None

    def _show(self, status: SearchStatus) -> None:
        if status != self._shown:
            self._sink.publish(status)
            self._shown = status
