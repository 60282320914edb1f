"""Children as processes of this machine: started, watched and ended by one thread, whatever runs in them."""

import math
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from queue import Empty, SimpleQueue
from typing import Protocol

from nas_controller.executor import End, Ended, Event, Launch, Running
from nas_kube.clock import SYSTEM_CLOCK, Clock

# How long a child may take to save its checkpoint once it is told to end.
_GRACE_SECONDS = 10.0


class Process(Protocol):
    """A child's process; methods are called from one thread."""

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the process has ended."""

    @property
    def exitcode(self) -> int | None:
        """None while it runs; minus the signal's number where one ended it."""

    @property
    def log(self) -> str:
        """Where its output is, for people."""

    def read_end(self) -> tuple[End, str]:
        """Return what an exit code of 0 or more means, and the child's last words; called once, before ``close``."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def close(self) -> None:
        """Give back what an ended process holds."""


class Trainer(Protocol):
    """What runs in children: the built-in trainer, or a user's own."""

    def start(self, launch: Launch) -> Process:
        """Start a child.

        Raises:
            OSError: it cannot be started for now.
            EOFError: what starts children is gone.
        """

    def close(self) -> None:
        """Give everything back; all children have ended."""


@dataclass
class _Child:
    launch: Launch
    process: Process
    deadline: float
    """Seconds that it may take."""
    due: float
    """Monotonic time at which it is told to end, and once it has been, killed."""
    told: bool = False
    late: bool = False
    """It was told to end because of its deadline."""
    cancelled: bool = False


class LocalExecutor:
    """See :class:`nas_controller.executor.Executor`. One thread starts, watches and ends all children.

    Differs from the contract in ``close``: children end with it, as they do when this process is killed,
    so that nobody trains for a search that has stopped. They save checkpoints where that pays.
    """

    def __init__(
        self,
        trainer: Trainer,
        deadline: Callable[[Launch], float],
        failed: Callable[[Launch, str], None],
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            trainer: what runs in children; it is closed with this executor.
            deadline: the longest run of a launch, in seconds.
            failed: is told of each child that ends otherwise than well, for people.
            clock: whose time it is.
        """
        self._trainer = trainer
        self._deadline = deadline
        self._failed = failed
        self._clock = clock
        self._post: Callable[[Event], None] = _nobody
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wake_up, self._woken = os.pipe()[::-1]
        self._children: dict[int, _Child] = {}
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, post: Callable[[Event], None]) -> frozenset[int]:
        """See :class:`nas_controller.executor.Executor`. Nothing exists: children end with their run."""
        self._post = post
        self._thread = self._clock.start("children", self._work)
        return frozenset()

    def launch(self, launch: Launch) -> None:
        """See :class:`nas_controller.executor.Executor`."""
        self._command(lambda: self._launch(launch))

    def cancel(self, launch: int) -> None:
        """See :class:`nas_controller.executor.Executor`. The child gets time to save its checkpoint."""
        self._command(lambda: self._cancel(launch))

    def images(self, sample: int) -> dict[str, str]:
        """See :class:`nas_controller.executor.Executor`. There are none: children are processes."""
        return {}

    def close(self) -> None:
        """End all children and return once they are gone."""
        if self._thread is not None and self._thread.is_alive():
            self._closed.set()
            os.write(self._wake_up, b"x")
            self._thread.join()
        os.close(self._wake_up)
        os.close(self._woken)
        self._trainer.close()

    # ------------------------------------------------------------ the thread

    def _command(self, command: Callable[[], None]) -> None:
        self._commands.put(command)
        os.write(self._wake_up, b"x")

    def _work(self) -> None:
        while not self._closed.is_set():
            self._wait()
            self._obey()
            self._reap()
        for child in self._children.values():
            self._cancel(child.launch.number)
        while self._children:
            self._wait()
            self._reap()

    def _wait(self) -> None:
        """Return when there is a command, or a child has ended or is due."""
        sentinels: list[Connection | int] = [child.process.sentinel for child in self._children.values()]
        due = min((child.due for child in self._children.values()), default=math.inf)
        seconds = None if due == math.inf else max(0.0, due - self._clock.monotonic())
        if self._woken in wait([self._woken, *sentinels], seconds):
            os.read(self._woken, 65536)

    def _obey(self) -> None:
        with suppress(Empty):
            while True:
                self._commands.get_nowait()()

    def _launch(self, launch: Launch) -> None:
        if launch.number in self._children:
            return
        try:
            process = self._trainer.start(launch)
        except (OSError, EOFError) as error:
            # The machine has no room for another process, or what starts them is gone: tried again.
            self._post(self._told(launch, End.FAILED, f"no process could be started: {error}"))
            return
        seconds = self._deadline(launch)
        self._children[launch.number] = _Child(launch, process, seconds, self._clock.monotonic() + seconds)
        self._post(Running(launch.number))

    def _cancel(self, launch: int) -> None:
        child = self._children.get(launch)
        if child is not None and not child.cancelled:
            child.cancelled = True
            self._tell(child)

    def _tell(self, child: _Child) -> None:
        """Tell a child to end: it gets time to save its checkpoint."""
        if not child.told:
            child.told, child.due = True, self._clock.monotonic() + _GRACE_SECONDS
            child.process.terminate()

    def _reap(self) -> None:
        now = self._clock.monotonic()
        for child in list(self._children.values()):
            if child.process.exitcode is None:
                if now < child.due:
                    continue
                if child.told:
                    child.due = math.inf
                    child.process.kill()
                else:
                    child.late = True
                    self._tell(child)
                continue
            del self._children[child.launch.number]
            if not child.cancelled:
                self._post(self._told(child.launch, *self._read_end(child)))
            child.process.close()

    def _told(self, launch: Launch, end: End, message: str) -> Ended:
        if end not in (End.SUCCEEDED, End.DISRUPTED):
            self._failed(launch, message)
        return Ended(launch.number, end, message)

    def _read_end(self, child: _Child) -> tuple[End, str]:
        code, log = child.process.exitcode or 0, child.process.log
        if child.late:
            return (
                End.DEADLINE_EXCEEDED,
                f"training took longer than its deadline ({child.deadline:.0f} s): raise trainer.deadline, or"
                f" finalTraining.deadline for a final training; its log is {log}",
            )
        if code < 0:
            end = End.DISRUPTED if -code == signal.SIGTERM else End.FAILED
            # Who killed it cannot be told from here; the kernel does so when memory runs out.
            hint = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
            return end, f"killed by {signal.Signals(-code).name}{hint}; its log is {log}"
        return child.process.read_end()


def _nobody(_event: Event) -> None:
    """Hear nothing: no child runs before ``start`` names a listener."""
