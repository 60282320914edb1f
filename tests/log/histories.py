"""Logs that a search could have written, drawn by Hypothesis: whatever the state allows next may come next.

No search and no policy decides here, so orders come up that no search of ours has, and every later one may have.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from controller.world import make_experiment
from hypothesis import strategies as st

from nas_api.experiment import FinalTrainingSpec
from nas_api.reasons import LostReason, Reason
from nas_api.stopping import Rung, Stopped, StopRule
from nas_controller.policies.random import RandomPolicy
from nas_controller.state import SearchState, fold
from nas_log.records import (
    FinalProposed,
    Finished,
    Inherited,
    Launched,
    Lost,
    Observed,
    Proposed,
    Reconfigured,
    Record,
    SearchEnded,
    Started,
    WarmStarted,
)

BEGIN = datetime(2026, 3, 2, tzinfo=UTC)
FINAL = FinalTrainingSpec.model_validate({"top": 2, "epochs": 3, "grid": {"learningRate": ["0.1", "0.05"]}})


class _Making:
    """A log while it is made."""

    def __init__(self, draw: Callable[..., Any]) -> None:
        self.draw = draw
        self.records: list[Record] = []
        spec = make_experiment(
            searcher={
                "seed": 7,
                "random": {},
                "duplicates": draw(st.sampled_from(["Reuse", "Train"])),
                **({"control": {"random": "0.3"}} if draw(st.booleans()) else {}),
            }
        ).spec
        started = Started(
            epoch=1,
            moment=BEGIN,
            search_space=spec.search_space,
            searcher=spec.searcher,
            objective=spec.objective,
        )
        state = fold([started], RandomPolicy)
        assert state is not None
        self.state: SearchState = state
        self.started, self.optimizer = started, spec.trainer.optimizer
        self.records.append(started)
        self.take(Reconfigured(parallelism=3, budget=spec.budget))

    def take(self, record: Record) -> None:
        """Add a record that fits."""
        self.state.apply(record)
        self.records.append(record)

    def moment(self) -> datetime | None:
        """Return a time of a record; older writers gave none."""
        seconds: int | None = self.draw(st.none() | st.integers(0, 10_000))
        return None if seconds is None else BEGIN + timedelta(seconds=seconds)

    def warm_start(self) -> None:
        """Inherit a few samples of an earlier experiment."""
        count = self.draw(st.integers(0, 3))
        self.take(WarmStarted(experiment="earlier", uri="s3://b/log", samples=count, first_sample=count + 2))
        for sample in range(count):
            self.take(
                Inherited(
                    sample=sample,
                    architecture=self.state.propose().architecture,
                    log_probability=-1.0,
                    metrics={"accuracy": 0.5, "parameters": 9.0},
                    diverged=self.draw(st.booleans()),
                    reward=0.1,
                )
            )

    def propose(self) -> None:
        """Draw a sample, or begin a final training where those are due."""
        final = self.state.core.final
        if final is None:
            self.take(self.state.propose())
        elif final.room():
            architecture, run = final.next(self.optimizer)
            self.take(FinalProposed(sample=self.state.core.next_sample, architecture=architecture, run=run))

    def launch(self) -> None:
        """Launch one or more open samples, for the first time or again."""
        core = self.state.core
        if core.open:
            samples = self.draw(st.lists(st.sampled_from(sorted(core.open)), min_size=1, max_size=3, unique=True))
            stop = StopRule(epoch=2, bound=0.3, goal="Maximize") if self.draw(st.booleans()) else None
            attempt = 1 + max(core.open[sample].attempt for sample in samples)
            self.take(
                Launched(launch=core.launched, samples=tuple(samples), attempt=attempt, stop=stop, moment=self.moment())
            )

    def observe(self) -> None:
        """End an open sample with a result: its own or another's, good, stopped or diverged."""
        core = self.state.core
        if not core.open:
            return
        sample = self.draw(st.sampled_from(sorted(core.open)))
        known = [] if core.open[sample].final else sorted(known.sample for known in core.known.values())
        diverged = self.draw(st.booleans())
        self.take(
            Observed(
                sample=sample,
                metrics={} if diverged else {"accuracy": self.draw(st.floats(0, 1)), "latency": 2.0},
                diverged=diverged,
                reward=self.draw(st.floats(0, 1)),
                seconds=3.0,
                parameters=self.draw(st.integers(0, 2)),
                reused=self.draw(st.none() | st.sampled_from(known)) if known else None,
                stopped=Stopped(epoch=2, of=3) if not diverged and self.draw(st.booleans()) else None,
                rung=Rung(epoch=2, metric=0.2) if self.draw(st.booleans()) else None,
                moment=self.moment(),
            )
        )

    def lose(self) -> None:
        """Give an open sample up."""
        if self.state.core.open:
            sample = self.draw(st.sampled_from(sorted(self.state.core.open)))
            self.take(Lost(sample=sample, reason=self.draw(st.sampled_from(LostReason)), moment=self.moment()))

    def restart(self) -> None:
        """Let another controller go on."""
        epoch = self.state.core.epoch + 1
        self.take(self.started.model_copy(update={"epoch": epoch, "moment": self.moment() or BEGIN}))

    def end(self) -> None:
        """End what is open, and with it the search, or the experiment."""
        core = self.state.core
        while core.open:
            self.observe()
        if core.final is None and core.leaders:
            self.take(SearchEnded(reason=Reason.SAMPLES_SPENT, message="done", final_training=FINAL))
        else:
            self.take(Finished(outcome="Complete", reason=Reason.SAMPLES_SPENT, message="done"))


@st.composite
def histories(draw: Callable[..., Any]) -> list[Record]:
    """Return the records of a search, ended or not."""
    making = _Making(draw)
    if draw(st.booleans()):
        making.warm_start()
    # Ends are rare, so that there is something to end.
    often, seldom = [making.propose, making.launch, making.observe, making.lose], [making.restart, making.end]
    for step in draw(st.lists(st.sampled_from([*often * 5, *seldom]), min_size=draw(st.integers(0, 30)), max_size=40)):
        if making.state.core.outcome is not None:
            break
        step()
    return making.records


def proposed(records: list[Record]) -> list[int]:
    """Return the numbers of all samples and final trainings."""
    return [record.sample for record in records if isinstance(record, Proposed | FinalProposed)]
