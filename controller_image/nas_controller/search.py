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
from nas_api.trainer_input import trainer_input
from nas_controller import decisions, earlier, snapshots
from nas_controller.clock import Clock, SystemClock
from nas_controller.earlier import FindEarlier
from nas_controller.errors import EarlierUnsuitable, SearchChanged
from nas_controller.executor import Blocked, End, Ended, Event, Executor, Launch, Running
from nas_controller.policies.factory import make_policy
from nas_controller.recovery import recover
from nas_controller.state import BestSample, MakePolicy, SearchState
from nas_controller.status import SearchStatus, StatusSink, search_status
from nas_log.errors import Fenced
from nas_log.log import Log
from nas_log.records import (
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


class Exit(StrEnum):
    """Why ``Search.run`` returned."""

    FINISHED = "Finished"
    """The log has its Finished record; the last status that was published has the outcome."""
    STOPPED = "Stopped"
    """``stop`` was called; the same search goes on when it is run again."""
    FENCED = "Fenced"
    """Another process writes this log now, and this one must write nothing any more."""


class _Phase(StrEnum):
    """Where a launch is, as far as this process knows."""

    OUT = "Out"
    """The executor has it."""
    ENDED = "Ended"
    """It has ended; its results are being fetched."""
    CANCELLED = "Cancelled"
    """A suspension has ended it: once resumed, its results are fetched, for it may have left some."""


@dataclass
class _Flight:
    """The newest launch of some open samples."""

    samples: tuple[int, ...]
    phase: _Phase
    running: bool = False
    """The executor has seen it run."""


@dataclass(frozen=True)
class _Fetched:
    """The answer to the question for a launch's results; ``end`` None: the launch was never seen."""

    launch: int
    end: End | None
    message: str
    results: dict[int, bytes | TooLarge | None]
    """By sample."""
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
        """By launch. Open samples that are in none wait for an equal one, or are in one of the next two."""
        self._due: dict[int, decisions.Retry] = {}
        """Samples that get another attempt as soon as the search is not suspended."""
        self._waiting: set[int] = set()
        """Samples that get another attempt once the environment is cured."""
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

    def run(self) -> Exit:
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
            else:
                # Whoever ended it may have died before it handed over or told.
                self._write_best(final=True)
                self._publish()
        except _Stopped:
            return Exit.STOPPED
        except Fenced as error:
            _log.warning("fenced: another controller goes on with this search", error=str(error))
            return Exit.FENCED
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
        return Exit.FINISHED

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
        samples: dict[int, list[int]] = {}
        for sample, current in self._state.core.open.items():
            if current.launch is not None:
                samples.setdefault(current.launch, []).append(sample)
        for launch, own in samples.items():
            self._flights[launch] = _Flight(tuple(own), _Phase.OUT)
            if launch not in existing:
                self._fetch(launch, None, "")
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
        # Before the status says Complete: whoever waits for that takes best/ at once.
        self._write_best(final=self._state.core.outcome is not None)
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
            due.append(self._trouble.retry_at if self._waiting else self._trouble.over_at)
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
            case Running():
                self._started(message.launch)
            case Blocked():
                if self._out(message.launch) is not None:
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

    def _out(self, launch: int) -> _Flight | None:
        """Return a launch that is out, or None: it was cancelled, or has ended.

        Events cross each other: a child may be said to be blocked after its end was taken.
        """
        flight = self._flights.get(launch)
        return flight if flight is not None and flight.phase is _Phase.OUT else None

    def _started(self, launch: int) -> None:
        flight = self._out(launch)
        if flight is None:
            return
        flight.running = True
        self._blocked.pop(launch, None)
        self._last_progress = self._clock.monotonic()

    def _ended(self, ended: Ended) -> None:
        flight = self._out(ended.launch)
        if flight is None:
            return
        self._last_progress = self._clock.monotonic()
        _log.debug("launch ended", launch=ended.launch, samples=flight.samples, end=ended.end, message=ended.message)
        self._fetch(ended.launch, ended.end, ended.message)

    def _fetch(self, launch: int, end: End | None, message: str, tries: int = 0) -> None:
        """Ask for the results of a launch's samples; the answer comes as a message."""
        samples = self._flights[launch].samples
        self._flights[launch] = _Flight(samples, _Phase.ENDED)
        self._blocked.pop(launch, None)

        def ask() -> None:
            results: dict[int, bytes | TooLarge | None] = {}
            error: StoreError | None = None
            try:
                for sample in samples:
                    results[sample] = self._result(sample)
            except StoreError as caught:
                error = caught
            self._inbox.put(_Fetched(launch, end, message, results, error, tries))

        self._pool.submit(ask).add_done_callback(self._report_broken)

    def _result(self, sample: int) -> bytes | TooLarge | None:
        try:
            return self._store.get(names.result_key(sample), limit=MAX_RESULT_BYTES)
        except TooLarge as caught:
            # An answer like any other: this is what the trainer wrote.
            return caught

    def _report_broken(self, future: Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._inbox.put(_Broken(error))

    def _fetched(self, fetched: _Fetched) -> None:
        launch = fetched.launch
        if fetched.error is not None:
            if not fetched.error.retryable:
                raise fetched.error
            self._store_in_trouble(fetched.error)
            pause = _STORE_PAUSES_SECONDS[min(fetched.tries, len(_STORE_PAUSES_SECONDS) - 1)]
            again = (launch, fetched.end, fetched.message, fetched.tries + 1)
            self._timers.append((self._clock.monotonic() + pause, lambda: self._fetch(*again)))
            return
        self._store_problem = None
        if fetched.end is None and all(data is None for data in fetched.results.values()):
            # Recorded, but its Job was never created, or is long gone: once more under the same number.
            if self._suspended:
                self._flights[launch].phase = _Phase.CANCELLED
            else:
                self._launch(launch, self._flights[launch].samples)
            return
        del self._flights[launch]
        for sample, data in fetched.results.items():
            self._judge(sample, launch, fetched.end or End.VANISHED, fetched.message, data)
        if self._waiting.isdisjoint(fetched.results):
            self._works(launch)

    def _judge(self, sample: int, launch: int, end: End, message: str, data: bytes | TooLarge | None) -> None:
        """Record what a launch's end means for one of its samples, or take note that it gets another attempt."""
        core, trainer = self._state.core, self._experiment.spec.trainer
        verdict = decisions.judge(core, sample, end, message, data, trainer.attempts, trainer.early_stopping)
        match verdict:
            case Observed() | Lost():
                _log.info("sample done", sample=sample, record=verdict.type, **_summary(verdict))
                self._record(verdict)
            case decisions.Retry():
                _log.info("another attempt", sample=sample, end=end, message=message, **vars(verdict))
                self._due[sample] = verdict
            case decisions.AwaitCure():
                _log.warning("waiting for a cure", sample=sample, reason=verdict.reason, message=verdict.message)
                now = self._clock.monotonic()
                self._trouble = decisions.troubled(self._trouble, verdict, launch, core.launched, now)
                self._waiting.add(sample)

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
        for launch, flight in self._flights.items():
            if flight.phase is _Phase.OUT:
                self._cancel(launch)
                flight.phase = _Phase.CANCELLED
        self._trouble = None

    def _resume(self) -> None:
        _log.info("resumed")
        for launch, flight in list(self._flights.items()):
            if flight.phase is _Phase.CANCELLED:
                self._fetch(launch, End.VANISHED, "")

    def _renew_never_started(self) -> None:
        """Give children that could not start a new attempt from the changed template."""
        for launch, flight in list(self._flights.items()):
            if flight.phase is _Phase.OUT and not flight.running:
                self._cancel(launch)
                self._fetch(launch, End.VANISHED, "")
        self._trouble = None

    def _cancel(self, launch: int) -> None:
        self._effects.cancel.append(launch)
        self._effects.launch = [child for child in self._effects.launch if child.number != launch]
        self._blocked.pop(launch, None)

    # ------------------------------------------------------------ decisions

    @property
    def _together(self) -> int:
        """How many samples a launch may have; a final training is alone with the device."""
        return 1 if self._state.core.final is not None else self._experiment.spec.trainer.children_per_pod

    def _proposals(self) -> int:
        return decisions.may_propose(self._state.core, self._clock.now(), self._together)

    def _decide(self) -> None:
        self._reuse()
        self._conclude()
        if self._state.core.outcome is not None or self._suspended:
            return
        now = self._clock.monotonic()
        if self._waiting and (self._trouble is None or now >= self._trouble.retry_at):
            for sample in self._waiting:
                self._due[sample] = decisions.Retry(self._state.core.open[sample].failures)
            self._waiting.clear()
        elif not self._waiting and self._trouble is not None and now >= self._trouble.over_at:
            self._trouble = None
        if self._trouble is None:
            # Counted anew each time: a sample whose result is known takes no room, but is of the budget.
            for _ in range(_PROPOSALS_AT_ONCE - _PROPOSALS_AT_ONCE % self._together):
                if self._proposals() == 0:
                    break
                self._propose()
        self._launch_due()
        # The last sample may have had its result at once: no event would wake us for the end.
        self._conclude()

    def _reuse(self) -> None:
        """Observe the samples whose architecture's result is known by now."""
        for observed in decisions.reused(self._state.core):
            _log.info("sample reused", sample=observed.sample, of=observed.reused, reward=observed.reward)
            self._record(observed)

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
        for launch, flight in self._flights.items():
            if flight.phase is _Phase.OUT:
                self._cancel(launch)
        _log.info("search ends", outcome=finished.outcome, reason=finished.reason, message=finished.message)
        self._record(finished)

    def _propose(self) -> None:
        core = self._state.core
        if core.final is None:
            self._record(self._state.propose())
            self._reuse()
        else:
            architecture, run = core.final.next(self._experiment.spec.trainer.optimizer)
            self._record(FinalProposed(sample=core.next_sample, architecture=architecture, run=run))

    def _launch_due(self) -> None:
        """Record a launch for all samples that are to have one, and launch it once that is in the log."""
        core = self._state.core
        stop = decisions.stop_rule(core, self._experiment.spec.trainer.early_stopping)
        for samples, failures in list(decisions.packs(core, self._due, self._together)):
            attempt = core.open[samples[0]].attempt + 1
            launch = core.launched
            self._record(Launched(launch=launch, samples=samples, attempt=attempt, failures=failures, stop=stop))
            self._launch(launch, samples)
        self._due.clear()

    def _launch(self, launch: int, samples: tuple[int, ...]) -> None:
        """Have a recorded launch created after the next append."""
        self._flights[launch] = _Flight(samples, _Phase.OUT)
        inputs = []
        for sample in samples:
            current = self._state.core.open[sample]
            inputs.append(
                trainer_input(
                    self._experiment,
                    self._location,
                    sample,
                    current.attempt,
                    current.architecture,
                    current.final,
                    current.stop,
                )
            )
        self._effects.launch.append(Launch(launch, tuple(inputs)))

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
                self._store_problem = None
                return

    # ------------------------------------------------------------ status

    def _store_in_trouble(self, error: StoreError) -> None:
        _log.warning("store in trouble", reason=error.reason, error=str(error))
        self._store_problem = Problem(reason=error.reason, message=str(error)[:4096])
        if self._durable is not None:
            self._show(self._durable.model_copy(update={"problem": self._store_problem}))

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
        running = sum(len(flight.samples) for flight in self._flights.values() if flight.phase is _Phase.OUT)
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
