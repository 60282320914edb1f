"""The search itself: one thread that turns events into records, and records into effects.

The order that makes it safe to die anywhere: decide, append to the log, and only then launch, cancel or
tell. Learning happens with the decision, before the append, so that one object holds an observation and
the samples that follow from it; if the append fails, so does the process, and what it had learnt is gone
with it. On the way back up: list the children, fetch results, and launch what is recorded but lost.
"""

from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

import structlog

from nas_api import names
from nas_api.child import StoreLocation
from nas_api.child_job import made_from
from nas_api.experiment import LogHead, NASExperiment, Problem
from nas_controller import decisions, earlier
from nas_controller.beginning import Beginning
from nas_controller.best import BestWriter
from nas_controller.clock import SYSTEM_CLOCK, Clock
from nas_controller.decider import Decider
from nas_controller.earlier import FindEarlier
from nas_controller.executor import Admitted, Blocked, Ended, Event, Executor, Outdated, Queued, Running
from nas_controller.inbox import Inbox, Stopped
from nas_controller.journal import Journal
from nas_controller.launches import Launches
from nas_controller.policies.factory import make_policy
from nas_controller.results import Answer, Broken, Results
from nas_controller.state import Core, MakePolicy, SearchState
from nas_controller.status import Announcer, StatusSink, search_status
from nas_controller.tenure import Tenure
from nas_log.errors import Fenced
from nas_log.records import Platform
from nas_store import Store
from nas_store.errors import StoreError

_log = structlog.get_logger()

_BEST_EVERY_SECONDS = 30.0
# What nobody has asked for so long is asked whether it is there.
_STORE_EVERY_SECONDS = 60.0
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


@dataclass(frozen=True)
class _Changed:
    experiment: NASExperiment


class _Superseded:
    """Somebody has learnt that another controller is at work."""


