"""Children as processes of this machine: started, watched and ended by one thread, whatever runs in them."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from queue import Empty, SimpleQueue
from typing import Protocol

from nas_controller.executor import End, Ended, Event, Launch, Started

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

    def ending(self) -> tuple[End, str]:
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
    """Monotonic time at which it is killed."""
    killed: bool = False
    cancelled: bool = False


class LocalExecutor:
    """See :class:`nas_controller.executor.Executor`. One thread starts, watches and ends all children.

    Differs from the contract in ``close``: children end with it, as they do when this process is killed,
    so that nobody trains for a search that has stopped. They save checkpoints where that pays.
    """

    def __init__(self, trainer: Trainer, deadline_seconds: float, failed: Callable[[Launch, str], None]) -> None:
        """Prepare; nothing is started yet.

        Args:
            trainer: what runs in children; it is closed with this executor.
            deadline_seconds: the longest run of one child; a launch of several may take the sum.
            failed: is told of each child that ends otherwise than well, for people.
        """
        self._trainer = trainer
        self._deadline_seconds = deadline_seconds
        self._failed = failed
        self._post: Callable[[Event], None] = _nobody
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wake_up, self._woken = os.pipe()[::-1]
        self._children: dict[int, _Child] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="children")

    def start(self, post: Callable[[Event], None]) -> frozenset[int]:
        """See :class:`nas_controller.executor.Executor`. Nothing exists: children end with their run."""
        self._post = post
        self._thread.start()
        return frozenset()

    def launch(self, launch: Launch) -> None:
        """See :class:`nas_controller.executor.Executor`."""
        self._command(lambda: self._launch(launch))

    def cancel(self, launch: int) -> None:
        """See :class:`nas_controller.executor.Executor`. The child gets time to save its checkpoint."""
        self._command(lambda: self._cancel(launch))

    def close(self) -> None:
        """End all children and return once they are gone."""
        if self._thread.is_alive():
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
        due = min((child.deadline for child in self._children.values() if not child.killed), default=None)
        seconds = None if due is None else max(0.0, due - time.monotonic())
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
        deadline = time.monotonic() + self._deadline_seconds * len(launch.inputs)
        self._children[launch.number] = _Child(launch, process, deadline)
        self._post(Started(launch.number))

    def _cancel(self, launch: int) -> None:
        child = self._children.get(launch)
        if child is not None and not child.cancelled:
            child.cancelled = True
            child.deadline = time.monotonic() + _GRACE_SECONDS
            child.process.terminate()

    def _reap(self) -> None:
        now = time.monotonic()
        for child in list(self._children.values()):
            if child.process.exitcode is None:
                if now >= child.deadline and not child.killed:
                    child.killed = True
                    child.process.kill()
                continue
            del self._children[child.launch.number]
            if not child.cancelled:
                self._post(self._told(child.launch, *self._ending(child)))
            child.process.close()

    def _told(self, launch: Launch, end: End, message: str) -> Ended:
        if end not in (End.SUCCEEDED, End.DISRUPTED):
            self._failed(launch, message)
        return Ended(launch.number, end, message)

    def _ending(self, child: _Child) -> tuple[End, str]:
        code, log = child.process.exitcode or 0, child.process.log
        if child.killed:
            return (
                End.DEADLINE_EXCEEDED,
                f"training took longer than trainer.deadline ({self._deadline_seconds:.0f} s per child): raise it;"
                f" its log is {log}",
            )
        if code < 0:
            end = End.DISRUPTED if -code == signal.SIGTERM else End.FAILED
            # Who killed it cannot be told from here; the kernel does so when memory runs out.
            hint = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
            return end, f"killed by {signal.Signals(-code).name}{hint}; its log is {log}"
        return child.process.ending()


def _nobody(_event: Event) -> None:
    """Hear nothing: no child runs before ``start`` names a listener."""
