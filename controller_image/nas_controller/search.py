"""The search itself: one thread that turns events into records, and records into effects.

The order that makes it safe to die anywhere: decide, append to the log, and only then launch, cancel or
tell. Learning happens with the decision, before the append, so that one object holds an observation and
the samples that follow from it; if the append fails, so does the process, and what it had learnt is gone
with it. On the way back up: list the children, fetch results, and launch what is recorded but lost.
"""

import json
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

import structlog

import nas_api
from nas_api import names
from nas_api.architecture import Architecture
from nas_api.child import MAX_RESULT_BYTES, StoreLocation
from nas_api.experiment import NASExperiment, Problem, TrainerSpec
from nas_api.handover import Provenance
from nas_api.source import architecture_source
from nas_controller import decisions, earlier, snapshots
from nas_controller.clock import Clock, SystemClock
from nas_controller.earlier import FindEarlier
from nas_controller.errors import EarlierUnsuitable, Fenced, SearchChanged
from nas_controller.executor import Blocked, End, Ended, Event, Executor, Launch
from nas_controller.executor import Started as Runs
from nas_controller.launch_input import trainer_input
from nas_controller.log import Log
from nas_controller.policies.factory import make_policy
from nas_controller.records import (
    FinalProposed,
    Finished,
    Launched,
    Lost,
    Observed,
    Reconfigured,
    Record,
    SearchEnded,
    Started,
    WarmStarted,
)
from nas_controller.recovery import recover
from nas_controller.state import BestSample, MakePolicy, SearchState
from nas_controller.status import SearchStatus, StatusSink, search_status
from nas_store import Store
from nas_store.errors import StoreError, TooLarge

_log = structlog.get_logger()

# Samples that one object of the log may begin: with hundreds in flight the first ones need not wait for all.
_PROPOSALS_AT_ONCE = 64
# Samples of an earlier experiment in one object of the log.
_INHERITED_AT_ONCE = 200
_STORE_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
# A blocked child is a problem only when nothing else moves: with a quota, one often waits for another.
_QUIET_SECONDS = 10.0
_BEST_EVERY_SECONDS = 30.0
# A newer controller may append while the log is read; each of its appends costs one more look.
_START_TRIES = 20


class Ending(StrEnum):
    """Why ``Search.run`` returned."""

    FINISHED = "Finished"
    """The log has its Finished record; the last status that was published has the outcome."""
    STOPPED = "Stopped"
    """``stop`` was called; the same search goes on when it is run again."""
    FENCED = "Fenced"
    """Another process writes this log now, and this one must write nothing any more."""


class _Phase(StrEnum):
    """Where an open sample is, as far as this process knows."""

    LAUNCHED = "Launched"
    """The executor has its newest launch."""
    ENDED = "Ended"
    """Its launch has ended; its result is being fetched."""
    WAITING = "Waiting"
    """It gets another attempt once the environment is cured."""
    PARKED = "Parked"
    """It gets another attempt once the search is resumed."""


@dataclass
class _Flight:
    phase: _Phase
    running: bool = False
    """The executor has seen it run."""
    failures: int | None = None
    """What its next attempt will record; None where a result must be looked for first."""


@dataclass(frozen=True)
class _Fetched:
    """The answer to the question for a sample's result; ``end`` None: the launch was never seen."""

    sample: int
    launch: int
    end: End | None
    message: str
    data: bytes | TooLarge | None
    error: StoreError | None = None
    tries: int = 0


@dataclass(frozen=True)
class _Changed:
    experiment: NASExperiment


class _Superseded:
    """Somebody has learnt that another controller is at work."""


@dataclass(frozen=True)
class _Broken:
    """A helper thread met an error that nobody foresaw."""

    error: BaseException


class _Stopped(Exception):
    """``stop`` was called while the search waited for something else."""


_Message = Event | _Fetched | _Changed | _Superseded | _Broken | None


@dataclass
class _Effects:
    """What is to be done once the log has what it follows from."""

    cancel: list[int] = field(default_factory=list)
    launch: list[Launch] = field(default_factory=list)


