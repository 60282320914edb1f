"""The bookkeeping of launches: which are out, what waits for what, what is to be done, and when to look again. Pure.

It is told what has happened and when, in seconds on the monotonic clock, and gives orders: what to cancel, to launch
and to ask the store for. What an end means for a sample is decided elsewhere (``decisions``), and so is who is to be
launched.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from nas_api.experiment import LONGEST_MESSAGE, Problem
from nas_api.reasons import EXPLANATIONS, Reason, queue_words
from nas_controller.decisions import AwaitCure, Retry, Verdict, store_pause
from nas_controller.executor import Blocked, End, Ended, Queued

_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0
# A blocked child is a problem only when nothing else moves: with a quota, one often waits for another.
_QUIET_SECONDS = 10.0
# A child that runs for so long has begun to work: whoever ends it then may have had a reason.
_WORKS_AFTER_SECONDS = 60.0
# So many ends in a row before that are told.
_TOLD_AFTER = 3
# A result may come to be seen a moment after its writer's end.
_LATE_RESULT_LOOKS = 4


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
    phase: _Phase = _Phase.OUT
    running: bool = False
    """The executor has seen it run."""
    ran_since: float | None = None
    """When it was seen to run, if it ever was."""
    disrupted: str | None = None
    """In which words, if it was made to end before it could work."""


@dataclass(frozen=True)
class Question:
    """What the store is asked for when a launch has ended: the results of its samples."""

    launch: int
    samples: tuple[int, ...]
    end: End | None
    """None: the launch was never seen."""
    message: str = ""
    """The child's last words."""
    failures: int = 0
    """How often the store has failed to answer it."""
    looks: int = 0
    """How often it has answered that a result is missing that should be there."""


@dataclass
class Orders:
    """What is to be done once the log has what it follows from: first the cancellations."""

    cancel: list[int] = field(default_factory=list)
    launch: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    """Launches and their samples."""
    again: set[int] = field(default_factory=set)
    """Those of them that an earlier process recorded."""


@dataclass(frozen=True)
class _Trouble:
    """The environment keeps children from working; samples wait, and are tried again after a growing pause."""

    reason: Reason
    message: str
    pause: float
    """Seconds between the newest failure of a new try and the next try."""
    retry_at: float
    """When the waiting samples are launched again."""
    first_launch: int
    """Launches from this number on are new tries: how they end says whether the trouble is over."""

    @property
    def over_at(self) -> float:
        """When the trouble counts as over if no new try has failed by then."""
        return self.retry_at + _LONGEST_PAUSE_SECONDS


@dataclass(frozen=True)
class _Disruption:
    """A sample's children were made to end before they could work, and no other since."""

    count: int
    message: str
    """Of the newest."""

    @property
    def pause(self) -> float:
        """Seconds until the next try; the first one is nothing unusual."""
        return 0.0 if self.count < 2 else min(_FIRST_PAUSE_SECONDS * 2 ** (self.count - 2), _LONGEST_PAUSE_SECONDS)