_Message = Event | Answer | _Changed | _Superseded | Broken


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
        pool: futures.Executor,
        make_policy: MakePolicy = make_policy,
        find_earlier: FindEarlier = earlier.find,
        clock: Clock = SYSTEM_CLOCK,
        snapshot_every: int = 200,
        anchor: LogHead | None = None,
        platform: Platform | None = None,
        tenure: Tenure | None = None,
    ) -> None:
        """Prepare a search; does no I/O.

        Args:
            experiment: the manifest; ``spec.storage`` is not read here.
            store: where the log, the results, the snapshots and ``best/`` are.
            location: the same place as children are told it.
            executor: runs the children; ``run`` calls its ``start``, ``launch`` and ``cancel``.
            sink: is told every change of the status.
            pool: fetches results from the store; ``run`` shuts it down.
            make_policy: builds the policy in its state before the first sample.
            find_earlier: finds the experiment that a warm start or a fixed architecture names.
            clock: whose time it is.
            snapshot_every: records between two snapshots of the learner.
            anchor: an object that the log must have, as the experiment's status says; None: nobody knows of one.
            platform: what this process runs on, for the log; None: the log says nothing of it.
            tenure: is told of the log, and asked before ``best/`` is written; None: nobody else asks it.
        """
        self._experiment = experiment
        self._store = store
        self._location = location
        self._executor = executor
        self._pool = pool
        self._clock = clock
        self._inbox: Inbox[_Message] = Inbox(self._clock)
        self._journal = Journal(store, make_policy, self._clock, snapshot_every, platform)
        self._launches = Launches()
        self._beginning = Beginning(self._journal, location, find_earlier, self._clock)
        self._decider = Decider(self._journal, self._launches, self._clock)
        self._results = Results(store, pool, self._inbox.put)
        self._announcer = Announcer(sink)
        self._anchor = anchor
        self._tenure = Tenure(store, clock) if tenure is None else tenure
        self._tenure.on_end(self.superseded)
        self._best = BestWriter(store, self._tenure.look)
        self._best_written: int | None = None
        self._best_written_at = float("-inf")
        self._store_asked_at = float("-inf")
        """When the store last answered, or was in trouble."""

    def run(self) -> Exit:
        """Recover from the log, search until the end, and return why it ended.

        Raises:
            StoreError: the log could not be read, or the store refuses what only its owner can cure; a new
                Search on the same log goes on once it is cured.
            LogDamaged: an object of the log is missing or was changed.
            LogTampered: the log does not have the anchor.
            SearchChanged: the log belongs to a search with another space, searcher or objective.
            EarlierMissing: the experiment to begin from has not left yet what is needed; a new Search may go on later.
            EarlierUnsuitable: what it has left is of no use here.
        """
        try:
            if self._begin():
                self._inherit()
                self._take_stock()
                self._advance()
                while self._core.outcome is None:
                    for message in self._inbox.receive(self._seconds_until_due()):
                        self._take(message)
                    self._launches.ask_again(self._clock.monotonic())
                    self._ask()
                    self._advance()
            else:
                # Whoever ended it may have died before it handed over or told.
                self._hand_over()
                self._publish()
        except Stopped:
            return Exit.STOPPED
        except Fenced as error:
            _log.warning("fenced: another controller goes on with this search", error=str(error))
            self._tenure.end()
            return Exit.FENCED
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
        return Exit.FINISHED

    @property
    def state(self) -> SearchState:
        """The fold of what is in the log, once ``run`` has returned FINISHED."""
        return self._journal.state

    def stop(self) -> None:
        """Make ``run`` return STOPPED soon. May be called from a signal handler. Children go on."""
        self._inbox.stop()

    def change(self, experiment: NASExperiment) -> None:
        """Take over a newer spec: suspend, parallelism, budget and trainer count; the rest is immutable."""
        self._inbox.put(_Changed(experiment))

    def superseded(self) -> None:
        """Make ``run`` return FENCED soon: somebody has learnt that another controller is at work."""
        self._inbox.put(_Superseded())

    @property
    def _core(self) -> Core:
        return self._journal.state.core

    # ------------------------------------------------------------ the beginning

    def _begin(self) -> bool:
        """Recover and begin a new epoch; return False when the search has ended before."""
        for tries in range(_START_TRIES):
            self._inbox.check()
            self._journal.recover(self._anchor)
            self._tenure.read(-1 if self._journal.head is None else self._journal.head.sequence)
            if not self._beginning.record(self._experiment.spec):
                return False
            self._decider.reconfigure(self._experiment.spec)
            try:
                self._append()
            except Fenced:
                # Whom we replace has appended since we read: look again. We are the newer one.
                if tries + 1 == _START_TRIES:
                    raise
            else:
                core = self._core
                held = "none: the log is taken as it is" if self._anchor is None else self._anchor.sequence
                _log.info("search begins", epoch=core.epoch, records=core.records, open=len(core.open), anchor=held)
                return True
        raise AssertionError("the last try returns or raises")

    def _inherit(self) -> None:
        """Take over the samples of the earlier experiment that are not in our log yet, a chunk an object."""
        for _ in self._beginning.inherit(self._experiment.spec):
            self._append()
            self._journal.snapshot()
            self._publish()
            self._inbox.check()

    def _take_stock(self) -> None:
        """Find out what has become of the open samples: first the children, then their results."""
        existing = self._executor.start(self._inbox.put)
        samples: dict[int, list[int]] = {}
        for sample, current in self._core.open.items():
            if current.launch is not None:
                samples.setdefault(current.launch, []).append(sample)
        for launch, own in samples.items():
            self._launches.recovered(launch, tuple(own), exists=launch in existing)
        for launch in existing - samples.keys():
            # Of one that has ended nothing is left to be done; any other trains for nobody.
            self._executor.cancel(launch)
        self._ask()
        if self._experiment.spec.suspend:
            self._suspend()

    # ------------------------------------------------------------ one step

    def _advance(self) -> None:
        """Decide, append what was recorded since the last time, and do what follows from it."""
        self._decider.decide(self._experiment.spec)
        if self._journal.ahead:
            self._append()
        self._act()
        self._journal.snapshot()
        # Before the status says Complete: whoever waits for that takes best/ at once.
        if self._core.outcome is None:
            self._keep_best()
            self._look_after_store()
        else:
            self._hand_over()
        self._publish()

    def _seconds_until_due(self) -> float | None:
        """Return how long nothing is to be done if nothing happens; None: for ever."""
        core, now = self._core, self._clock.monotonic()
        if self._decider.can_propose(self._experiment.spec):
            return 0.0
        due = [self._launches.next_look(now)]
        limit = decisions.deadline(core)
        if limit is not None and (left := limit - self._clock.now()) > timedelta(0):
            due.append(now + left.total_seconds())
        if core.best is not None and core.best.sample != self._best_written:
            due.append(self._best_written_at + _BEST_EVERY_SECONDS)
        due.append(self._next_look_at_store())
        soonest = min((at for at in due if at is not None), default=None)
        return None if soonest is None else max(0.0, soonest - now)

    def _next_look_at_store(self) -> float | None:
        """Return when to look after the store, on the monotonic clock; None: nothing that needs it is under way."""
        is_needed = self._core.open and not self._launches.suspended
        return self._store_asked_at + _STORE_EVERY_SECONDS if is_needed else None

    def _take(self, message: _Message) -> None:
        now = self._clock.monotonic()
        match message:
            case Running():
                self._launches.running(message.launch, now)
            case Blocked():
                self._launches.blocked(message)
            case Queued():
                self._launches.queued(message)
            case Admitted():
                self._launches.admitted(message.launch, now)
            case Ended():
                _log.debug("launch ended", launch=message.launch, end=message.end, message=message.message)
                self._launches.ended(message, now)
            case Outdated():
                self._launches.renew(message.launch)
            case Answer():
                self._take_answer(message)
            case _Changed():
                self._take_change(message.experiment)
            case _Superseded():
                raise Fenced("the experiment's status is written by another controller")
            case Broken():
                raise message.error
        self._ask()

    def _ask(self) -> None:
        """Ask the store what has become of children that have ended."""
        tests = frozenset[int]()
        if self._core.final is not None:
            runs = {sample: current.final for sample, current in self._core.open.items()}
            tests = frozenset(sample for sample, run in runs.items() if run is not None and run.settings.test)
        self._results.ask(self._launches.take_questions(), tests)

    def _take_answer(self, answer: Answer) -> None:
        error = answer.error
        if error is None:
            self._store_works()
            self._decider.settle(self._experiment.spec, answer)
        elif error.retryable:
            self._store_failed(error)
            self._launches.unanswered(answer.question, self._clock.monotonic())
        else:
            raise error

    # ------------------------------------------------------------ changes of the spec

    def _take_change(self, experiment: NASExperiment) -> None:
        before, self._experiment = self._experiment.spec, experiment
        self._decider.reconfigure(experiment.spec)
        spec = experiment.spec
        if spec.suspend:
            if not before.suspend:
                self._suspend()
        elif before.suspend:
            _log.info("resumed")
            self._launches.resume()
        elif made_from(before) != made_from(spec):
            self._launches.renew_never_started()

    def _rest_meanwhile(self) -> None:
        """End the children where that has been asked for since: it needs no log, and somebody wants their nodes."""
        asked = [message.experiment for message in self._inbox.waiting() if isinstance(message, _Changed)]
        if asked and asked[-1].spec.suspend and not self._launches.suspended:
            # What was to be launched once it is recorded is not: only cancellations are left.
            self._suspend()
            self._act()
            self._announcer.rests()

    def _suspend(self) -> None:
        _log.info("suspended")
        self._launches.suspend()

    # ------------------------------------------------------------ effects

    def _append(self) -> None:
        """Write what was recorded as one object, however long the store takes to be well again.

        Raises:
            Fenced: another process writes the log.
            StoreError: the store refuses, and only its owner can change that.
            Stopped: while waiting.
        """
        if self._announcer.begun:
            self._patiently(self._append_once)
        else:
            # Before the first status there is nothing to show a problem with: the caller has to.
            self._append_once()
            self._store_works()

    def _append_once(self) -> None:
        self._tenure.appending()
        self._journal.append()
        if self._journal.head is not None:
            self._tenure.appended(self._journal.head.sequence)

    def _patiently(self, write: Callable[[], None]) -> None:
        """Do what the search cannot go on without, however long the store takes to be well again.

        Raises:
            StoreError: the store refuses, and only its owner can change that.
            Stopped: while waiting.
        """
        tries = 0
        while True:
            try:
                write()
            except StoreError as error:
                if not error.retryable:
                    raise
                self._store_failed(error)
                self._rest_meanwhile()
                self._inbox.pause(decisions.store_pause(tries))
                tries += 1
            else:
                self._store_works()
                return

    def _act(self) -> None:
        orders = self._launches.take_orders()
        for launch in orders.cancel:
            self._executor.cancel(launch)
        for launch, samples in orders.launch:
            made = decisions.children(self._core, self._experiment, self._location, launch, samples)
            self._executor.launch(replace(made, again=launch in orders.again))

    def _keep_best(self) -> None:
        """Write the search's best so far when it is another, and long enough after the one before."""
        leader, now = self._core.best, self._clock.monotonic()
        if leader is None or leader.sample == self._best_written or now < self._best_written_at + _BEST_EVERY_SECONDS:
            return
        self._best_written_at = now
        try:
            self._best.leader(self._experiment, leader)
        except StoreError as error:
            # It comes again in a while.
            _log.warning("best not written", error=str(error))
            if error.retryable:
                self._store_failed(error)
            return
        self._store_works()
        self._best_written = leader.sample

    def _look_after_store(self) -> None:
        """Look at the log where nobody has asked the store for long.

        Children that cannot write what they have trained wait themselves, and nothing comes from them that would be
        written: for an hour nobody would hear why.

        Raises:
            Fenced: another process writes the log.
            StoreError: the store refuses, and only its owner can change that.
        """
        due = self._next_look_at_store()
        if due is None or self._clock.monotonic() < due:
            return
        try:
            if not self._tenure.look():
                raise Fenced("another controller has written the log's next object")
        except StoreError as error:
            if not error.retryable:
                raise
            self._store_failed(error)
        else:
            self._store_works()

    def _hand_over(self) -> None:
        """Write what is best at the end: the final training's winner, or the search's best where there is none."""
        leader, stage = self._core.best, self._core.final
        if stage is not None and stage.winner is not None:
            images = {} if stage.test_sample is None else self._executor.images(stage.test_sample)
            self._patiently(lambda: self._best.winner(self._experiment, stage, images))
        elif leader is not None:
            # Whoever was before us may have written since: this is the last word.
            self._patiently(lambda: self._best.leader(self._experiment, leader))

    # ------------------------------------------------------------ status

    def _store_works(self) -> None:
        self._store_asked_at = self._clock.monotonic()
        self._announcer.store_works()

    def _store_failed(self, error: StoreError) -> None:
        _log.warning("store in trouble", reason=error.reason, error=str(error))
        self._store_asked_at = self._clock.monotonic()
        self._announcer.store_failed(error.reason, str(error))

    def _problem(self) -> Problem | None:
        if self._core.outcome is not None:
            return None
        return self._announcer.store_problem or self._launches.problem(self._clock.monotonic())

    def _publish(self) -> None:
        self._announcer.publish(
            search_status(
                self._journal.state,
                running=0 if self._core.outcome is not None else self._launches.samples_out,
                queued=0 if self._core.outcome is not None else self._launches.samples_queued,
                best_uri=self._store.uri(names.BEST_ARCHITECTURE),
                problem=self._problem(),
                head=self._journal.head,
            )
        )