class Search:
    """One search on one log. Build it, call ``run`` once, and call the other methods from any thread.

    The search owns neither store nor executor nor sink: its caller closes them after ``run`` has returned.
    """

    def __init__(
        self,
        experiment: NASExperiment,
        *,
        store: Store,
        location: StoreLocation,
        executor: Executor,
        sink: StatusSink,
        make_policy: MakePolicy = make_policy,
        find_earlier: FindEarlier = earlier.find,
        clock: Clock | None = None,
        snapshot_every: int = 200,
        result_threads: int = 8,
    ) -> None:
        """Prepare a search; does no I/O.

        Args:
            experiment: the manifest; ``spec.storage`` is not read here.
            store: where the log, the results, the snapshots and ``best/`` are.
            location: the same place as children are told it.
            executor: runs the children; ``run`` calls its ``start``, ``launch`` and ``cancel``.
            sink: is told every change of the status.
            make_policy: builds the policy in its state before the first sample.
            find_earlier: finds the experiment that a warm start or a fixed architecture names.
            clock: the time; the machine's own when None.
            snapshot_every: records between two snapshots of the learner.
            result_threads: results fetched from the store at once.
        """
        self._experiment = experiment
        self._store = store
        self._location = location
        self._executor = executor
        self._sink = sink
        self._make_policy = make_policy
        self._find_earlier = find_earlier
        self._clock: Clock = clock or SystemClock()
        self._snapshot_every = snapshot_every
        self._result_threads = result_threads
        # Its put may be called from a signal handler, unlike Queue's.
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._backlog: deque[_Message] = deque()
        self._stop_asked = False

        self._state: SearchState
        self._appender: Log
        self._pool: ThreadPoolExecutor
        self._batch: list[Record] = []
        self._effects = _Effects()
        self._flights: dict[int, _Flight] = {}
        self._samples: dict[int, int] = {}
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._trouble: decisions.Trouble | None = None
        self._blocked: dict[int, Blocked] = {}
        self._last_progress = float("-inf")
        self._store_problem: Problem | None = None
        self._durable: SearchStatus | None = None
        self._shown: SearchStatus | None = None
        self._snapshot_records = 0
        self._best_written: int | None = None
        self._best_written_at = float("-inf")

    def run(self) -> Ending:
        """Recover from the log, search until the end, and return why it ended.

        Raises:
            StoreError: the log could not be read, or the store refuses what only its owner can cure; a new
                Search on the same log goes on once it is cured.
            LogDamaged: an object of the log is missing or was changed.
            SearchChanged: the log belongs to a search with another space, searcher or objective.
            EarlierMissing: the experiment to begin from has not left yet what is needed; a new Search may go on later.
            EarlierUnsuitable: what it has left is of no use here.
        """
        self._pool = ThreadPoolExecutor(self._result_threads, thread_name_prefix="results")
        try:
            if self._begin():
                self._inherit()
                self._recover_flights()
                self._advance()
                while self._state.core.outcome is None:
                    for message in self._receive(self._seconds_until_due()):
                        self._take(message)
                    self._run_timers()
                    self._advance()
            self._write_best(final=True)
            self._publish()
        except _Stopped:
            return Ending.STOPPED
        except Fenced as error:
            _log.warning("fenced: another controller goes on with this search", error=str(error))
            return Ending.FENCED
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
        return Ending.FINISHED

    @property
    def state(self) -> SearchState:
        """The fold of what is in the log, once ``run`` has returned FINISHED."""
        return self._state

    def stop(self) -> None:
        """Make ``run`` return STOPPED soon. May be called from a signal handler. Children go on."""
        self._stop_asked = True
        self._inbox.put(None)

    def change(self, experiment: NASExperiment) -> None:
        """Take over a newer spec: suspend, parallelism, budget and trainer count; the rest is immutable."""
        self._inbox.put(_Changed(experiment))

    def superseded(self) -> None:
        """Make ``run`` return FENCED soon: somebody has learnt that another controller is at work."""
        self._inbox.put(_Superseded())

    # ------------------------------------------------------------ the beginning

    def _begin(self) -> bool:
        """Recover and begin a new epoch; return False when the search has ended before."""
        spec = self._experiment.spec
        for tries in range(_START_TRIES):
            if self._stop_asked:
                raise _Stopped
            recovered = recover(self._store, self._make_policy)
            self._appender, self._snapshot_records = recovered.log, recovered.snapshot_records
            if recovered.state is not None:
                self._state = recovered.state
                self._check_same_search()
                if self._state.core.outcome is not None:
                    return False
            before: list[Record] = []
            architecture = None
            if recovered.state is None:
                architecture = self._fixed_architecture()
                before = self._warm_start()
            else:
                architecture = self._state.core.architecture
            started = Started(
                epoch=1 if recovered.state is None else self._state.core.epoch + 1,
                moment=self._clock.now(),
                search_space=spec.search_space,
                searcher=spec.searcher,
                objective=spec.objective,
                architecture=architecture,
            )
            if recovered.state is None:
                self._state = SearchState.begin(started, self._make_policy)
                self._batch = [started]
                for record in before:
                    self._record(record)
            else:
                self._batch = []
                self._record(started)
            self._reconfigure()
            try:
                self._append()
            except Fenced:
                # Whom we replace has appended since we read: look again. We are the newer one.
                if tries + 1 == _START_TRIES:
                    raise
            else:
                core = self._state.core
                _log.info("search begins", epoch=core.epoch, records=core.records, open=len(core.open))
                return True
        raise AssertionError("the last try returns or raises")

    def _fixed_architecture(self) -> Architecture | None:
        """Return what ``searchSpace.fixed`` stands for; None for other spaces."""
        spec = self._experiment.spec
        fixed = spec.search_space.fixed
        if fixed is None:
            return None
        found = self._find_earlier(self._location, fixed.experiment, fixed.uid)
        return earlier.found_architecture(found, spec.trainer.dataset)

    def _warm_start(self) -> list[Record]:
        """Return the record of a warm start, where one is asked for."""
        spec = self._experiment.spec
        warm = spec.searcher.warm_start
        if warm is None:
            return []
        found = self._find_earlier(self._location, warm.experiment, warm.uid)
        extent = earlier.extent(found, spec.search_space, spec.objective)
        return [
            WarmStarted(
                experiment=found.name,
                uid=found.uid,
                uri=found.store.uri(names.log_key(0)),
                samples=extent.samples,
                first_sample=extent.next_sample,
            )
        ]

    def _inherit(self) -> None:
        """Take over the samples of the earlier experiment that are not in our log yet, a chunk an object."""
        core, spec = self._state.core, self._experiment.spec
        if core.to_inherit == 0 or core.warm_start is None:
            return
        found = self._find_earlier(self._location, core.warm_start.experiment, core.warm_start.uid)
        # It may have gone on since: only what was there at first is taken.
        samples = islice(
            earlier.inherited(found, spec.search_space, spec.objective), core.inherited, core.warm_start.samples
        )
        while core.to_inherit > 0:
            for record in islice(samples, _INHERITED_AT_ONCE):
                self._record(record)
            if not self._batch:
                raise EarlierUnsuitable(
                    f"the log of the experiment {found.name} has lost {core.to_inherit} of {core.warm_start.samples}"
                    " samples since this search began: restore it from the bucket's versions"
                )
            self._append()
            self._snapshot()
            self._publish()
            if self._stop_asked:
                raise _Stopped
        _log.info("samples inherited", experiment=found.name, samples=core.inherited)

    def _check_same_search(self) -> None:
        core, spec = self._state.core, self._experiment.spec
        ours = {"searchSpace": spec.search_space, "searcher": spec.searcher, "objective": spec.objective}
        theirs = {"searchSpace": core.search_space, "searcher": core.searcher, "objective": core.objective}
        different = [name for name in ours if ours[name] != theirs[name]]
        if different:
            raise SearchChanged(
                f"{' and '.join(f'spec.{name}' for name in different)} differ from those of the search whose log is at"
                f" {self._store.uri(names.log_key(0))}: create a new experiment, or use another prefix"
            )

    def _recover_flights(self) -> None:
        """Find out what has become of the open samples: first the children, then their results."""
        existing = self._executor.start(self._inbox.put)
        for sample, current in self._state.core.open.items():
            launch = current.launch
            if launch is None:
                # Proposed and Launched share an object, so this is a log of an older writer: it gets its launch now.
                self._flights[sample] = _Flight(_Phase.PARKED)
                continue
            self._samples[launch] = sample
            if launch in existing:
                self._flights[sample] = _Flight(_Phase.LAUNCHED)
            else:
                self._fetch(sample, launch, None, "")
        if self._suspended:
            self._suspend()

    # ------------------------------------------------------------ one step

    def _advance(self) -> None:
        """Decide, append what was recorded since the last time, and do what follows from it."""
        self._decide()
        if self._batch:
            self._append()
        self._act()
        self._snapshot()
        self._write_best(final=False)
        self._publish()

    def _receive(self, seconds: float | None) -> list[_Message]:
        """Return all messages that are there, waiting for the first one at most so long (None: for ever)."""
        messages = list(self._backlog)
        self._backlog.clear()
        try:
            if not messages:
                messages.append(self._clock.get(self._inbox, seconds))
            while True:
                messages.append(self._inbox.get_nowait())
        except Empty:
            pass
        if self._stop_asked:
            raise _Stopped
        return messages

    def _pause(self, seconds: float) -> None:
        """Wait, but not for messages: they are kept. Ends with _Stopped when that is asked for."""
        end = self._clock.monotonic() + seconds
        while (left := end - self._clock.monotonic()) > 0:
            try:
                message = self._clock.get(self._inbox, left)
            except Empty:
                break
            if self._stop_asked:
                raise _Stopped
            self._backlog.append(message)

    def _seconds_until_due(self) -> float | None:
        now = self._clock.monotonic()
        if self._proposals() > 0 and not self._suspended and self._trouble is None:
            return 0.0
        due = [at for at, _ in self._timers]
        if self._trouble is not None:
            waiting = any(flight.phase is _Phase.WAITING for flight in self._flights.values())
            due.append(self._trouble.retry_at if waiting else self._trouble.over_at)
        if self._blocked:
            due.append(max(self._last_progress + _QUIET_SECONDS, now + 1.0))
        limit = decisions.deadline(self._state.core)
        if limit is not None and (left := limit - self._clock.now()) > timedelta(0):
            due.append(now + left.total_seconds())
        best = self._state.core.best
        if best is not None and best.sample != self._best_written:
            due.append(self._best_written_at + _BEST_EVERY_SECONDS)
        return max(0.0, min(due) - now) if due else None

    def _run_timers(self) -> None:
        now = self._clock.monotonic()
        due = [action for at, action in self._timers if at <= now]
        self._timers = [(at, action) for at, action in self._timers if at > now]
        for action in due:
            action()

    def _take(self, message: _Message) -> None:
        match message:
            case Runs():
                self._started(message.launch)
            case Blocked():
                if self._awaited(message.launch) is not None:
                    self._blocked[message.launch] = message
            case Ended():
                self._ended(message)
            case _Fetched():
                self._fetched(message)
            case _Changed():
                self._change(message.experiment)
            case _Superseded():
                raise Fenced("the experiment's status is written by another controller")
            case _Broken():
                raise message.error
            case None:
                pass

    def _awaited(self, launch: int) -> int | None:
        """Return the sample of a launch that is out, or None: it was cancelled, has ended, or is an earlier attempt.

        Events cross each other: a child may be said to be blocked after its end was taken.
        """
        sample = self._samples.get(launch)
        return sample if sample is not None and self._flights[sample].phase is _Phase.LAUNCHED else None

    def _started(self, launch: int) -> None:
        sample = self._awaited(launch)
        if sample is None:
            return
        self._flights[sample].running = True
        self._blocked.pop(launch, None)
        self._last_progress = self._clock.monotonic()

    def _ended(self, ended: Ended) -> None:
        sample = self._awaited(ended.launch)
        if sample is None:
            return
        self._last_progress = self._clock.monotonic()
        _log.debug("child ended", sample=sample, launch=ended.launch, end=ended.end, message=ended.message)
        self._fetch(sample, ended.launch, ended.end, ended.message)

    def _fetch(self, sample: int, launch: int, end: End | None, message: str, tries: int = 0) -> None:
        """Ask for a sample's result; the answer comes as a message."""
        self._flights[sample] = _Flight(_Phase.ENDED)
        self._blocked.pop(launch, None)

        def ask() -> None:
            data: bytes | TooLarge | None = None
            error: StoreError | None = None
            try:
                data = self._store.get(names.result_key(sample), limit=MAX_RESULT_BYTES)
            except TooLarge as caught:
                # An answer like any other: this is what the trainer wrote.
                data = caught
            except StoreError as caught:
                error = caught
            self._inbox.put(_Fetched(sample, launch, end, message, data, error, tries))

        self._pool.submit(ask).add_done_callback(self._report_broken)

    def _report_broken(self, future: Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._inbox.put(_Broken(error))

    def _fetched(self, fetched: _Fetched) -> None:
        core, sample, launch = self._state.core, fetched.sample, fetched.launch
        if fetched.error is not None:
            if not fetched.error.retryable:
                raise fetched.error
            self._store_in_trouble(fetched.error)
            pause = _STORE_PAUSES_SECONDS[min(fetched.tries, len(_STORE_PAUSES_SECONDS) - 1)]
            again = (sample, launch, fetched.end, fetched.message, fetched.tries + 1)
            self._timers.append((self._clock.monotonic() + pause, lambda: self._fetch(*again)))
            return
        self._store_problem = None
        if fetched.end is None and fetched.data is None:
            # Recorded, but its Job was never created, or is long gone: once more under the same number.
            if self._suspended:
                self._flights[sample].phase = _Phase.PARKED
            else:
                self._launch(sample)
            return
        trainer = self._experiment.spec.trainer
        end = fetched.end or End.VANISHED
        verdict = decisions.judge(
            core, sample, end, fetched.message, fetched.data, trainer.attempts, trainer.early_stopping
        )
        match verdict:
            case Observed() | Lost():
                _log.info("sample done", sample=sample, record=verdict.type, **_summary(verdict))
                self._record(verdict)
                self._works(launch)
                del self._flights[sample]
                del self._samples[launch]
            case decisions.Retry():
                _log.info("another attempt", sample=sample, end=end, message=fetched.message, **vars(verdict))
                self._works(launch)
                if self._suspended:
                    self._flights[sample] = _Flight(_Phase.PARKED, failures=verdict.failures)
                else:
                    self._relaunch(sample, verdict.failures)
            case decisions.AwaitCure():
                _log.warning("waiting for a cure", sample=sample, reason=verdict.reason, message=verdict.message)
                now = self._clock.monotonic()
                self._trouble = decisions.troubled(self._trouble, verdict, launch, core.launched, now)
                self._flights[sample].phase = _Phase.PARKED if self._suspended else _Phase.WAITING

    def _works(self, launch: int) -> None:
        """Take note that a child ended for reasons of its own: a trouble that it was to try out is over."""
        if self._trouble is not None and launch >= self._trouble.first_launch:
            self._trouble = None

    # ------------------------------------------------------------ changes of the spec

    @property
    def _suspended(self) -> bool:
        return self._experiment.spec.suspend

    def _change(self, experiment: NASExperiment) -> None:
        before, self._experiment = self._experiment.spec, experiment
        self._reconfigure()
        spec = experiment.spec
        if spec.suspend:
            if not before.suspend:
                self._suspend()
        elif before.suspend:
            self._resume()
        elif _pod(spec.trainer) != _pod(before.trainer):
            self._renew_never_started()

    def _reconfigure(self) -> None:
        core, spec = self._state.core, self._experiment.spec
        if (core.parallelism, core.budget) != (spec.parallelism, spec.budget):
            self._record(Reconfigured(parallelism=spec.parallelism, budget=spec.budget))

    def _suspend(self) -> None:
        """End all children. What they were doing is done again after the suspension, from their checkpoints."""
        _log.info("suspended")
        for sample, flight in self._flights.items():
            if flight.phase is _Phase.LAUNCHED:
                self._cancel(sample)
                flight.phase = _Phase.PARKED
            elif flight.phase is _Phase.WAITING:
                flight.phase = _Phase.PARKED
        self._trouble = None

    def _resume(self) -> None:
        _log.info("resumed")
        for sample, flight in list(self._flights.items()):
            if flight.phase is _Phase.PARKED and flight.failures is not None:
                self._relaunch(sample, flight.failures)
            elif flight.phase is _Phase.PARKED:
                self._repeat(sample)

    def _renew_never_started(self) -> None:
        """Give children that could not start a new attempt from the changed template."""
        for sample, flight in list(self._flights.items()):
            if flight.phase is _Phase.LAUNCHED and not flight.running:
                self._cancel(sample)
                self._repeat(sample)
            elif flight.phase is _Phase.WAITING:
                self._relaunch(sample)
        self._trouble = None

    def _cancel(self, sample: int) -> None:
        launch = self._state.core.open[sample].launch
        if launch is not None:
            self._effects.cancel.append(launch)
            self._effects.launch = [child for child in self._effects.launch if child.number != launch]
            self._blocked.pop(launch, None)

    def _repeat(self, sample: int) -> None:
        """Give a sample another attempt, unless its cancelled one has left a result."""
        launch = self._state.core.open[sample].launch
        if launch is None:
            self._relaunch(sample)
        else:
            self._fetch(sample, launch, End.VANISHED, "")

    # ------------------------------------------------------------ decisions

    def _proposals(self) -> int:
        return decisions.may_propose(self._state.core, self._clock.now())

    def _decide(self) -> None:
        self._conclude()
        if self._state.core.outcome is not None or self._suspended:
            return
        now = self._clock.monotonic()
        waiting = [sample for sample, flight in self._flights.items() if flight.phase is _Phase.WAITING]
        if waiting and (self._trouble is None or now >= self._trouble.retry_at):
            for sample in waiting:
                self._relaunch(sample)
        elif not waiting and self._trouble is not None and now >= self._trouble.over_at:
            self._trouble = None
        if self._trouble is None:
            # Counted anew each time: a sample whose result is known takes no room, but is of the budget.
            for _ in range(_PROPOSALS_AT_ONCE):
                if self._proposals() == 0:
                    break
                self._propose()
            # The last sample may have had its result at once: no event would wake us for the end.
            self._conclude()

    def _conclude(self) -> None:
        """Record the end of the search, or of the experiment, if it has come."""
        final_training = self._experiment.spec.final_training
        finished = decisions.conclusion(self._state.core, self._clock.now(), final_training)
        if finished is None:
            return
        if isinstance(finished, SearchEnded):
            _log.info("final training begins", reason=finished.reason, message=finished.message)
            self._record(finished)
            return
        for sample, flight in self._flights.items():
            if flight.phase is _Phase.LAUNCHED:
                self._cancel(sample)
        self._effects.launch.clear()
        _log.info("search ends", outcome=finished.outcome, reason=finished.reason, message=finished.message)
        self._record(finished)

    def _propose(self) -> None:
        core = self._state.core
        if core.final is not None:
            sample = core.next_sample
            architecture, run = core.final.next(self._experiment.spec.trainer.optimizer)
            self._record(FinalProposed(sample=sample, architecture=architecture, run=run))
            self._relaunch(sample)
            return
        proposed = self._state.propose()
        known = self._state.known(proposed.architecture)
        self._record(proposed)
        if known is None:
            self._relaunch(proposed.sample)
        else:
            observed = decisions.reuse(self._state.core, proposed.sample, known)
            _log.info("sample reused", sample=proposed.sample, of=known.sample, reward=known.reward)
            self._record(observed)

    def _relaunch(self, sample: int, failures: int | None = None) -> None:
        """Record a sample's next attempt, and launch it once that is in the log.

        ``failures`` counts the attempts that count against ``trainer.attempts``, where their number has changed.
        """
        core = self._state.core
        current = core.open[sample]
        if failures is None:
            failures = current.failures
        self._samples.pop(-1 if current.launch is None else current.launch, None)
        stop = decisions.stop_rule(core, self._experiment.spec.trainer.early_stopping)
        self._record(
            Launched(launch=core.launched, samples=(sample,), attempt=current.attempt + 1, failures=failures, stop=stop)
        )
        self._launch(sample)

    def _launch(self, sample: int) -> None:
        """Have a recorded launch created after the next append."""
        current = self._state.core.open[sample]
        if current.launch is None:
            raise AssertionError(f"sample {sample} has no recorded launch")
        self._samples[current.launch] = sample
        self._flights[sample] = _Flight(_Phase.LAUNCHED)
        self._effects.launch.append(
            Launch(
                current.launch,
                trainer_input(
                    self._experiment,
                    self._location,
                    sample,
                    current.attempt,
                    current.architecture,
                    current.final,
                    current.stop,
                ),
            )
        )

    def _record(self, record: Record) -> None:
        """Fold a record and have it appended. Nobody sees the state before it is in the log."""
        if isinstance(record, Launched | Observed | Lost | SearchEnded | Finished):
            record = record.model_copy(update={"moment": self._clock.now()})
        self._state.apply(record)
        self._batch.append(record)

    # ------------------------------------------------------------ effects

    def _append(self) -> None:
        """Write the batch as one object, however long the store takes to be well again.

        Raises:
            Fenced: another process writes the log.
            StoreError: the store refuses, and only its owner can change that.
            _Stopped: while waiting.
        """
        tries = 0
        while True:
            try:
                self._appender.append(self._batch)
            except StoreError as error:
                # Before the first status there is nothing to show the problem with: the caller has to.
                if not error.retryable or self._durable is None:
                    raise
                self._store_in_trouble(error)
                self._show(self._durable.model_copy(update={"problem": self._store_problem}))
                self._pause(_STORE_PAUSES_SECONDS[min(tries, len(_STORE_PAUSES_SECONDS) - 1)])
                tries += 1
            else:
                self._batch = []
                self._store_problem = None
                return

    def _act(self) -> None:
        effects, self._effects = self._effects, _Effects()
        for launch in effects.cancel:
            self._executor.cancel(launch)
        for child in effects.launch:
            self._executor.launch(child)

    def _snapshot(self) -> None:
        """Write a snapshot when it is time; the state is exactly what the log says at this point."""
        core = self._state.core
        if core.records - self._snapshot_records < self._snapshot_every:
            return
        self._snapshot_records = core.records
        data = snapshots.encode(self._state, self._appender.digest)
        try:
            self._store.put_if_absent(names.snapshot_key(self._appender.sequence), data)
        except StoreError as error:
            # The log has everything; only the next start takes longer.
            _log.warning("no snapshot", error=str(error))

    def _write_best(self, *, final: bool) -> None:
        """Write ``best/`` when it is time: the search's best, and at the end the final training's winner."""
        best, now = self._state.core.best, self._clock.monotonic()
        if final and (stage := self._state.core.final) is not None and stage.winner is not None:
            self._patiently(self._write_winner)
            return
        if best is None or best.sample == self._best_written:
            return
        if not final and now < self._best_written_at + _BEST_EVERY_SECONDS:
            return
        self._best_written_at = now
        if final:
            self._patiently(lambda: self._write_leader(best))
        else:
            try:
                self._write_leader(best)
            except StoreError as error:
                # It comes again in a while.
                _log.warning("best not written", error=str(error))
                return
        self._best_written = best.sample

    def _write_architecture(self, architecture: Architecture, epsilon: str | None = None) -> None:
        """Write an architecture and its code; ``epsilon`` is batch normalisation's, where it was not the usual."""
        dataset = self._experiment.spec.trainer.dataset
        channels = 1 if dataset.digits is not None else 3
        classes = 100 if dataset.cifar100 is not None else 10
        changed = {} if epsilon is None else {"epsilon": float(epsilon)}
        module = architecture_source(architecture, in_channels=channels, classes=classes, **changed)
        self._store.put(names.BEST_ARCHITECTURE, architecture.canonical().encode())
        if module is not None:
            self._store.put(names.BEST_MODULE, module.encode())

    def _write_leader(self, best: BestSample) -> None:
        """Write the search's best, which nobody has trained for longer."""
        self._write_architecture(best.architecture)
        self._write_provenance(best.sample, best.architecture, best.reward, best.metric)

    def _write_winner(self) -> None:
        """Write the final training's winner with what its test has left: the network, and how to feed it."""
        stage = self._state.core.final
        assert stage is not None
        winner = stage.winner
        assert winner is not None and winner.run is not None and winner.metric is not None
        self._write_architecture(winner.architecture, winner.run.settings.batch_norm_epsilon)
        tested: dict[str, Any] = {}
        if stage.test_sample is not None and stage.test_metric is not None:
            for source, target in (
                (names.vocabulary_key, names.BEST_VOCABULARY),
                (names.preprocessing_key, names.BEST_PREPROCESSING),
                (names.onnx_key, names.BEST_ONNX),
                (names.weights_key, names.BEST_WEIGHTS),
            ):
                data = self._store.get(source(stage.test_sample))
                # A text has no pixels, an image no words; and a user's own trainer leaves what it wants.
                if data is not None:
                    self._store.put(target, data)
            training = self._store.get(names.training_key(stage.test_sample))
            tested = {
                "test_metric": stage.test_metric,
                "test_sample": stage.test_sample,
                "training": None if training is None else json.loads(training),
            }
        self._write_provenance(winner.sample, winner.architecture, winner.reward, winner.metric, **tested)

    def _write_provenance(
        self, sample: int, architecture: Architecture, reward: float, metric: float, **tested: Any
    ) -> None:
        """Write where all of ``best/`` comes from; it must be the last to be written."""
        metadata, spec = self._experiment.metadata, self._experiment.spec
        provenance = Provenance(
            experiment=metadata.name,
            namespace=metadata.namespace,
            uid=metadata.uid,
            sample=sample,
            digest=architecture.digest,
            metric_name=spec.objective.metric,
            goal=spec.objective.goal,
            reward=reward,
            validation_metric=metric,
            trainer_image=spec.trainer.image,
            software=nas_api.__version__,
            **tested,
        )
        self._store.put(names.BEST_PROVENANCE, provenance.model_dump_json(by_alias=True).encode())

    def _patiently(self, write: Callable[[], None]) -> None:
        """Do what the end must not be without, however long the store takes to be well again.

        Raises:
            StoreError: the store refuses, and only its owner can change that.
            _Stopped: while waiting.
        """
        tries = 0
        while True:
            try:
                write()
            except StoreError as error:
                if not error.retryable:
                    raise
                self._store_in_trouble(error)
                self._pause(_STORE_PAUSES_SECONDS[min(tries, len(_STORE_PAUSES_SECONDS) - 1)])
                tries += 1
            else:
                return

    # ------------------------------------------------------------ status

    def _store_in_trouble(self, error: StoreError) -> None:
        _log.warning("store in trouble", reason=error.reason, error=str(error))
        self._store_problem = Problem(reason=error.reason, message=str(error)[:4096])

    def _problem(self) -> Problem | None:
        if self._state.core.outcome is not None:
            return None
        if self._store_problem is not None:
            return self._store_problem
        if self._trouble is not None:
            return Problem(reason=self._trouble.reason, message=self._trouble.message[:4096])
        quiet = self._clock.monotonic() >= self._last_progress + _QUIET_SECONDS
        if self._blocked and quiet and not any(flight.running for flight in self._flights.values()):
            first = self._blocked[min(self._blocked)]
            return Problem(reason=first.reason, message=first.message[:4096])
        return None

    def _publish(self) -> None:
        running = sum(flight.phase is _Phase.LAUNCHED for flight in self._flights.values())
        status = search_status(
            self._state,
            running=0 if self._state.core.outcome is not None else running,
            best_uri=self._store.uri(names.BEST_ARCHITECTURE),
            problem=self._problem(),
        )
        self._durable = status
        self._show(status)

    def _show(self, status: SearchStatus) -> None:
        if status != self._shown:
            self._sink.publish(status)
            self._shown = status


def _pod(trainer: TrainerSpec) -> TrainerSpec:
    """Return what of a trainer's spec shows in its pods."""
    return trainer.model_copy(update={"attempts": 1})


def _summary(record: Observed | Lost) -> dict[str, object]:
    if isinstance(record, Observed):
        stopped = {} if record.stopped is None else {"stopped": f"after {record.stopped.epoch} of {record.stopped.of}"}
        return {"reward": record.reward, "metrics": record.metrics, **stopped}
    return {"reason": record.reason, "message": record.message}