class Launches:
    """Begins with none out, and not suspended."""

    def __init__(self) -> None:
        self.suspended = False
        self._flights: dict[int, _Flight] = {}
        """By launch. Open samples that are in none wait for an equal one, or are in one of the next two."""
        self._due: dict[int, Retry] = {}
        """Samples that get another attempt as soon as the search is not suspended."""
        self._waiting: dict[int, Retry] = {}
        """Samples that get another attempt once the environment is cured."""
        self._later: dict[int, tuple[float, Retry]] = {}
        """Samples that get another attempt, and when: the ones before were disrupted."""
        self._disruptions: dict[int, _Disruption] = {}
        """By open sample."""
        self._unanswered: list[tuple[float, Question]] = []
        """What the store is asked again, and when."""
        self._trouble: _Trouble | None = None
        self._blocked: dict[int, Blocked] = {}
        self._queued: dict[int, Queued] = {}
        self._last_progress = float("-inf")
        self._questions: list[Question] = []
        self._orders = Orders()

    # ------------------------------------------------------------ what it tells

    def take_questions(self) -> list[Question]:
        """Return what the store is to be asked now, each question once."""
        questions, self._questions = self._questions, []
        return questions

    def take_orders(self) -> Orders:
        """Return what is to be done, each order once."""
        orders, self._orders = self._orders, Orders()
        return orders

    @property
    def due(self) -> Mapping[int, Retry]:
        """Samples that are to get another attempt now."""
        return self._due

    @property
    def in_trouble(self) -> bool:
        """Whether the environment is at fault, so that nothing new is begun."""
        return self._trouble is not None

    @property
    def samples_out(self) -> int:
        """How many samples' children the executor has."""
        return sum(len(flight.samples) for flight in self._flights.values() if flight.phase is _Phase.OUT)

    @property
    def samples_queued(self) -> int:
        """How many of them wait in a queue."""
        return sum(len(self._flights[launch].samples) for launch in self._queued)

    def next_look(self, now: float) -> float | None:
        """Return from when on it has something to tell although nothing has happened; None: never."""
        times = [at for at, _ in self._unanswered]
        # A suspended search tries nothing again: whoever looked for that would look without end.
        if not self.suspended:
            times += [at for at, _ in self._later.values()]
            if self._trouble is not None:
                times.append(self._trouble.retry_at if self._waiting else self._trouble.over_at)
        quiet_at = self._last_progress + _QUIET_SECONDS
        if self._blocked:
            times.append(max(quiet_at, now + 1.0))
        if self._queued and quiet_at > now:
            times.append(quiet_at)
        return min(times, default=None)

    def problem(self, now: float) -> Problem | None:
        """Return what keeps children from working, if anything."""
        found: _Trouble | Blocked | None = self._trouble
        quiet = now >= self._last_progress + _QUIET_SECONDS
        if found is None and quiet and not any(flight.running for flight in self._flights.values()):
            if self._blocked:
                found = self._blocked[min(self._blocked)]
            elif self._queued:
                found = self._held()
        if found is None and not any(flight.running for flight in self._flights.values()):
            found = self._disrupted()
        return None if found is None else Problem(reason=found.reason, message=found.message[:LONGEST_MESSAGE])

    # ------------------------------------------------------------ what the executor says

    def recovered(self, launch: int, samples: tuple[int, ...], *, exists: bool) -> None:
        """Take a launch that the log has and that has not ended there; whether it exists the executor knows."""
        self._flights[launch] = _Flight(samples)
        if not exists:
            self._ask(launch, None)

    def running(self, launch: int, now: float) -> None:
        """Take note that a child runs."""
        flight = self._out(launch)
        if flight is not None:
            flight.running = True
            flight.ran_since = now if flight.ran_since is None else flight.ran_since
            self._hold_no_more(launch)
            self._last_progress = now

    def blocked(self, blocked: Blocked) -> None:
        """Take note that a child cannot run for now; one that waits in a queue is not to start yet."""
        flight = self._out(blocked.launch)
        if flight is not None and blocked.launch not in self._queued:
            flight.running = False
            self._blocked[blocked.launch] = blocked

    def queued(self, queued: Queued) -> None:
        """Take note that a child waits in a queue; it may have run before."""
        flight = self._out(queued.launch)
        if flight is not None:
            flight.running = False
            self._hold_no_more(queued.launch)
            # Who was told of last is last.
            self._queued[queued.launch] = queued

    def admitted(self, launch: int, now: float) -> None:
        """Take note that a child has left its queue, or that what has blocked it does so no more."""
        self._blocked.pop(launch, None)
        if self._queued.pop(launch, None) is not None:
            self._last_progress = now

    def ended(self, ended: Ended, now: float) -> None:
        """Ask for the results of a launch that has ended."""
        flight = self._out(ended.launch)
        if flight is not None:
            self._last_progress = now
            if ended.end in (End.DISRUPTED, End.VANISHED):
                worked = flight.ran_since is not None and now >= flight.ran_since + _WORKS_AFTER_SECONDS
                flight.disrupted = None if worked else ended.message
            self._ask(ended.launch, ended.end, ended.message)

    # ------------------------------------------------------------ what the store says

    def unanswered(self, question: Question, now: float) -> None:
        """Ask again later: the store had no answer."""
        again = replace(question, failures=question.failures + 1)
        self._unanswered.append((now + store_pause(question.failures), again))

    def is_late(self, question: Question, now: float) -> bool:
        """Return whether results of children that have ended well may still turn up; they are asked for again then."""
        if question.end is not End.SUCCEEDED or question.looks >= _LATE_RESULT_LOOKS:
            return False
        again = replace(question, looks=question.looks + 1)
        self._unanswered.append((now + store_pause(question.looks), again))
        return True

    def never_created(self, launch: int) -> None:
        """Launch once more under its number what is recorded but was never seen, and has left nothing."""
        flight = self._flights[launch]
        if self.suspended:
            flight.phase = _Phase.CANCELLED
        else:
            self.launch(launch, flight.samples)
            self._orders.again.add(launch)

    def settled(self, launch: int, verdicts: Mapping[int, Verdict], launched: int, now: float) -> None:
        """Take what the end of a launch means for its samples.

        Args:
            launch: the launch; it is forgotten.
            verdicts: by sample, all of the launch.
            launched: how many launches there were so far.
            now: the time.
        """
        disrupted = self._flights.pop(launch).disrupted
        for sample, verdict in verdicts.items():
            match verdict:
                case Retry() if disrupted is not None:
                    self._try_later(sample, verdict, disrupted, now)
                case Retry():
                    self._disruptions.pop(sample, None)
                    self._due[sample] = verdict
                case AwaitCure():
                    self._trouble = _troubled(self._trouble, verdict, launch, launched, now)
                    self._waiting[sample] = Retry(verdict.failures)
                case _:
                    self._disruptions.pop(sample, None)
        cured = not any(isinstance(verdict, AwaitCure) for verdict in verdicts.values())
        if cured and self._trouble is not None and launch >= self._trouble.first_launch:
            # A child that was to try the environment out ended for reasons of its own.
            self._trouble = None

    # ------------------------------------------------------------ what the search decides

    def launch(self, launch: int, samples: tuple[int, ...]) -> None:
        """Have a recorded launch created."""
        self._flights[launch] = _Flight(samples)
        self._orders.launch.append((launch, samples))
        for sample in samples:
            self._due.pop(sample, None)

    def end_all(self) -> None:
        """Have every child ended: the search is over."""
        for launch, flight in self._flights.items():
            if flight.phase is _Phase.OUT:
                self._cancel(launch)

    def suspend(self) -> None:
        """End all children. What they were doing is done again after the suspension, from their checkpoints."""
        self.suspended = True
        for launch, flight in self._flights.items():
            if flight.phase is _Phase.OUT:
                self._cancel(launch)
                flight.phase = _Phase.CANCELLED
        self._trouble = None

    def resume(self) -> None:
        """Find out what the suspended children have left."""
        self.suspended = False
        for launch, flight in self._flights.items():
            if flight.phase is _Phase.CANCELLED:
                self._ask(launch, End.VANISHED)

    def renew_never_started(self) -> None:
        """Give children that could not start a new attempt: what they are made from has changed."""
        for launch, flight in self._flights.items():
            if flight.phase is _Phase.OUT and not flight.running:
                self._cancel(launch)
                self._ask(launch, End.VANISHED)
        self._due.update({sample: retry for sample, (_, retry) in self._later.items()})
        self._later.clear()
        self._trouble = None

    def renew(self, launch: int) -> None:
        """Give one child a new attempt, unless it runs by now: what it was made from has changed."""
        flight = self._out(launch)
        if flight is not None and not flight.running:
            self._cancel(launch)
            self._ask(launch, End.VANISHED)

    # ------------------------------------------------------------ what time brings

    def ask_again(self, now: float) -> None:
        """Ask what the store has left unanswered and been left alone for long enough."""
        self._questions += [question for at, question in self._unanswered if at <= now]
        self._unanswered = [(at, question) for at, question in self._unanswered if at > now]

    def try_again(self, now: float) -> None:
        """Make due what has waited for a cure for long enough, or forget a trouble that has not come back."""
        for sample in [sample for sample, (at, _) in self._later.items() if now >= at]:
            self._due[sample] = self._later.pop(sample)[1]
        trouble = self._trouble
        if self._waiting and (trouble is None or now >= trouble.retry_at):
            self._due.update(self._waiting)
            self._waiting.clear()
        elif not self._waiting and trouble is not None and now >= trouble.over_at:
            self._trouble = None

    # ------------------------------------------------------------

    def _out(self, launch: int) -> _Flight | None:
        """Return a launch that is out, or None: it was cancelled, or has ended.

        Events cross each other: a child may be said to be blocked after its end was taken.
        """
        flight = self._flights.get(launch)
        return flight if flight is not None and flight.phase is _Phase.OUT else None

    def _ask(self, launch: int, end: End | None, message: str = "") -> None:
        flight = self._flights[launch]
        flight.phase, flight.running = _Phase.ENDED, False
        self._hold_no_more(launch)
        self._questions.append(Question(launch, flight.samples, end, message))

    def _try_later(self, sample: int, retry: Retry, message: str, now: float) -> None:
        """Give a sample whose child was disrupted another attempt: at once, and the more often it was the later."""
        before = self._disruptions.get(sample)
        self._disruptions[sample] = found = _Disruption(1 if before is None else before.count + 1, message)
        if found.pause:
            self._later[sample] = (now + found.pause, retry)
        else:
            self._due[sample] = retry

    def _disrupted(self) -> Blocked | None:
        """Return what to tell people of the sample whose children are disrupted most often, once that is often."""
        sample = max(self._disruptions, key=lambda sample: self._disruptions[sample].count, default=None)
        if sample is None or (found := self._disruptions[sample]).count < _TOLD_AFTER:
            return None
        said = f"children of sample {sample} were made to end {found.count} times in a row: {found.message}".rstrip(
            ": ."
        )
        reason = Reason.CHILDREN_DISRUPTED
        return Blocked(-1, reason, f"{said}. {EXPLANATIONS[reason].cure}")

    def _cancel(self, launch: int) -> None:
        self._orders.cancel.append(launch)
        self._orders.launch = [order for order in self._orders.launch if order[0] != launch]
        self._hold_no_more(launch)

    def _hold_no_more(self, launch: int) -> None:
        self._blocked.pop(launch, None)
        self._queued.pop(launch, None)

    def _held(self) -> Blocked:
        """Return what to tell people when nothing runs because the queue lets nobody in.

        One child speaks for all, the one whose words are the newest: the queue need not take back what it once said of
        another.
        """
        last_first = list(reversed(self._queued.values()))
        queued = next((each for each in last_first if each.why), last_first[0])
        said = f"{queue_words(self.samples_queued, self.samples_out, queued.queue)}: {queued.why}".rstrip(": .")
        end = "" if said.endswith("?") else "."
        return Blocked(queued.launch, Reason.QUEUED, f"{said}{end} {EXPLANATIONS[Reason.QUEUED].cure}")


def _troubled(trouble: _Trouble | None, verdict: AwaitCure, launch: int, launched: int, now: float) -> _Trouble:
    """Return the trouble after one more child met it."""
    if trouble is None:
        pause = _FIRST_PAUSE_SECONDS
    elif launch < trouble.first_launch:
        # A sibling of those that failed before the pause tells nothing new.
        return replace(trouble, reason=verdict.reason, message=verdict.message)
    else:
        pause = min(2 * trouble.pause, _LONGEST_PAUSE_SECONDS)
    return _Trouble(verdict.reason, verdict.message, pause, now + pause, launched)
