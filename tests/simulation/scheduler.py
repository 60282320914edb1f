"""Threads and time of which one seed is one history: one thread runs at a time, and chance says which one is next.

Threads of the product are real ones, so that its locks are what they are, but each runs only when the scheduler lets
it, and gives way only where it waits: for time, for a condition, for a message, or for an answer of the simulated API
server or store. Time passes when nobody can run.
"""

import heapq
import itertools
import random
import threading
from collections.abc import Callable
from concurrent import futures
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# At one moment: each look for messages is to follow from something that has happened.
_MOST_LOOKS = 1000
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def _closed() -> threading.Lock:
    """Return a lock that lets one thread through each time that it is released."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class Killed(BaseException):
    """The process dies here: no handler of it may run, so nothing but the scheduler catches this."""


class Stuck(Exception):
    """Nothing is left to happen although the history has not ended, or a thread runs without ever waiting."""


class Task(threading.Thread):
    """A thread of a simulated process; ``join`` waits in simulated time."""

    def __init__(self, process: "Process", name: str, call: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._process = process
        self._call = call
        self.go = _closed()
        self.ended = False
        self.error: BaseException | None = None
        self.wait = 0
        """Counts the waits of this thread, so that what was to end an earlier one is known to be late."""
        self.ready = False
        self.queue: SimpleQueue[Any] | None = None

    @property
    def process(self) -> "Process":
        """Whose thread it is."""
        return self._process

    def run(self) -> None:
        self.go.acquire()
        try:
            if not self._process.dead:
                self._call()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001  The history's caller is to see it, whatever it is.
            self.error = error
        self.ended = True
        self._process.scheduler.leave(self)

    def join(self, timeout: float | None = None) -> None:
        scheduler = self._process.scheduler
        scheduler.wait_until(lambda: self.ended, timeout)

    # Condition.notify and notify_all take whoever waits for a lock that they are to release.
    def release(self) -> None:
        """Wake this thread, which waits for a condition."""
        self._process.scheduler.wake(self)


class Scheduler:
    """Runs tasks one after the other on a virtual clock, all in the order that ``chance`` draws."""

    def __init__(self, chance: random.Random) -> None:
        self.now = 0.0
        self.chance = chance
        self._runnable: list[Task] = []
        self._waiting_for_messages: list[Task] = []
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._over = _closed()
        self._end = float("inf")
        self._finished: Callable[[], bool] = lambda: False
        self._failure: BaseException | None = None
        self._tasks: list[Task] = []
        self._closed = False
        self.steps = 0

    # ------------------------------------------------------------ for the history

    def at(self, seconds: float, call: Callable[[], object]) -> None:
        """Have something happen after some seconds; it must not wait."""
        heapq.heappush(self._timers, (self.now + seconds, next(self._numbers), call))

    def run(self, until: float, finished: Callable[[], bool]) -> None:
        """Let things happen until a time, or until something is true.

        Raises:
            Stuck: nothing more would happen.
        """
        self._end, self._finished = until, finished
        following = self._next()
        if following is not None:
            following.go.release()
            self._over.acquire()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def close(self) -> None:
        """End all threads."""
        self._closed = True
        for task in self._tasks:
            task.process.dead = True
        for task in self._tasks:
            if not task.ended and task.is_alive():
                task.go.release()
                threading.Thread.join(task)

    # ------------------------------------------------------------ for tasks

    def start(self, process: "Process", name: str, call: Callable[[], None]) -> Task:
        """Begin a thread."""
        task = Task(process, name, call)
        self._tasks.append(task)
        task.start()
        self.wake(task)
        return task

    def wake(self, task: Task) -> None:
        """Let a task run on when it is its turn."""
        if not task.ready and not task.ended:
            task.ready = True
            if not task.process.frozen:
                self._runnable.append(task)

    def thaw(self, process: "Process") -> None:
        """Let the threads of a process run on that was stopped."""
        self._runnable += [task for task in self._tasks if task.process is process and task.ready]

    def freeze(self, process: "Process") -> None:
        """Let no thread of a process run for now."""
        self._runnable = [task for task in self._runnable if task.process is not process]

    def sleep(self, seconds: float) -> None:
        """Wait so long."""
        self.wait(seconds)

    def wait(self, seconds: float | None) -> None:
        """Wait until somebody wakes this thread, at most so long."""
        task = self.current()
        task.wait += 1
        number = task.wait
        task.ready = False
        if seconds is not None:

            def due() -> None:
                if task.wait == number:
                    self.wake(task)

            self.at(seconds, due)
        self._give_way(task)

    def wait_until(self, true: Callable[[], bool], seconds: float | None) -> None:
        """Wait until something is true, looking now and then."""
        end = float("inf") if seconds is None else self.now + seconds
        while not true() and self.now < end:
            self.sleep(0.05)

    def wait_for_message(self, queue: SimpleQueue[Any], seconds: float | None) -> None:
        """Wait until there is something in a queue, at most so long."""
        task = self.current()
        task.queue = queue
        self._waiting_for_messages.append(task)
        try:
            self.wait(seconds)
        finally:
            task.queue = None
            self._waiting_for_messages.remove(task)

    def current(self) -> Task:
        """Return the task that calls.

        Raises:
            Killed: its process is dead.
        """
        task = threading.current_thread()
        assert isinstance(task, Task), f"{task.name} is no thread of the simulation"
        if task.process.dead:
            raise Killed
        return task

    def leave(self, task: Task) -> None:
        """Take note that a task has ended, from its own thread."""
        if task.error is not None:
            self._failure = task.error
            self._over.release()
            return
        if self._closed:
            return
        following = self._next()
        if following is not None:
            following.go.release()
        else:
            self._over.release()

    def _give_way(self, task: Task) -> None:
        following = self._next()
        if following is not task:
            if following is None:
                self._over.release()
            else:
                following.go.release()
            task.go.acquire()
        if task.process.dead:
            raise Killed

    def _next(self) -> Task | None:
        """Return who runs next, after what happens before that; None: the history is over."""
        while True:
            for task in self._waiting_for_messages:
                if not task.ready and task.queue is not None and not task.queue.empty():
                    self.wake(task)
            if self._runnable:
                self.steps += 1
                place = self.chance.randrange(len(self._runnable)) if len(self._runnable) > 1 else 0
                task = self._runnable.pop(place)
                if task.ended:
                    continue
                # From now on it is its own affair what it waits for.
                task.wait += 1
                return task
            if self._finished():
                return None
            if not self._timers:
                self._failure = Stuck("nothing more will happen")
                return None
            if self._timers[0][0] > self._end:
                self.now = self._end
                return None
            at, _, call = heapq.heappop(self._timers)
            self.now = max(self.now, at)
            try:
                call()
            except Exception as error:  # noqa: BLE001  It happens in the thread of whoever gave way; the caller of run sees it.
                self._failure = error
                return None


class Process:
    """A simulated process: threads that die or stand still together. It is the machine's clock to what runs in it."""

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self.scheduler = scheduler
        self.name = name
        self.dead = False
        self.frozen = False
        self._looked_at = 0.0
        self._looks = 0

    def kill(self) -> None:
        """End it as SIGKILL does: nothing of it runs any more."""
        if self.dead:
            return
        self.dead = True
        self.frozen = False
        for task in self.scheduler._tasks:
            if task.process is self and not task.ended:
                task.ready = False
                self.scheduler._runnable = [each for each in self.scheduler._runnable if each is not task]
                self.scheduler.wake(task)

    def stop(self) -> None:
        """Let it stand still, as SIGSTOP does."""
        self.frozen = True
        self.scheduler.freeze(self)

    def go_on(self) -> None:
        """Let it run again, as SIGCONT does."""
        if self.frozen and not self.dead:
            self.frozen = False
            self.scheduler.thaw(self)

    # ------------------------------------------------------------ nas_controller.machine.Clock

    def now(self) -> datetime:
        """See :class:`nas_controller.clock.Clock`."""
        return EPOCH + timedelta(seconds=self.scheduler.now)

    def monotonic(self) -> float:
        """See :class:`nas_controller.clock.Clock`."""
        return self.scheduler.now

    def get(self, queue: SimpleQueue[T], seconds: float | None) -> T:
        """See :class:`nas_controller.clock.Clock`."""
        if self.dead:
            raise Killed
        end = float("inf") if seconds is None else self.scheduler.now + seconds
        self._looks = self._looks + 1 if self.scheduler.now == self._looked_at else 0
        self._looked_at = self.scheduler.now
        if self._looks > _MOST_LOOKS:
            raise Stuck(f"{self.name} looks for messages again and again and never waits")
        while True:
            try:
                return queue.get_nowait()
            except Empty:
                if self.scheduler.now >= end:
                    raise
            self.scheduler.wait_for_message(queue, None if seconds is None else end - self.scheduler.now)

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """See :class:`nas_kube.clock.Clock`."""
        task = self.scheduler.current()
        waiters = vars(condition)["_waiters"]
        waiters.append(task)
        condition.release()
        try:
            self.scheduler.wait(seconds)
        finally:
            condition.acquire()
            if task in waiters:
                waiters.remove(task)

    def start(self, name: str, run: Callable[[], None]) -> threading.Thread:
        """See :class:`nas_kube.clock.Clock`."""
        if self.dead:
            raise Killed
        return self.scheduler.start(self, f"{self.name}/{name}", run)

    def pool(self, name: str) -> futures.Executor:
        """Return threads for calls."""
        return Pool(self, name)


class Pool(futures.Executor):
    """Makes each call in a thread of its own; as many as there are calls."""

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self._name = name
        self._closed = False

    def submit(self, call: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> "futures.Future[T]":
        """See :class:`concurrent.futures.Executor`."""
        if self._closed:
            raise RuntimeError("the pool is shut down")
        future: futures.Future[T] = futures.Future()

        def run() -> None:
            if self._closed and future.cancel():
                return
            future.set_running_or_notify_cancel()
            try:
                answer = call(*arguments, **named)
            except Exception as error:  # noqa: BLE001  As a pool does.
                future.set_exception(error)
            else:
                future.set_result(answer)

        self._process.start(f"{self._name}-{getattr(call, '__name__', 'call')}", run)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See :class:`concurrent.futures.Executor`. Calls that have not begun are cancelled."""
        self._closed = True


class InlinePool(futures.Executor):
    """Makes each call in its caller's thread."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def submit(self, call: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> "futures.Future[T]":
        """See :class:`concurrent.futures.Executor`."""
        future: futures.Future[T] = futures.Future()
        try:
            future.set_result(call(*arguments, **named))
        except Exception as error:  # noqa: BLE001  As a pool does.
            future.set_exception(error)
        return future
