"""The built-in trainer in processes of this machine, forked from a server that has torch loaded already."""

import multiprocessing
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from nas_api import names
from nas_api.child import trainer_document
from nas_controller.executor import End, Launch, end_of
from nas_trainer.process import ENV_TERMINATION_LOG


class _Forked:
    """See :class:`nas_cli.local_executor.Process`."""

    def __init__(self, process: ForkServerProcess, log: Path, message: Path) -> None:
        self._process = process
        self.log = str(log)
        self._message = message

    @property
    def sentinel(self) -> int:
        return self._process.sentinel

    @property
    def exitcode(self) -> int | None:
        return self._process.exitcode

    def read_end(self) -> tuple[End, str]:
        code = self.exitcode or 0
        said = self._message.read_text(errors="replace") if self._message.exists() else ""
        return end_of(code), said or f"exit code {code}; its log is {self.log}"

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._message.unlink(missing_ok=True)
        self._process.close()


class BuiltInTrainer:
    """See :class:`nas_cli.local_executor.Trainer`."""

    def __init__(self, folder: Path) -> None:
        """Prepare; nothing is started yet.

        Args:
            folder: where children's logs and last words go, as ``<launch>.log`` and ``<launch>.message``.
        """
        self._folder = folder
        self._context = multiprocessing.get_context("forkserver")
        # __main__ as well: a child would otherwise import this program's own modules again.
        self._context.set_forkserver_preload(["__main__", "nas_cli.local_child"])

    def start(self, launch: Launch) -> _Forked:
        """See :class:`nas_cli.local_executor.Trainer`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        message, log = self._folder / f"{launch.number}.message", self._folder / f"{launch.number}.log"
        message.unlink(missing_ok=True)
        environment = {
            names.ENV_TRAINER_INPUT: trainer_document(launch.inputs),
            ENV_TERMINATION_LOG: str(message),
        }
        process = self._context.Process(target=_run, args=(environment, str(log)), name=f"child-{launch.number}")
        process.start()
        return _Forked(process, log, message)

    def close(self) -> None:
        """Do nothing: the fork server ends with this process."""


def _run(environment: dict[str, str], log: str) -> None:
    # Imported in the child's process, where the fork server has it loaded.
    from nas_cli import local_child

    local_child.run(environment, log)
