"""Early stopping of hopeless children: the rule, shared by the controller that sets it and the trainer that keeps it.

One rung: a child that has done so many epochs is compared once with what others had there. Pure.
"""

from collections.abc import Sequence
from decimal import Decimal as Number
from typing import Annotated

from pydantic import Field

from nas_api.base import Model
from nas_api.bounds import usable
from nas_api.experiment import EarlyStoppingSpec, Goal


class Rung(Model):
    """What a child had after so many epochs."""

    epoch: Annotated[int, Field(ge=1)]
    metric: float
    """The objective's metric: the best finite one up to there."""

    @classmethod
    def of(cls, history: Sequence[float], epoch: int, goal: Goal) -> "Rung | None":
        """Return a child's rung; None where it has not come so far, or had no finite metric until there.

        Args:
            history: the objective's metric after each epoch.
            epoch: how many epochs count.
            goal: whether more or less of the metric is better.
        """
        finite = [metric for metric in history[:epoch] if usable(metric)]
        if len(history) < epoch or not finite:
            return None
        return cls(epoch=epoch, metric=max(finite) if goal == "Maximize" else min(finite))


class StopRule(Model):
    """What ends a child early: after ``epoch`` epochs its best metric must not be worse than ``bound``."""

    epoch: Annotated[int, Field(ge=1)]
    bound: float
    goal: Goal

    @classmethod
    def among(cls, metrics: Sequence[float], spec: EarlyStoppingSpec, goal: Goal) -> "StopRule | None":
        """Return the rule that the worst share of these would not have met; None where they are too few.

        The bound is one of the metrics, so that of equals none is stopped.

        Args:
            metrics: of the children that are compared with, at ``spec.epoch``.
            spec: what is asked for.
            goal: whether more or less of the metric is better.
        """
        if len(metrics) < spec.startup:
            return None
        worst_first = sorted(metrics, reverse=goal == "Minimize")
        # In decimals: 0.29 of 100 are 29, which floats do not find.
        return cls(epoch=spec.epoch, bound=worst_first[int(Number(spec.worst) * len(metrics))], goal=goal)

    def ends(self, rung: Rung | None) -> bool:
        """Return whether a child with this rung at ``epoch`` is to end there; None: it had no finite metric."""
        if rung is None:
            return True
        return rung.metric < self.bound if self.goal == "Maximize" else rung.metric > self.bound


class Stopped(Model):
    """How far a child came that was stopped early."""

    epoch: Annotated[int, Field(ge=1)]
    """Epochs that it was trained."""
    of: Annotated[int, Field(ge=1)]
    """Epochs that it would have been trained."""
