"""The search's part of the resource's status, and the port it leaves through."""

from typing import Protocol

from nas_api.base import Model
from nas_api.experiment import Best, Outcome, PolicyVitals, Problem, SampleCounts


class SearchStatus(Model):
    """What the controller says about the search; the fields and their meaning are NASExperimentStatus's."""

    epoch: int | None = None
    samples: SampleCounts | None = None
    progress: str | None = None
    best: Best | None = None
    policy: PolicyVitals | None = None
    problem: Problem | None = None
    outcome: Outcome | None = None


class StatusSink(Protocol):
    """Takes the newest status to whoever wants it: the API server, a terminal, a test."""

    def publish(self, status: SearchStatus) -> None:
        """Take note of the newest status and return at once; called from the search's thread.

        Called after each change that is in the log, and when a problem comes or goes; how often it is
        shown is the sink's affair.
        """
