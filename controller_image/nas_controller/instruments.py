"""What may be put around the parts of a search, so that they are watched and behave as they did without."""

from typing import Protocol

from nas_api.experiment import NASExperiment, Problem
from nas_controller.executor import Executor
from nas_controller.state import MakePolicy
from nas_controller.status import StatusSink
from nas_store import Store


class ChangingExecutor(Executor, Protocol):
    """An executor that takes over a newer manifest."""

    def change(self, experiment: NASExperiment) -> None:
        """Launch children by this manifest from now on."""


class ProblemSink(StatusSink, Protocol):
    """A sink that can also be told what keeps a search from starting."""

    def publish_problem(self, problem: Problem, *, rests: bool = False) -> None:
        """Say what is in the way, and whether no child is left; everything else stays as it was told last."""


class Instruments:
    """None: every part is given back as it is. What measures overrides these."""

    def store(self, store: Store) -> Store:
        """Return what the search keeps everything in."""
        return store

    def executor(self, executor: ChangingExecutor, experiment: NASExperiment) -> ChangingExecutor:
        """Return what runs this experiment's children."""
        return executor

    def policy(self, make_policy: MakePolicy) -> MakePolicy:
        """Return what makes the policy."""
        return make_policy

    def sink(self, sink: ProblemSink) -> ProblemSink:
        """Return what the status is told to."""
        return sink
