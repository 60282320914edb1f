"""Children as processes of this machine, forked from a server that has torch loaded already."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from queue import Empty, SimpleQueue

from nas_api import names
from nas_api.child import ExitCode
from nas_controller.executor import End, Ended, Event, Launch, Started
from nas_trainer.process import ENV_TERMINATION_LOG

# How long a child may take to save its checkpoint once it is told to end.
_GRACE_SECONDS = 10.0

_ENDS: dict[int, End] = {
    ExitCode.OK: End.SUCCEEDED,
    ExitCode.INVALID_INPUT: End.INVALID_INPUT,
    ExitCode.OUT_OF_MEMORY: End.OUT_OF_MEMORY,
    ExitCode.DATASET_UNAVAILABLE: End.DATASET_UNAVAILABLE,
    ExitCode.STORAGE_REFUSED: End.STORAGE_REFUSED,
    # Somebody else ended it, as a node does that is wanted for something else.
    ExitCode.TERMINATED: End.DISRUPTED,
}


@dataclass
class _Child:
    launch: int
    process: ForkServerProcess
    message: Path
    log: Path
    deadline: float
    """Monotonic time at which it is killed."""
    killed: bool = False
    cancelled: bool = False


class LocalExecutor:
    """See :class:`nas_controller.executor.Executor`. One thread starts, watches and ends all children.

    Differs from the contract in ``close``: children end with it, as they do when this process is killed,
    so that nobody trains for a search that has stopped. They save checkpoints where that pays.
    """

    def __init__(self, folder: Path, deadline_seconds: float) -> None:
        """Prepare; nothing is started yet.

        Args:
            folder: where children's logs and last words go, as ``<launch>.log`` and ``<launch>.message``.
            deadline_seconds: the longest run of one child.
        """
        self._folder = folder
        self._deadline_seconds = deadline_seconds
        self._context = multiprocessing.get_context("forkserver")
        # __main__ as well: a child would otherwise import this program's own modules again.
        self._context.set_forkserver_preload(["__main__", "nas_cli.local_child"])
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
            self._cancel(child.launch)
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
        self._folder.mkdir(parents=True, exist_ok=True)
        message, log = self._folder / f"{launch.number}.message", self._folder / f"{launch.number}.log"
        message.unlink(missing_ok=True)
        environment = {
            names.ENV_TRAINER_INPUT: launch.input.model_dump_json(by_alias=True),
            ENV_TERMINATION_LOG: str(message),
        }
        process = self._context.Process(target=_run, args=(environment, str(log)), name=f"child-{launch.number}")
        try:
            process.start()
        except (OSError, EOFError) as error:
            # The fork server is gone, or the machine has no room for another process: tried again.
            self._post(Ended(launch.number, End.FAILED, f"no process could be started: {error}"))
            return
        deadline = time.monotonic() + self._deadline_seconds
        self._children[launch.number] = _Child(launch.number, process, message, log, deadline)
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
            del self._children[child.launch]
            if not child.cancelled:
                self._post(self._ended(child))
            child.message.unlink(missing_ok=True)
            child.process.close()

    def _ended(self, child: _Child) -> Ended:
        code = child.process.exitcode or 0
        said = child.message.read_text(errors="replace") if child.message.exists() else ""
        if child.killed:
            return Ended(
                child.launch,
                End.DEADLINE_EXCEEDED,
                f"the training took longer than trainer.deadline ({self._deadline_seconds:.0f} s): raise it",
            )
        if code < 0:
            end = End.DISRUPTED if -code == signal.SIGTERM else End.FAILED
            # Who killed it cannot be told from here; the kernel does so when memory runs out.
            hint = ", as the kernel does when memory runs out" if -code == signal.SIGKILL else ""
            return Ended(child.launch, end, f"killed by {signal.Signals(-code).name}{hint}; its log is {child.log}")
        end = _ENDS.get(code, End.FAILED)
        return Ended(child.launch, end, said or f"exit code {code}; its log is {child.log}")


def _nobody(_event: Event) -> None:
    """Hear nothing: no child runs before ``start`` names a listener."""


def _run(environment: dict[str, str], log: str) -> None:
    # Imported in the child's process, where the fork server has it loaded.
    from nas_cli import local_child

    local_child.run(environment, log)
