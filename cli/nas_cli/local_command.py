"""A user's own trainer: its command as a process of this machine, with a folder of its own as ``NAS_DIR``."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from nas_api import custom_trainer, names
from nas_api.child import ExitCode
from nas_api.harmless import harmless
from nas_cli import local_guard
from nas_cli.errors import Refusal
from nas_controller.executor import End, Launch, end_of
from nas_store import Store
from nas_store.errors import StoreError
from nas_trainer import sidecar

# What people see of a failed child's output at once; all of it is in its log.
_TAIL_BYTES = 400


class _Command:
    """See :class:`nas_cli.local_executor.Process`. Signals reach everything that the command has started."""

    def __init__(
        self, trainer: "CommandTrainer", launch: Launch, process: "subprocess.Popen[bytes]", log: Path
    ) -> None:
        self._trainer = trainer
        self._launch = launch
        self._process = process
        self.log = str(log)
        self.sentinel, self._ended = os.pipe()
        self._waiter = threading.Thread(target=self._wait, name=f"child {process.pid}", daemon=True)
        self._waiter.start()

    @property
    def exitcode(self) -> int | None:
        return self._process.returncode

    def read_end(self) -> tuple[End, str]:
        code = self.exitcode or 0
        if code == ExitCode.OK:
            return self._trainer.store_result(self._launch, self.log)
        tail = _tail(Path(self.log))
        return end_of(code), f"exit code {code}{f': {tail}' if tail else ''}; its output is {self.log}"

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        # As in a pod: what outlives the command ends with it.
        self._signal(signal.SIGKILL)
        self._trainer.tell_guard(-self._process.pid)
        self._waiter.join()
        os.close(self.sentinel)

    def _wait(self) -> None:
        self._process.wait()
        os.close(self._ended)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class CommandTrainer:
    """See :class:`nas_cli.local_executor.Trainer`. A killed run takes its children with it.

    A launch is one child: the manifest cannot ask for more with a user's own trainer.
    """

    def __init__(
        self, command: Sequence[str], here: Path, folder: Path, store: Store, failed: Callable[[Launch, str], None]
    ) -> None:
        """Prepare; only the guard is started.

        Args:
            command: program and arguments.
            here: the folder that it runs in: the manifest's.
            folder: where children's logs and folders go, as ``<launch>.log`` and ``<launch>/``.
            store: where results go.
            failed: is told of each result that cannot be used, for people.

        Raises:
            Refusal: there is no such program.
        """
        _check(command, here)
        self._command = list(command)
        self._here = here
        self._folder = folder.absolute()
        self._store = store
        self._failed = failed
        reading, self._lifeline = os.pipe()
        self._guard = subprocess.Popen(
            [sys.executable, "-S", local_guard.__file__], stdin=reading, start_new_session=True
        )
        os.close(reading)

    def start(self, launch: Launch) -> _Command:
        """See :class:`nas_cli.local_executor.Trainer`."""
        own, log = self._own(launch), self._folder / f"{launch.number}.log"
        # A launch is repeated under its number when a run was killed before its end.
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        sidecar.prepare(own, launch.inputs[0])
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command,
                cwd=self._here,
                env=os.environ | custom_trainer.environment(launch.inputs[0], str(own)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Apart from the terminal's group: what Ctrl-C means is for this program to decide.
                start_new_session=True,
            )
        self.tell_guard(process.pid)
        return _Command(self, launch, process, log)

    def store_result(self, launch: Launch, look: str) -> tuple[End, str]:
        """Take the result of a command that has ended well to the store, as an upload does in a pod."""
        result = sidecar.collect(self._own(launch), launch.inputs[0], look)
        key, data = names.result_key(result.sample), result.model_dump_json(by_alias=True).encode()
        try:
            self._store.put_if_absent(key, data)
        except StoreError as error:
            return End.FAILED, str(error)
        if result.status == "Invalid":
            self._failed(launch, result.message)
        return End.SUCCEEDED, result.message

    def close(self) -> None:
        """End the guard."""
        os.close(self._lifeline)
        self._guard.wait()

    def tell_guard(self, group: int) -> None:
        """Have a process group killed if this process is; not any more, where the number is negative."""
        # A guard that somebody has killed is no reason to stop: it is needed only if we are killed as well.
        with suppress(BrokenPipeError):
            os.write(self._lifeline, b"%d\n" % group)

    def _own(self, launch: Launch) -> Path:
        return self._folder / str(launch.number)


def _check(command: Sequence[str], here: Path) -> None:
    """Refuse a command that no child could start.

    Raises:
        Refusal: there is none, or its program does not exist or may not be run.
    """
    if not command:
        raise Refusal("spec.trainer.command is missing: it is what `nas run` starts for each child")
    program = command[0]
    found = shutil.which(here.absolute() / program if "/" in program else program)
    if found is None:
        where = f"in {here.absolute()}" if "/" in program else "on the PATH"
        raise Refusal(f"spec.trainer.command: there is no executable program {program} {where} (chmod +x?)")


def _tail(log: Path) -> str:
    """Return the last of what a child said, in one line."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        text = harmless(file.read().decode(errors="replace"))
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())
